"""Accuracy, gain and stopping: intervals that hold on made-up photos, chosen as the page chooses them."""

import numpy as np
import pytest
from tests.label import made_up

from penult.label.estimates import Estimate, estimate, gain, may_stop
from penult.label.learner import Fit, Learner
from penult.label.replay import Truth, _Fits, _order


def _fits(noise: float, seed: int, sizes: tuple[int, ...]) -> tuple[list[Fit], np.ndarray]:
    """Return fits after so many chosen labels of 600 photos, and the labels."""
    inputs, labels = made_up.photos(600, seed, noise)
    truth = Truth(inputs, np.arange(600), labels, inputs[:1], labels[:1], made_up.NAMES)
    fits, rows, found = _Fits(truth, seed), list[int](), []
    for row in _order(truth, fits, "active", seed, rows):
        rows.append(row)
        if len(rows) in sizes:
            found.append(fits.fit(rows))
        if len(rows) == sizes[-1]:
            return found, labels
    raise AssertionError


def _accuracy(fit: Fit, labels: np.ndarray) -> float:
    """Return the accuracy in the pool, of labelled photos by fits without them."""
    answers = fit.probabilities.argmax(axis=1)
    answers[fit.rows] = fit.left_out.argmax(axis=1)
    return float((answers == labels).mean())


@pytest.mark.server
def test_intervals_hold_the_accuracy():
    """Of eight estimates at least seven hold the truth, and the labelled photos alone would be far off."""
    held, naive = [], []
    for seed in range(4):
        noise = (0.6, 1.0)[seed % 2]
        for fit, labels in [(fit, labels) for fits, labels in [_fits(noise, seed, (40, 80))] for fit in fits]:
            found, accuracy = estimate(fit), _accuracy(fit, labels)
            assert found is not None
            assert found.high - found.low < 0.32
            held.append(found.low <= accuracy <= found.high)
            naive.append(accuracy - float((fit.left_out.argmax(axis=1) == fit.labels).mean()))
    assert np.mean(held) > 0.85
    assert np.mean(naive) > 0.05


def test_the_random_sample_corrects_the_confidence():
    """A classifier that is too sure is corrected by a large sample, and the interval shrinks."""
    inputs, labels = made_up.photos(900, noise=1.2)
    learner = Learner(inputs, np.arange(900))
    rows = learner.order[:400]
    fit = learner.fit(rows, labels[rows], 4)
    sure = Fit(
        fit.rows, fit.labels, 4, np.clip(fit.probabilities**4 / (fit.probabilities**4).sum(1, keepdims=True), 0, 1),
        fit.left_out**4 / (fit.left_out**4).sum(1, keepdims=True), fit.novelty, fit.usual_novelty, fit.order,
        fit.is_sample,
    )  # fmt: skip
    alone = Fit(**{**vars(sure), "is_sample": np.zeros(400, bool)})
    right, wrong, accuracy = estimate(sure), estimate(alone), _accuracy(fit, labels)
    assert right is not None
    assert wrong is not None
    assert abs(right.accuracy - accuracy) < 0.6 * abs(wrong.accuracy - accuracy)
    assert right.high - right.low < wrong.high - wrong.low


def test_one_class_has_no_accuracy():
    """With labels of one class there is nothing to estimate."""
    inputs, _ = made_up.photos(50)
    assert estimate(Learner(inputs, np.arange(50)).fit(np.arange(5), np.zeros(5, np.int64), 4)) is None


def _curve(exponent: float, upto: int, error: float = 1.0) -> list[Estimate]:
    points = [(labels, 1 - error * labels**-exponent) for labels in range(20, upto + 1, 5)]
    return [Estimate(labels, value, value - 0.03, min(1.0, value + 0.03)) for labels, value in points]


@pytest.mark.parametrize(("exponent", "upto"), [(0.2, 100), (0.5, 100), (0.7, 60), (0.3, 300)])
def test_the_gain_of_a_power_law_is_within_its_interval(exponent: float, upto: int):
    """What 50 labels bring on a curve that goes on as it was is within the interval, and expected within half."""
    curve = _curve(exponent, upto)
    found = gain(curve)
    assert found is not None
    truth = upto**-exponent - (upto + 50) ** -exponent
    assert found[1] < truth < found[2]
    assert 0.5 * truth < found[0] < 2 * truth


def test_one_may_stop_when_little_is_to_gain():
    """A good and flat curve ends, a rising one, a short one and one with many errors do not."""
    assert may_stop(_curve(0.0, 200, error=0.02))
    assert not may_stop(_curve(0.0, 35, error=0.02))
    assert not may_stop(_curve(0.0, 200, error=0.25))
    assert not may_stop(_curve(0.5, 200, error=2.0))
    assert gain(_curve(0.3, 35)) is None
    assert gain([]) is None
