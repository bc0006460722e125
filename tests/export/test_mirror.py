"""--mirror: the served descriptor is the mean of a photo's and its mirror image's, whatever becomes of the network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from penult.bundle.manifest import Manifest
from penult.bundle.reader import read_bundle
from penult.bundle.scores import largest_difference
from penult.export.architectures import get
from penult.export.bundling import Result
from penult.export.convert import to_onnx
from penult.export.errors import SettingsError
from penult.export.half import to_half
from penult.export.model import Normalise, PenultNet, build
from penult.export.quantize import to_int8
from penult.export.run import train
from penult.export.runtime import ExportedModel
from penult.export.settings import TrainSettings


@pytest.fixture
def mirrored(settings: Callable[..., TrainSettings], tiny_weights: Path) -> PenultNet:
    """A tiny5 that looks twice, in eval mode."""
    return build(get("tiny5"), settings(weights=str(tiny_weights), freeze=0, mirror=True), classes=4).eval()


@pytest.fixture
def pixels() -> np.ndarray:
    """Five crops of noise."""
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_the_descriptor_is_the_mean_of_both_views(mirrored: PenultNet):
    """In eval mode; while learning, one view is one view."""
    photos = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits, descriptor = mirrored(photos)
        views = mirrored.body(photos), mirrored.body(photos.flip(3))
        assert torch.allclose(descriptor, (views[0] + views[1]) / 2, atol=1e-6)
        assert torch.equal(logits, mirrored.head(descriptor))
        assert not torch.allclose(views[0], views[1], atol=1e-2)
        mirrored.freeze([mirrored.body])
        assert torch.equal(mirrored.train()(photos)[1], views[0])


@pytest.mark.parametrize("precision", ["float", "half", "int8"])
def test_every_precision_looks_twice(mirrored: PenultNet, pixels: np.ndarray, precision: str):
    """A photo and its mirror image get the same answer, in batches of any size, near that of the network itself."""
    spec = get("tiny5").preprocess
    manifest = Manifest("tiny5", tuple("abcd"), spec, mirrored.descriptor_length, "dense", {"dense": 1.0})
    onnx = to_onnx(mirrored, manifest)
    made = {"float": lambda: onnx, "half": lambda: to_half(onnx), "int8": lambda: to_int8(onnx, manifest, [pixels])}
    model = ExportedModel(made[precision](), manifest)
    logits, descriptor = model.run(pixels)
    with torch.no_grad():
        own = mirrored(Normalise(spec)(torch.from_numpy(pixels)))[1].numpy()
    assert largest_difference(own, descriptor) < {"float": 1e-5, "half": 2e-3, "int8": 0.1}[precision]
    other = model.run(np.ascontiguousarray(pixels[:, :, ::-1]))
    assert largest_difference(descriptor, other[1]) < 1e-5
    assert largest_difference(logits, other[0]) < 1e-4
    singly = [model.run(pixels[row : row + 1])[1] for row in range(len(pixels))]
    assert largest_difference(descriptor, np.concatenate(singly)) < 1e-5


def test_a_bundle_that_looks_twice(trained: Result, digits: Path, tmp_path: Path):
    """A run with --mirror publishes such a network, and measures, fits and records by what it serves."""
    weights = trained.folder.parents[2] / "tiny5.pt"
    settings = TrainSettings(
        digits, tmp_path / "once", arch="tiny5", weights=str(weights), freeze=6, head_epochs=2, augment="none",
        svm="linear", report_photos=False,
    )  # fmt: skip
    once, twice = (
        read_bundle(train(made).folder.parent)
        for made in (settings, replace(settings, out=tmp_path / "twice", mirror=True))
    )
    assert twice.manifest.training["settings"]["mirror"] is True
    assert once.manifest.fingerprint != twice.manifest.fingerprint
    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    views = [
        ExportedModel(once.onnx, once.manifest).run(np.ascontiguousarray(i))[1] for i in (images, images[:, :, ::-1])
    ]
    both = ExportedModel(twice.onnx, twice.manifest).run(images)[1]
    assert largest_difference(both, np.mean(views, axis=0)) < 1e-5
    assert "mirror image" in (tmp_path / "twice" / "1" / "MODEL_CARD.md").read_text()
    assert "mirror image" not in (tmp_path / "once" / "1" / "MODEL_CARD.md").read_text()


def test_what_must_not_be_mirrored_is_not_served_mirrored():
    """--augment gentle keeps mirror images from the network; --mirror with it is refused."""
    with pytest.raises(SettingsError, match="--augment gentle"):
        TrainSettings(Path("photos"), Path("out"), augment="gentle", mirror=True)
