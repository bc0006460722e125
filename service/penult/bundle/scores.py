"""Arithmetic on scores that both stages must do alike."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# What is computed of many photos at a time is held for so many numbers: 32 MiB in float64.
_PIECE = 1 << 22
# Standard errors on either side of an interval of 95 %.
_Z95 = 1.959964


def as_columns(decision: NDArray[np.floating]) -> Floats:
    """Return decision values as float32 [N, classes], whatever the number of classes.

    For two classes scikit-learn gives one column of signed distances, positive for the second class. It becomes
    (-distance, distance), whose argmax is scikit-learn's own prediction.
    """
    values = np.asarray(decision, dtype=np.float32)
    return np.stack([-values, values], axis=1) if values.ndim == 1 else values


def pieces(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of rows, each of at most some millions of numbers where a row has `columns`."""
    step = max(1, _PIECE // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def softmax(scores: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Return probabilities, float32 [N, classes], of scores [N, classes] divided by `temperature` (Guo et al. 2017)."""
    scaled = np.asarray(scores, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)


def best_of(scores: NDArray[np.floating], temperature: float) -> tuple[NDArray[np.int64], Floats]:
    """Return the place of the largest score, int64 [N], and its probability, float32 [N], of scores [N, classes].

    As argmax and softmax give them, without the probabilities of all classes in memory.
    """
    named = scores.argmax(axis=1)
    return named, probability_of(scores, named, temperature)


def probability_of(scores: NDArray[np.floating], places: NDArray[np.int64], temperature: float) -> Floats:
    """Return the probability of one class per row, float32 [N], of scores [N, classes]."""
    found = np.empty(len(scores), dtype=np.float32)
    for rows in pieces(*scores.shape):
        probabilities = softmax(scores[rows], temperature)
        found[rows] = probabilities[np.arange(len(probabilities)), places[rows]]
    return found


def largest_difference(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest absolute difference, relative to the largest expected value (infinite for NaN or inf)."""
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0)) / scale


def wilson(share: float, count: float, z: float = _Z95) -> tuple[float, float]:
    """Return the interval of a share seen on `count` photos (Wilson 1927): of 95 %, or `z` standard errors."""
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    middle, scale = share + z**2 / (2 * count), 1 + z**2 / count
    # At shares of 0 and 1 an end is the share itself; rounded, it could lie beside it.
    return max(0.0, min(share, (middle - spread) / scale)), min(1.0, max(share, (middle + spread) / scale))
