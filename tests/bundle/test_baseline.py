"""baseline.npz: novelty is the distance to the nearest reference, and what cannot be right is refused."""

import io
from dataclasses import replace

import numpy as np
import pytest

from penult.bundle.baseline import Baseline
from penult.bundle.errors import BundleError
from penult.bundle.manifest import FileEntry, Manifest
from penult.bundle.preprocess import Preprocess

MANIFEST = Manifest(
    "tiny5", ("a", "b"), Preprocess(32, 32), 3, "dense", {"dense": 1.0},
    files={"model.onnx": FileEntry(1, "0"), "golden.npz": FileEntry(1, "0")},
)  # fmt: skip
GOOD = Baseline(np.eye(3, dtype=np.float32)[:2], 0.25, 0.01, 0.1, np.array([0.5, 0.5], np.float32), {"dense": 0.9})


def test_novelty_is_the_distance_to_the_nearest():
    """1 - cosine to the nearest reference, whatever the length of the descriptor; a zero one is at distance 1."""
    asked = np.array([[5, 0, 0], [0, 0.1, 0], [1, 1, 0], [0, 0, 7], [-1, -1, 0], [0, 0, 0]], np.float32)
    expected = [0, 0, 1 - 0.5**0.5, 1, 1 + 0.5**0.5, 1]
    np.testing.assert_allclose(GOOD.novelty(asked), expected, atol=1e-6)
    assert GOOD.novelty(asked).dtype == np.float32


def test_it_comes_back_as_it_was():
    """From its bytes it has the same numbers."""
    found = Baseline.from_bytes(GOOD.to_bytes(), MANIFEST)
    np.testing.assert_array_equal(found.references, GOOD.references)
    np.testing.assert_array_equal(found.class_share, GOOD.class_share)
    assert replace(found, references=0, class_share=0) == replace(GOOD, references=0, class_share=0)


BAD = {
    "another length": {"references": np.eye(2, dtype=np.float32)},
    "no unit vectors": {"references": 2 * np.eye(3, dtype=np.float32)},
    "not finite": {"references": np.full((2, 3), np.nan, np.float32)},
    "float64": {"references": np.eye(3)},
    "none": {"references": np.empty((0, 3), np.float32)},
    "one dimension": {"references": np.ones(3, np.float32)},
    "classes": {"class_share": np.ones(3, np.float32)},
    "negative share": {"class_share": np.array([-1, 2], np.float32)},
    "threshold 0": {"threshold": 0.0},
    "threshold NaN": {"threshold": float("nan")},
    "share": {"novel_share": 1.5},
    "distance": {"distance": -1.0},
    "another scorer": {"confidence": {"svm": 0.5}},
    "confidence": {"confidence": {"dense": 1.5}},
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_right_is_refused(name):
    """Arrays of other shapes, kinds or ranges: BASELINE_INVALID, in one line."""
    with pytest.raises(BundleError) as caught:
        Baseline.from_bytes(replace(GOOD, **BAD[name]).to_bytes(), MANIFEST)
    assert caught.value.reason == "BASELINE_INVALID"


def _pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, references=np.array([object()], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", GOOD.to_bytes()[:-20], _pickled()])
def test_what_is_no_such_file_is_refused(data):
    """Cut off, empty, or holding pickles: BASELINE_INVALID."""
    with pytest.raises(BundleError, match="restore the bundle"):
        Baseline.from_bytes(data, MANIFEST)
