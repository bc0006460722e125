"""Suspect labels: what a photo is scored by, and that flipped labels come first."""

import numpy as np
import pytest

from penult.export.evaluation import suspects

_CLASSES = 3


@pytest.fixture
def photos() -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of three overlapping classes, 40 each, and their labels."""
    random = np.random.default_rng(0)
    labels = np.arange(120) % _CLASSES
    descriptors = np.abs(random.normal(size=(_CLASSES, 16)))[labels] + 0.4 * random.normal(size=(120, 16))
    return suspects.prepared(descriptors.astype(np.float32)), labels


def _scores(inputs: np.ndarray, labels: np.ndarray, units: list[str]) -> np.ndarray:
    fit = suspects._Fit(inputs, labels, _CLASSES, 0)
    scores = np.empty((len(labels), _CLASSES))
    for rows, bounds in suspects._blocks(units):
        scores[rows] = fit.left_out(rows, bounds)
    return scores


def _units(photos: int) -> list[str]:
    return [f"{row // 2}" if row < 10 else "big" if row < 100 else f"alone {row}" for row in range(photos)]


@pytest.mark.parametrize("landmarks", [2048, 60])
def test_scores_are_those_of_a_fit_without_the_photo(
    photos: tuple[np.ndarray, np.ndarray], landmarks: int, monkeypatch: pytest.MonkeyPatch
):
    """Closed forms equal fitting again without a photo's unit, also if a unit exceeds the landmarks."""
    monkeypatch.setattr(suspects, "MAX_LANDMARKS", landmarks)
    inputs, labels = photos
    units = _units(len(labels))
    fit = suspects._Fit(inputs, labels, _CLASSES, 0)
    features, targets = fit._features(np.arange(120)), fit._targets(np.arange(120))
    found = _scores(inputs, labels, units)
    for unit in set(units):
        out = np.array([each == unit for each in units])
        gram = features[~out].T @ features[~out] + suspects._RIDGE * np.eye(features.shape[1])
        expected = features[out] @ np.linalg.solve(gram, features[~out].T @ targets[~out])
        assert np.abs(found[out] - expected).max() < 1e-8


def test_own_label_does_not_count(photos: tuple[np.ndarray, np.ndarray]):
    """Another label of a photo, and of its copies, leaves their scores as they are."""
    inputs, labels = photos
    units = _units(len(labels))
    changed = labels.copy()
    changed[:2] = (changed[:2] + 1) % _CLASSES
    assert np.abs(_scores(inputs, changed, units)[:2] - _scores(inputs, labels, units)[:2]).max() < 1e-9


def test_flipped_labels_come_first(photos: tuple[np.ndarray, np.ndarray]):
    """Of six flipped labels, at least five are among the first eight, and their own class is suggested."""
    inputs, labels = photos
    flipped = np.array([3, 31, 56, 70, 99, 118])
    given = labels.copy()
    given[flipped] = (given[flipped] + 1) % _CLASSES
    units = [str(row) for row in range(len(labels))]
    probabilities = suspects.leave_out_probabilities(inputs, given, _CLASSES, units)
    ranking = suspects.rank(probabilities, given)
    first = np.intersect1d(ranking.order[:8], flipped)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert len(first) >= 5
    assert np.array_equal(ranking.suggested[first], labels[first])
    assert (ranking.scores[ranking.listed] > 1 - suspects.LISTED_BELOW).all()
    assert (np.diff(ranking.scores[ranking.order]) <= 0).all()


def test_nearest_is_outside_the_unit(photos: tuple[np.ndarray, np.ndarray]):
    """The nearest photo has the class that is asked for and is no copy; without any, it is -1."""
    inputs, labels = photos
    units = [str(row) for row in range(len(labels))]
    near = suspects.nearest(inputs, np.array([0, 1]), np.array([0, 0]), labels, units)
    likeness = inputs @ inputs[0]
    likeness[(labels != 0) | (np.arange(120) == 0)] = -1
    assert near[0] == likeness.argmax()
    assert labels[near[1]] == 0
    one = ["one" if label == 0 else unit for unit, label in zip(units, labels, strict=True)]
    assert suspects.nearest(inputs, np.array([0]), np.array([0]), labels, one).tolist() == [-1]
