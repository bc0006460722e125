"""What the classifier makes of the labels so far: a fit, the accuracy and its curve."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.label.estimates import Estimate, estimate, gain, may_stop
from penult.label.learner import Fit, Learner
from penult.label.pool import Pool

GAIN_LABELS = 50
# If a label file is continued, so many points of its curve are computed, from this number of labels on.
_PAST_POINTS, _FIRST_POINT = 12, 20


@dataclass(frozen=True)
class Knowledge:
    """One fit and what follows from it.

    Attributes:
        fit: None with labels of fewer than two classes.
        known: Descriptors of the labelled photos, float32 [n, length], in the order of fit.rows.
        curve: Estimates of the accuracy, by rising number of labels.
        gain: Expected gain of GAIN_LABELS more labels, with its interval, as shares of 1; None if it is not known.
        may_stop: Whether the curve is flat within its interval.
    """

    fit: Fit | None = None
    known: NDArray[np.float32] | None = None
    curve: tuple[Estimate, ...] = ()
    gain: tuple[float, float, float] | None = None
    may_stop: bool = False


class Learning:
    """Fits, one after another, on one thread."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool = pool
        self._learner = Learner(pool.inputs, pool.groups, seed)
        self.knowledge = Knowledge()
        # Whether there are labels that `knowledge` does not know.
        self.is_behind = True

    def fit(self, labels: Mapping[int, int], classes: int) -> Knowledge:
        """Fit to labels.

        Args:
            labels: The class of each labelled photo by its row, in the order of the answers.
            classes: How many classes there are.
        """
        rows, given = np.array(list(labels), dtype=np.intp), np.array(list(labels.values()), dtype=np.int64)
        if len(set(given.tolist())) < 2:
            return Knowledge()
        past = self.knowledge.curve or self._past(rows, given, classes)
        fit = self._learner.fit(rows, given, classes)
        now = estimate(fit)
        curve = tuple(each for each in past if each.labels < len(rows)) + ((now,) if now else ())
        return Knowledge(fit, self._pool.inputs[rows], curve, gain(curve, GAIN_LABELS), may_stop(curve))

    def _past(self, rows: NDArray[np.intp], labels: NDArray[np.int64], classes: int) -> tuple[Estimate, ...]:
        """Return the curve up to labels of an earlier session, in the order of the file."""
        if len(rows) <= _FIRST_POINT:
            return ()
        counts = sorted({int(count) for count in np.geomspace(_FIRST_POINT, len(rows) - 1, _PAST_POINTS)})
        found = []
        for count in counts:
            if len(set(labels[:count].tolist())) > 1:
                fit = self._learner.fit(rows[:count], labels[:count], classes)
                found.append(estimate(fit))
        return tuple(each for each in found if each)
