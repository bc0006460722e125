"""How good a scorer is: accuracy with its interval, macro-F1, recall per class, confusion, calibration."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, recall_score

from penult.bundle.scores import Floats, softmax

_Z95 = 1.959964
_LOG_TEMPERATURES = (-5.0, 5.0)


def evaluate(scores: Floats, labels: NDArray[np.int64], classes: tuple[str, ...], temperature: float) -> dict[str, Any]:
    """Return the metrics of scores [N, classes] against true labels [N], as plain values for metrics.json."""
    predicted, every = scores.argmax(axis=1), list(range(len(classes)))
    accuracy = float(accuracy_score(labels, predicted))
    recall = recall_score(labels, predicted, labels=every, average=None, zero_division=0)
    return {
        "photos": len(labels),
        "accuracy": accuracy,
        "accuracy_95": list(wilson(accuracy, len(labels))),
        "macro_f1": float(f1_score(labels, predicted, labels=every, average="macro", zero_division=0)),
        "log_loss": float(log_loss(labels, softmax(scores, temperature), labels=every)),
        "recall": {name: float(value) for name, value in zip(classes, recall, strict=True)},
        "confusion": confusion_matrix(labels, predicted, labels=every).tolist(),
    }


def fit_temperature(scores: Floats, labels: NDArray[np.int64]) -> float:
    """Return the temperature with the lowest log loss on held-out scores (Guo et al. 2017).

    The true class counts as (n + 1) / (n + 2), not as 1 (Platt 1999): where every held-out photo is right, the
    temperature would fall without end and every answer claim certainty.
    """
    doubt = 1 / (len(labels) + 2)
    targets = np.full(scores.shape, doubt / max(scores.shape[1] - 1, 1))
    targets[np.arange(len(labels)), labels] = 1 - doubt

    def loss(log_temperature: float) -> float:
        probabilities = softmax(scores, math.exp(log_temperature))
        return float(-(targets * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1).mean())

    return float(math.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share seen on `count` photos (Wilson 1927)."""
    spread = _Z95 * math.sqrt(share * (1 - share) / count + _Z95**2 / (4 * count**2))
    middle, scale = share + _Z95**2 / (2 * count), 1 + _Z95**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
