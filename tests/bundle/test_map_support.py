"""The manifest's entry on class maps: read as written, absent in older bundles, refused if it contradicts the bundle."""

import json
from dataclasses import replace

import pytest

from penult.bundle.errors import BundleError
from penult.bundle.manifest import DENSE_HEAD_NAME, GOLDEN_NAME, MODEL_NAME, SVM_NAME, FileEntry, Manifest
from penult.bundle.map_support import OLDER, MapSupport, why_none
from penult.bundle.preprocess import Preprocess

FILES = {name: FileEntry(1, "0") for name in (MODEL_NAME, GOLDEN_NAME, SVM_NAME, DENSE_HEAD_NAME)}
SUPPORT = MapSupport(("dense",), {"svm": "its kernel is RBF"}, (4, 7, 7), 2)
MANIFEST = Manifest(
    "tiny5", ("cat", "dog"), Preprocess(32, 32), 4, "svm", {"dense": 1.0, "svm": 1.0}, files=FILES, class_maps=SUPPORT
)


def test_the_entry_is_read_as_it_was_written():
    """Scorers, reasons, shape and views return; a bundle without the entry says that it is older."""
    assert Manifest.from_json(MANIFEST.to_json()).class_maps == SUPPORT
    assert (why_none(SUPPORT, "dense"), why_none(SUPPORT, "svm")) == ("", "its kernel is RBF")
    older = replace(MANIFEST, class_maps=None, files={n: e for n, e in FILES.items() if n != DENSE_HEAD_NAME})
    assert "class_maps" not in json.loads(older.to_json())
    assert why_none(Manifest.from_json(older.to_json()).class_maps, "dense") == OLDER


@pytest.mark.parametrize(
    "change",
    [
        {"scorers": ["novelty"]}, {"scorers": ["dense", "dense"]}, {"scorers": ["svm"]}, {"shape": []}, {"views": 3},
        {"shape": [4, 7]}, {"shape": [4, 0, 7]}, {"reasons": {"svm": 1}}, {"scorers": ["dense", "svm"], "shape": [5, 7, 7]},
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_cannot_be_right_is_refused(change):
    """Scorers need a shape, the dense one its file, the SVM as many channels as the descriptor has numbers."""
    values = json.loads(MANIFEST.to_json())
    values["class_maps"] |= change
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(values).encode())
    assert caught.value.reason == "MANIFEST_INVALID"
