"""What decides a bundle's numbers after the network: the golden photos are ones that another device answers alike."""

import numpy as np
import pytest

from penult.export import svm
from penult.export.bundling import steady_rows


def _overlapping(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptors [N, 16] of six classes that overlap, and labels."""
    centres = np.random.default_rng(99).normal(size=(6, 16))
    labels = np.arange(count) % 6
    noise = np.random.default_rng(seed).normal(size=(count, 16))
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


def test_goldens_do_not_hang_on_rounding():
    """Photos on which two classes nearly tie are left out: their votes jump when a descriptor moves by a thousandth."""
    fitted = svm.fit(*_overlapping(240, 0), seed=0, kernel="rbf")
    descriptors, _ = _overlapping(600, 1)
    pairs = fitted.pipeline.set_params(svc__decision_function_shape="ovo").decision_function(descriptors)
    fitted.pipeline.set_params(svc__decision_function_shape="ovr")
    steady = steady_rows(descriptors, fitted)
    tied = np.flatnonzero((np.abs(pairs) < 1e-5).any(axis=1))
    assert 300 < len(steady) < 600
    assert set(tied).isdisjoint(steady)
    moved = descriptors[steady] * (1 + 2e-4 * np.random.default_rng(5).normal(size=(len(steady), 16)))
    scores = fitted.scores(descriptors[steady])
    assert np.abs(fitted.scores(moved.astype(np.float32)) - scores).max() < 0.1 * np.abs(scores).max()


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_where_no_photo_is_steady_all_may_be_goldens(kernel: str, monkeypatch: pytest.MonkeyPatch):
    """A bundle always has goldens; a linear SVM, which moves no further than its descriptors, keeps every photo."""
    fitted = svm.fit(*_overlapping(240, 0), seed=0, kernel=kernel)
    descriptors, _ = _overlapping(60, 1)
    if kernel == "rbf":
        monkeypatch.setattr("penult.export.bundling._MOST_MOVED", -1.0)
    assert steady_rows(descriptors, fitted).tolist() == list(range(60))
