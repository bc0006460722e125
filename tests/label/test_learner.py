"""The classifier of the page: leaving out, growing, few columns, and the random sample."""

import numpy as np
import pytest
from tests.label import made_up

from penult.label import learner
from penult.label.learner import Learner

_CLASSES = 4


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, np.ndarray]:
    """Descriptors and labels of 300 photos."""
    return made_up.photos(300)


@pytest.mark.parametrize("columns", [2048, 25])
def test_left_out_photos_are_answered_by_a_fit_without_them(
    pool: tuple[np.ndarray, np.ndarray], columns: int, monkeypatch: pytest.MonkeyPatch
):
    """Closed forms equal a fit without a photo and its near-copies, with all columns of the kernel and with few."""
    monkeypatch.setattr(learner, "_MAX_COLUMNS", columns)
    inputs, labels = pool
    rows, groups = np.arange(60), np.arange(300)
    groups[[41, 42]] = 40
    full = Learner(inputs, groups)
    full._add(rows)
    scores, left_out = full._scores(rows, labels[rows], _CLASSES)
    for out in ([3], [40, 41, 42]):
        kept = np.setdiff1d(rows, out)
        without = Learner(inputs, groups)
        without._add(rows)  # the same columns
        expected, _ = without._scores(kept, labels[kept], _CLASSES)
        assert np.abs(expected[out] - left_out[out]).max() < 1e-4
        assert np.abs(scores[out] - left_out[out]).max() > 0.05


@pytest.mark.parametrize("noise", [0.3, 1.1])
def test_the_width_is_the_best_for_photos_left_out(noise: float):
    """Of all widths, the chosen one has the smallest squared residuals if each photo in turn is left out."""
    inputs, labels = made_up.photos(40, noise=noise)
    found = Learner(inputs, np.arange(40))
    found.fit(np.arange(40), labels, _CLASSES)
    errors = {}
    for sharpness in learner._SHARPNESSES:
        width = found._usual_width / sharpness
        matrix = learner.kernel(inputs @ inputs.T, width).astype(np.float64)
        targets = 2 * np.eye(_CLASSES)[labels] - 1
        total = 0.0
        for out in range(40):
            kept = np.setdiff1d(np.arange(40), [out])
            weights = np.linalg.solve(matrix[np.ix_(kept, kept)] + learner.RIDGE * np.eye(39), targets[kept])
            total += float(((matrix[out, kept] @ weights - targets[out]) ** 2).sum())
        errors[width] = total
    assert found._width == min(errors, key=errors.__getitem__)
    assert found._width != found._usual_width


def test_labels_one_by_one_give_the_fit_of_all_at_once(pool: tuple[np.ndarray, np.ndarray]):
    """A learner that has seen labels grow, change and go answers as a new one does."""
    inputs, labels = pool
    grown = Learner(inputs, np.arange(300))
    wrong = labels.copy()
    wrong[:5] = (wrong[:5] + 1) % _CLASSES
    for rows in (range(1), range(20), range(15), [*range(40), *range(60, 80)]):
        fit = grown.fit(np.array(rows), wrong[np.array(rows)], _CLASSES)
    rows = np.r_[0:40, 60:80]
    fit = grown.fit(rows, labels[rows], _CLASSES)
    expected = Learner(inputs, np.arange(300)).fit(rows, labels[rows], _CLASSES)
    assert np.abs(fit.probabilities - expected.probabilities).max() < 1e-4
    assert np.abs(fit.novelty - expected.novelty).max() < 1e-6
    assert np.array_equal(grown.answers(inputs[:50]), fit.probabilities[:50].argmax(axis=1))


def test_probabilities_are_calibrated(pool: tuple[np.ndarray, np.ndarray]):
    """The mean confidence in photos without a label is near the share of correct answers."""
    inputs, labels = made_up.photos(2000, noise=1.0)
    fit = Learner(inputs, np.arange(2000)).fit(np.arange(200), labels[:200], _CLASSES)
    hits = fit.probabilities[200:].argmax(axis=1) == labels[200:]
    assert 0.6 < hits.mean() < 0.95
    assert abs(fit.probabilities[200:].max(axis=1).mean() - hits.mean()) < 0.05


def test_one_label_and_one_class_can_be_learnt(pool: tuple[np.ndarray, np.ndarray]):
    """From one class, each photo's answer is that class, with finite numbers."""
    inputs, _ = pool
    fit = Learner(inputs, np.arange(300)).fit(np.array([7]), np.array([2]), _CLASSES)
    assert fit.probabilities[7].argmax() == 2
    assert np.isfinite(fit.probabilities).all()
    assert np.isfinite(fit.left_out).all()
    assert fit.novelty[7] == 0 < fit.novelty[8]


def test_the_sample_is_a_prefix_of_an_order_that_added_photos_keep(pool: tuple[np.ndarray, np.ndarray]):
    """The first photos of the order are the sample as far as all are labelled; further photos leave the order."""
    inputs, labels = pool
    one = Learner(inputs[:200], np.arange(200), seed=5)
    assert not np.array_equal(one.order, Learner(inputs[:200], np.arange(200), seed=6).order)
    rows = np.r_[one.order[:10], one.order[11:30]]
    fit = one.fit(rows, labels[rows], _CLASSES)
    assert fit.is_sample.tolist() == [True] * 10 + [False] * 19
    more = Learner(inputs, np.arange(300), seed=5).order
    assert np.array_equal(more[more < 200], one.order)
