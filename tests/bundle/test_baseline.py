"""baseline.npz: novelty is the distance to the nearest reference, and what cannot be right is refused."""

import io
from dataclasses import replace

import numpy as np
import pytest

from penult.bundle.baseline import Baseline, Limit, Residual
from penult.bundle.errors import BundleError
from penult.bundle.manifest import FileEntry, Manifest
from penult.bundle.preprocess import Preprocess

MANIFEST = Manifest(
    "tiny5", ("a", "b"), Preprocess(32, 32), 3, "dense", {"dense": 1.0},
    files={"model.onnx": FileEntry(1, "0"), "golden.npz": FileEntry(1, "0")},
)  # fmt: skip
LIMIT = Limit(0.25, 0.01)
OLD = Baseline(np.eye(3, dtype=np.float32)[:2], LIMIT, 0.1, np.array([0.5, 0.5], np.float32), {"dense": 0.9})
RESIDUAL = Residual(np.array([0, 0, 0.5], np.float32), np.eye(3, dtype=np.float32)[:, :1])
GOOD = replace(OLD, photos=30, nearest=Limit(0.25, 0.01, 0.1, 200), residual=RESIDUAL,
               residual_limit=Limit(0.7, 0.025, 0.3, 200))  # fmt: skip
ASKED = np.array([[5, 0, 0], [0, 0.1, 0], [1, 1, 0], [0, 0, 7], [-1, -1, 0], [0, 0, 0]], np.float32)


def test_novelty_is_what_is_left_over():
    """Of the unit descriptor less the mean, what lies outside of the main directions, whatever its length was."""
    expected = [0.5, 1.25**0.5, 0.75**0.5, 0.5, 0.75**0.5, 0.5]
    np.testing.assert_allclose(GOOD.novelty(ASKED), expected, atol=1e-6)
    assert GOOD.novelty(ASKED).dtype == np.float32
    assert GOOD.limit == Limit(0.7, 0.025, 0.3, 200)
    assert GOOD.threshold == 0.7


def test_novelty_of_old_bundles_is_the_distance_to_the_nearest():
    """1 - cosine to the nearest reference, whatever the length of the descriptor; a zero one is at distance 1."""
    expected = [0, 0, 1 - 0.5**0.5, 1, 1 + 0.5**0.5, 1]
    np.testing.assert_allclose(OLD.novelty(ASKED), expected, atol=1e-6)
    assert OLD.novelty(ASKED).dtype == np.float32
    assert OLD.threshold == 0.25
    assert OLD.limit.interval == (0, 1)


@pytest.mark.parametrize("baseline", [GOOD, OLD])
def test_it_comes_back_as_it_was(baseline):
    """From its bytes it has the same numbers."""
    found = Baseline.from_bytes(baseline.to_bytes(), MANIFEST)
    np.testing.assert_array_equal(found.novelty(ASKED), baseline.novelty(ASKED))
    np.testing.assert_array_equal(found.references, baseline.references)
    np.testing.assert_array_equal(found.class_share, baseline.class_share)
    assert (found.limit, found.nearest, found.distance, found.confidence, found.photos) == (
        baseline.limit, baseline.nearest, baseline.distance, baseline.confidence, baseline.photos
    )  # fmt: skip


def test_a_file_of_an_older_penult_is_read_and_a_new_one_has_what_that_reads():
    """Without the arrays that came later it means what it meant; a new file still has those of before."""
    with np.load(io.BytesIO(GOOD.to_bytes())) as arrays:
        old = {name: arrays[name] for name in ("references", "numbers", "class_share", "scorers", "confidence")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **old)
    found = Baseline.from_bytes(buffer.getvalue(), MANIFEST)
    assert (found.limit, found.photos, found.residual) == (Limit(0.25, 0.01), 0, None)
    np.testing.assert_array_equal(found.novelty(ASKED), OLD.novelty(ASKED))


def test_few_photos_say_little_of_a_share():
    """The interval of the share above the threshold shrinks with the number of photos (Wilson, by hand)."""
    assert Limit(0.1, 0.0, photos=36).interval == pytest.approx((0, 0.0964), abs=1e-3)
    assert Limit(0.1, 0.025, photos=2000).interval == pytest.approx((0.019, 0.0328), abs=1e-3)


BAD = {
    "another length": {"references": np.eye(2, dtype=np.float32)},
    "no unit vectors": {"references": 2 * np.eye(3, dtype=np.float32)},
    "not finite": {"references": np.full((2, 3), np.nan, np.float32)},
    "float64": {"references": np.eye(3)},
    "none": {"references": np.empty((0, 3), np.float32)},
    "one dimension": {"references": np.ones(3, np.float32)},
    "classes": {"class_share": np.ones(3, np.float32)},
    "negative share": {"class_share": np.array([-1, 2], np.float32)},
    "threshold 0": {"nearest": Limit(0.0, 0)},
    "threshold NaN": {"residual_limit": Limit(float("nan"), 0)},
    "share": {"residual_limit": Limit(0.5, 1.5)},
    "usual": {"residual_limit": Limit(0.5, 0, 3.0)},
    "photos": {"residual_limit": Limit(0.5, 0, 0.1, -1)},
    "mean of another length": {"residual": Residual(np.zeros(2, np.float32), RESIDUAL.directions)},
    "mean outside the sphere": {"residual": Residual(np.full(3, 2, np.float32), RESIDUAL.directions)},
    "directions of another length": {"residual": Residual(RESIDUAL.mean, np.eye(2, dtype=np.float32))},
    "directions not orthonormal": {"residual": Residual(RESIDUAL.mean, np.ones((3, 2), np.float32))},
    "directions float64": {"residual": Residual(RESIDUAL.mean, np.eye(3)[:, :1])},
    "directions not finite": {"residual": Residual(RESIDUAL.mean, np.full((3, 1), np.nan, np.float32))},
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
