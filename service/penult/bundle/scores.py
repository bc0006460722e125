"""Arithmetic on scores that both stages must do alike."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def as_columns(decision: NDArray[np.floating]) -> Floats:
    """Return decision values as float32 [N, classes], whatever the number of classes.

    For two classes scikit-learn gives one column of signed distances, positive for the second class; it becomes
    (-distance, distance), whose argmax is scikit-learn's own prediction.
    """
    values = np.asarray(decision, dtype=np.float32)
    return np.stack([-values, values], axis=1) if values.ndim == 1 else values


def softmax(scores: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Return probabilities, float32 [N, classes], of scores [N, classes] divided by `temperature` (Guo et al. 2017)."""
    scaled = np.asarray(scores, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)


def largest_difference(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest absolute difference, relative to the largest expected value (infinite for NaN or inf)."""
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0)) / scale
