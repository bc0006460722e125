"""Measure scorers: accuracy with its interval, figures per class, calibration, and tests of differences."""

import math
import warnings
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import fisher_exact
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from penult.bundle.scores import Floats, best_of, pieces, probability_of, softmax, wilson
from penult.export.evaluation.accuracy import HALF_WIDTH, counted, is_rough, right_of, stated
from penult.export.evaluation.paired import MIN_APART, SIGNIFICANCE, leads, mcnemar, p_text

_LOG_TEMPERATURES = (-5.0, 5.0)
# A reliability diagram has at most so many bins, each with at least so many photos.
_MAX_BINS = 10
_PHOTOS_PER_BIN = 20
# With more classes there is no confusion matrix; for 10,000 it would have a hundred million numbers.
MAX_CONFUSED = 300
_MAX_PAIRS = 100
# A temperature is one number, and so many scores are enough to fit it.
_MAX_FITTED = 20_000_000
# Log loss raises smaller float32 probabilities to this value, as scikit-learn does.
_MIN_PROBABILITY = float(np.finfo(np.float32).eps)


def evaluate(scores: Floats, labels: NDArray[np.int64], classes: tuple[str, ...], temperature: float) -> dict[str, Any]:
    """Return the metrics of scores against true labels, as plain values for metrics.json.

    Args:
        scores: [N, classes].
        labels: [N].
        classes: The class names.
        temperature: Turns scores into probabilities.

    Returns:
        Recall is None for a class without photos, precision for a class that is never answered. Macro-F1 is the mean
        over classes with photos or answers, as in scikit-learn. "confusion" is None with more than MAX_CONFUSED
        classes. "confused" lists the most frequent mistakes, true class first.
    """
    predicted, confidence = best_of(scores, temperature)
    every = list(range(len(classes)))
    answers = np.bincount(predicted, minlength=len(classes))
    accuracy = float((labels == predicted).mean())
    with warnings.catch_warnings():
        # Few photos per class: scikit-learn takes the classes' numbers for measurements.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        precision, recall, f1, photos = precision_recall_fscore_support(
            labels, predicted, labels=every, average=None, zero_division=0
        )
        confusion = confusion_matrix(labels, predicted, labels=every) if len(classes) <= MAX_CONFUSED else None
    of_true = np.maximum(probability_of(scores, labels, temperature).astype(np.float64), _MIN_PROBABILITY)
    return {
        "photos": len(labels),
        "accuracy": accuracy,
        "accuracy_95": list(wilson(accuracy, len(labels))),
        "few_photos": is_rough(*wilson(accuracy, len(labels))),
        "macro_f1": float(np.mean(f1[photos + answers > 0])),
        "log_loss": float(-np.log(of_true).mean()),
        "recall": _by_class(classes, recall, photos),
        "precision": _by_class(classes, precision, answers),
        "photos_by_class": {name: int(count) for name, count in zip(classes, photos, strict=True)},
        "confusion": None if confusion is None else confusion.tolist(),
        "confused": _confused(labels, predicted, classes),
    } | _calibration(confidence, predicted == labels)


def _confused(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: tuple[str, ...]) -> list[list[Any]]:
    """Return the most frequent mistakes: true class, answered class, number of photos."""
    wrong = labels != predicted
    pairs = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    by_count = sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))[:_MAX_PAIRS]
    return [[classes[true], classes[answered], count] for (true, answered), count in by_count]


