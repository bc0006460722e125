"""How accurate the classifier is, what more labels may bring, and when to stop.

The cross-validated accuracy of the labelled photos is too low, by 20 points on TrashNet. They were chosen for being
difficult. The mean calibrated confidence in the pool is much nearer. Its error is not known, so a random sample
corrects it, by a weight that grows with the sample. The constants come from pool photos of three sets and two networks
(bench/RESULTS.md, "what comes next").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penult.label.learner import Fit

_Z95 = 1.96
# The standard error of the mean confidence, as a multiple of sqrt(4 p (1 - p)): with any number of labels, and what is
# added in squares with few.
_CONFIDENCE, _CONFIDENCE_FEW = 0.03, 0.45
# Errors fall as labels ** -exponent. What is believed of the exponent before any curve is seen, how sure that is, how
# sure the slope of a curve is, and how sure both together are.
_EXPONENT, _BELIEF, _SLOPE, _LEFT = 0.25, 0.4, 0.2, 0.25
# Accuracy moves up and down by so much anyway.
_NOISE = 0.005
# Fewer labels, or fewer points of the curve in its last half, say nothing of the slope.
_FEWEST_LABELS, _FEWEST_POINTS = 40, 3
_LEAST_ERROR = 0.002
# Stop if the next labels are not expected to bring so much.
_WORTH = 0.005


@dataclass(frozen=True)
class Estimate:
    """The accuracy on photos like those of the pool, with `labels` labels; `low` and `high` bound it at 95 %."""

    labels: int
    accuracy: float
    low: float
    high: float


def estimate(fit: Fit) -> Estimate | None:
    """Return the accuracy of a fit on photos that it has not seen; None with fewer than two classes labelled.

    It is the mean confidence in the pool, and labelled photos are answered by fits without them. The random sample
    among these corrects it by its hits less its confidence (a difference estimator). Inverse variances are the weights.
    """
    if len(set(fit.labels.tolist())) < 2:
        return None
    confidence = fit.probabilities.max(axis=1).astype(np.float64)
    confidence[fit.rows] = sure = fit.left_out.max(axis=1)
    accuracy = float(confidence.mean())
    spread = accuracy * (1 - accuracy)
    variance = 4 * spread * (_CONFIDENCE**2 + _CONFIDENCE_FEW**2 / len(fit.rows))
    if fit.is_sample.any() and variance > 0:
        hits = fit.left_out.argmax(axis=1) == fit.labels
        weight = variance / (variance + spread / fit.is_sample.sum())
        accuracy = float(np.clip(accuracy + weight * (hits - sure)[fit.is_sample].mean(), 0, 1))
        variance *= 1 - weight
    half = _Z95 * math.sqrt(variance)
    return Estimate(len(fit.rows), accuracy, max(0.0, accuracy - half), min(1.0, accuracy + half))


def gain(curve: Sequence[Estimate], more: int = 50) -> tuple[float, float, float] | None:
    """Return the accuracy that `more` labels may add, and its interval; None if it is not known.

    Errors are expected to fall as a power of the number of labels. The exponent is a usual one, corrected by the slope
    of the last half of the curve.
    """
    if not curve or curve[-1].labels < _FEWEST_LABELS:
        return None
    last, exponent = curve[-1], _exponent(curve)

    def added(error: float, power: float) -> float:
        return error * _share_gone(last.labels, more, max(power, 0.0))

    return (
        added(1 - last.accuracy, exponent),
        added(1 - last.high, exponent - 2 * _LEFT) - _NOISE,
        added(1 - last.low, exponent + 2 * _LEFT) + _NOISE,
    )


def may_stop(curve: Sequence[Estimate], more: int = 50) -> bool:
    """Return True if the last `more` labels moved the accuracy within its interval, and the next bring hardly any.

    A slope below the usual one is not trusted: a short curve is often flat by chance.
    """
    if not curve or curve[-1].labels < _FEWEST_LABELS:
        return False
    last = curve[-1]
    power = max(_exponent(curve), _EXPONENT)
    before = [each for each in curve if each.labels <= last.labels - more]
    if not before or (1 - last.accuracy) * _share_gone(last.labels, more, power) >= _WORTH:
        return False
    recent = [each for each in curve if each.labels > last.labels - more] + before[-1:]
    return all(last.low <= each.accuracy <= last.high for each in recent)


def _exponent(curve: Sequence[Estimate]) -> float:
    past = [each for each in curve if 2 * each.labels >= curve[-1].labels]
    if len({each.labels for each in past}) < _FEWEST_POINTS:
        return _EXPONENT
    labels = np.log([each.labels for each in past])
    errors = np.log([max(1 - each.accuracy, _LEAST_ERROR) for each in past])
    weight = _BELIEF**2 / (_BELIEF**2 + _SLOPE**2)
    return max(0.0, _EXPONENT + weight * (float(-np.polyfit(labels, errors, 1)[0]) - _EXPONENT))


def _share_gone(labels: int, more: int, power: float) -> float:
    """Return the share of errors that `more` labels take away."""
    return float(1 - (labels / (labels + more)) ** power)
