"""Compare two classifiers on the same photos: McNemar's exact test, the difference with its interval, agreement."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student

from penult.export.evaluation.folds import Labels, Rows

# A difference is significant if chance alone gives it less often than this.
SIGNIFICANCE = 0.05
# McNemar's exact test needs at least so many photos that only one classifier gets right: 2 / 2**6 < 0.05.
MIN_APART = 6
_SURE = 0.95

Hits = NDArray[np.bool_]


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test (McNemar 1947; binomial form).

    It checks whether the photos that only one classifier gets right are split more unevenly than by a fair coin.
    """
    apart = only_first + only_second
    return float(binomtest(only_second, apart).pvalue) if apart else 1.0


def leads(first: Hits, second: Hits, groups: Rows | None = None) -> tuple[int, int]:
    """Return how many groups the first and the second classifier lead in, of correct answers [N].

    Photos of a group (a burst, copies) are not independent. So a group counts once, for the classifier with more
    correct photos in it. Without groups, these are the photos that only one classifier gets right.
    """
    sums = _sums(first, second, groups)
    return int((sums < 0).sum()), int((sums > 0).sum())


def paired_difference(first: Hits, second: Hits, groups: Rows | None = None) -> tuple[float, tuple[float, float]]:
    """Return the accuracy of the second classifier minus that of the first, and its 95 % interval.

    The interval is Agresti and Min's (2005) for paired shares, with half a photo added to each cell.
    Photos of a group count as one observation.

    Args:
        first: Correct answers [N].
        second: Correct answers [N].
        groups: [N], a number for each group of photos; None if there are no groups.
    """
    sums, photos = _sums(first, second, groups), len(first)
    total = float(sums.sum())
    variance = ((sums**2).sum() + 1 - total**2 / (photos + 2)) / (photos + 2) ** 2
    half = float(student.ppf((1 + _SURE) / 2, math.inf)) * math.sqrt(variance)
    middle = total / (photos + 2)
    return total / photos, (max(middle - half, -1.0), min(middle + half, 1.0))


def _sums(first: Hits, second: Hits, groups: Rows | None) -> NDArray[np.float64]:
    """Return the lead of the second classifier in each group, in photos."""
    lead = second.astype(np.float64) - first
    if groups is None:
        return lead
    return np.bincount(np.unique(groups, return_inverse=True)[1], lead).astype(np.float64)


def kappa(first: Labels, second: Labels) -> float | None:
    """Return Cohen's kappa (1960) of two classifiers' answers [N]: 1 for equal answers, 0 for agreement by chance.

    None if both answer one class alone, so that chance agrees always.
    """
    count = int(max(first.max(), second.max())) + 1
    shares = [np.bincount(answers, minlength=count) / len(answers) for answers in (first, second)]
    by_chance = float(shares[0] @ shares[1])
    return (float((first == second).mean()) - by_chance) / (1 - by_chance) if by_chance < 1 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that stay valid although there are several (Holm 1979), in the order given."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def p_text(p_value: float) -> str:
    """Return a p-value as text: "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