def calibration(probabilities: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return the bins of a reliability diagram, the mean confidence and the calibration error.

    A photo's confidence is its largest probability. The bins have equally many photos (Nixon et al. 2019), because most
    bins of equal width would be empty: most answers of a good network are confident.

    Args:
        probabilities: [N, classes].
        labels: [N].

    Returns:
        `ece` is the expected calibration error (Naeini et al. 2015), the mean distance of confidence and accuracy over
        photos. With few photos it is too high by chance; even a perfectly calibrated scorer does not reach 0.
    """
    return _calibration(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def _calibration(confidence: Floats, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Do the work of calibration() on confidence [N] and correctness [N] of the answers."""
    count = min(_MAX_BINS, max(1, len(right) // _PHOTOS_PER_BIN))
    groups = np.array_split(np.argsort(confidence, kind="stable"), count)
    bins = [
        {"confidence": float(confidence[rows].mean()), "accuracy": float(right[rows].mean()), "photos": len(rows)}
        for rows in groups
    ]
    distance = sum(part["photos"] * abs(part["confidence"] - part["accuracy"]) for part in bins)
    return {"mean_confidence": float(confidence.mean()), "ece": distance / len(right), "reliability": bins}


def compare(dense_scores: Floats, svm_scores: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return McNemar's exact test of two scorers on the same photos; scores are [N, classes], `labels` [N]."""
    dense, svm = dense_scores.argmax(axis=1) == labels, svm_scores.argmax(axis=1) == labels
    only_dense, only_svm = leads(dense, svm)
    p_value = mcnemar(only_dense, only_svm)
    return {
        "both_right": int((dense & svm).sum()),
        "only_dense": only_dense,
        "only_svm": only_svm,
        "neither": int((~dense & ~svm).sum()),
        "p_value": p_value,
        "sentence": _sentence(only_dense, only_svm, p_value, len(labels)),
    }


def _sentence(only_dense: int, only_svm: int, p_value: float, photos: int) -> str:
    if not only_dense + only_svm:
        most = wilson(0.0, photos)[1]
        open_still = f"; {photos} photos cannot show a difference of less than {100 * most:.0f} points"
        same = "The SVM and the dense head are correct on exactly the same photos"
        return same + (open_still if most > HALF_WIDTH else "") + "."
    better = "the SVM is better" if only_svm > only_dense else "the dense head is better"
    outcome = better if p_value < SIGNIFICANCE else "no significant difference"
    if only_dense + only_svm < MIN_APART:
        outcome = "too few photos to say which is better"
    return (
        f"Only the SVM is correct on {_photos(only_svm)}, only the dense head on {only_dense}: "
        f"{outcome} (McNemar's exact test, {p_text(p_value)})."
    )


def against_validation(test: dict[str, Any], val: dict[str, Any]) -> dict[str, Any]:
    """Return Fisher's exact test of whether a scorer's accuracies on test and validation photos differ by chance.

    Both arguments are figures of evaluate(). `sentence` is empty if chance explains the difference (two-sided p of at
    least 0.05). Validation photos chose the epoch and the scorer, so a slightly higher accuracy on them is expected.
    """
    rows = [(right_of(figures), figures["photos"] - right_of(figures)) for figures in (test, val)]
    p_value = float(fisher_exact(rows).pvalue)
    return {
        "test_right": rows[0][0],
        "test_photos": test["photos"],
        "val_right": rows[1][0],
        "val_photos": val["photos"],
        "p_value": p_value,
        "sentence": _disagreement(test, val, p_value) if p_value < SIGNIFICANCE else "",
    }


def _disagreement(test: dict[str, Any], val: dict[str, Any], p_value: float) -> str:
    seen = (
        f"Accuracy differs between test and validation photos by more than chance: {counted(test)} test photos are "
        f"correct ({stated(test)}), {counted(val)} validation photos ({stated(val)}; Fisher's exact test, "
        f"{p_text(p_value)})."
    )
    if val["accuracy"] < test["accuracy"]:
        return (
            f"{seen} Validation photos chose the epoch and the scorer, so their accuracy should be higher. The test "
            "photos are easier than the others. Rely on the lower figure, and use more test photos."
        )
    return (
        f"{seen} Validation photos chose the epoch and the scorer, so their accuracy is too high. So large a gap also "
        "means that they are easier, or copies of training photos. Rely on the test photos."
    )


def _photos(count: int) -> str:
    return "1 photo" if count == 1 else f"{count} photos"


def _by_class(
    classes: tuple[str, ...], shares: NDArray[np.floating], counts: NDArray[np.integer]
) -> dict[str, float | None]:
    """Return the share of every class; None for a class whose count is 0."""
    return {name: float(share) if n else None for name, share, n in zip(classes, shares, counts, strict=True)}


def fit_temperature(scores: Floats, labels: NDArray[np.int64]) -> float:
    """Return the temperature with the lowest log loss on held-out scores [N, classes] (Guo et al. 2017).

    The true class counts as (n + 1) / (n + 2), not as 1 (Platt 1999). Otherwise the temperature would fall without
    limit if every held-out photo is correct. If there are very many scores, every nth photo is used.
    """
    step = -(-scores.size // _MAX_FITTED)
    scores, labels = scores[::step], labels[::step]
    doubt = 1 / (len(labels) + 2)
    other = doubt / max(scores.shape[1] - 1, 1)

    def loss(log_temperature: float) -> float:
        total = 0.0
        for rows in pieces(*scores.shape):
            logs = np.log(np.maximum(softmax(scores[rows], math.exp(log_temperature)), 1e-12))
            own = logs[np.arange(len(logs)), labels[rows]]
            total += other * logs.sum(dtype=np.float64) + (1 - doubt - other) * own.sum(dtype=np.float64)
        return float(-total / len(labels))

    return float(math.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))
