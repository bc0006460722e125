"""Guesses at a name: a slip of the finger is found, another word is not."""

import pytest

from penult.nearest import did_you_mean, nearest

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "vgg16")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet19", "resnet18"), ("ResNet50", "resnet50"), ("mobilenetv2", "mobilenet_v2"), ("vgg-16", "vgg16"),
        ("resnet101x" * 1000, None), ("", None), ("zebra", None),
    ],
)  # fmt: skip
def test_the_name_meant(name: str, found: str | None):
    """Typing errors and other capitals are seen through; what is like nothing gets no guess."""
    assert nearest(name, NETWORKS) == found
    assert did_you_mean(name, NETWORKS) == (f"; did you mean {found}?" if found else "")


def test_nothing_is_known():
    """There may be no names at all."""
    assert nearest("pets", ()) is None
