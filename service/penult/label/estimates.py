"""How accurate the classifier is, what more labels may bring, and when to stop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import wilson
from penult.label.learner import Fit

# Fewer random photos say nothing.
_FEWEST = 5


@dataclass(frozen=True)
class Estimate:
    """The accuracy on photos like those of the pool, with `labels` labels; `low` and `high` bound it at 95 %."""

    labels: int
    accuracy: float
    low: float
    high: float


def estimate(fit: Fit, picked_at_random: NDArray[np.bool_] | None = None) -> Estimate | None:
    """Return the accuracy on the random sample among the labelled photos, each answered by a fit without it.

    Args:
        fit: The last fit.
        picked_at_random: Not used: fit.is_sample also has the photos that two strategies would have picked.
    """
    hits = (fit.left_out.argmax(axis=1) == fit.labels)[fit.is_sample]
    if len(hits) < _FEWEST:
        return None
    accuracy = float(hits.mean())
    return Estimate(len(fit.rows), accuracy, *wilson(accuracy, len(hits)))


def gain(curve: Sequence[Estimate], more: int = 50) -> tuple[float, float, float] | None:
    """Return the accuracy that `more` labels may add, as a share of 1, and its interval; None if it is not known."""
    if len(curve) < 2:
        return None
    last = curve[-1]
    before = next((each for each in reversed(curve) if each.labels <= last.labels - more), None)
    if before is None:
        return None
    value = max(0.0, last.accuracy - before.accuracy)
    spread = math.hypot((last.high - last.low) / 2, (before.high - before.low) / 2)
    return value, max(0.0, value - spread), value + spread


def may_stop(curve: Sequence[Estimate]) -> bool:
    """Return True if the curve has been flat within its interval."""
    found = gain(curve)
    return found is not None and found[0] < 0.005
