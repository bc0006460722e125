"""Score a fitted SVC by matrix products: kernel values of the support vectors, then one product per class.

scikit-learn calls libsvm for one image and one support vector at a time. Matrix products give the same numbers 8 to 29
times faster (research/ceilings.md, section 1). All in float64, as in libsvm: in float32, sums over a thousand support
vectors with large coefficients would differ by more than 1e-5.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import BundleError
from penult.bundle.scores import Floats, as_columns, pieces
from penult.service.models.svm.estimator_state import EstimatorState

Score = Callable[[Floats], Floats]
_Doubles = NDArray[np.float64]
_Kernel = Callable[[_Doubles], _Doubles]

# No fitted model has a higher degree.
_MAX_DEGREE = 64


def from_state(svc: EstimatorState, length: int, classes: int) -> Score:
    """Return descriptors float32 [N, length] → scores float32 [N, classes]; raise BundleError.

    Source: scikit-learn's BaseSVC._dense_decision_function and _ovr_decision_function, libsvm's svm_predict_values.
    """
    if svc.flag("_sparse") or svc.text("decision_function_shape") != "ovr":
        raise BundleError(
            "SVM_UNSUPPORTED", 'the SVC in svm.pkl is sparse, or scores pairs of classes; fit it dense and with "ovr"'
        )
    vectors = svc.floats("support_vectors_", None, length)
    dual = svc.floats("_dual_coef_", classes - 1, len(vectors))
    intercept = svc.floats("_intercept_", classes * (classes - 1) // 2)
    ends = _ends(svc, classes, len(vectors), length)
    kernel = _kernel(svc, vectors)
    # Per class, the weights of its support vectors against each other class, in libsvm's order.
    weights = [np.ascontiguousarray(part.T) for part in np.split(dual, ends[:-1], axis=1)]

    def some(descriptors: Floats) -> Floats:
        values = kernel(descriptors.astype(np.float64))
        parts = [part @ weight for part, weight in zip(np.split(values, ends[:-1], axis=1), weights, strict=True)]
        decisions = _pairs(np.stack(parts)) + intercept
        return as_columns(-decisions[:, 0] if classes == 2 else _votes(-decisions, classes))

    def score(descriptors: Floats) -> Floats:
        # One number for each image and pair of classes, so that large batches are scored in pieces.
        parts = [some(descriptors[rows]) for rows in pieces(len(descriptors), classes**2)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return score


def _ends(svc: EstimatorState, classes: int, vectors: int, length: int) -> NDArray[np.int64]:
    """Return where each class's support vectors end; raise BundleError if they do not add up."""
    counts = svc.integers("_n_support", classes)
    if (counts < 0).any() or (counts > vectors).any() or counts.sum() != vectors:
        raise svc.unusable("_n_support")
    # The indices of the training images are not needed for scores; if they are wrong, the file is damaged.
    rows, seen = svc.integers("support_", vectors), svc.state.get("shape_fit_")
    if type(seen) is not tuple or [type(side) for side in seen] != [int, int] or seen[1] != length:
        raise svc.unusable("shape_fit_")
    if (rows < 0).any() or (rows >= seen[0]).any() or len(np.unique(rows)) != vectors:
        raise svc.unusable("support_")
    return np.cumsum(counts)


def _kernel(svc: EstimatorState, vectors: _Doubles) -> _Kernel:
    """Return descriptors float64 [N, length] → kernel values [N, support vectors]."""
    kind, transposed = svc.text("kernel"), np.ascontiguousarray(vectors.T)
    if kind == "linear":
        return lambda descriptors: descriptors @ transposed
    if kind not in ("rbf", "poly", "sigmoid"):
        raise BundleError("SVM_UNSUPPORTED", "the SVC in svm.pkl has an unknown kernel; use rbf or linear")
    gamma = svc.number("_gamma")
    if gamma < 0:
        raise svc.unusable("_gamma")
    if kind == "rbf":
        return rbf_kernel(transposed, gamma)
    coef0 = svc.number("coef0")
    if kind == "sigmoid":
        return lambda descriptors: np.asarray(np.tanh(gamma * (descriptors @ transposed) + coef0))
    degree = svc.number("degree")
    if not 0 <= degree <= _MAX_DEGREE or degree != int(degree):
        raise svc.unusable("degree")
    return lambda descriptors: np.asarray((gamma * (descriptors @ transposed) + coef0) ** int(degree))


def rbf_kernel(vectors: _Doubles, gamma: float) -> _Kernel:
    """Return descriptors float64 [N, length] → kernel values [N, V], of support vectors as columns [length, V]."""
    squares = (vectors**2).sum(axis=0)

    def rbf(descriptors: _Doubles) -> _Doubles:
        distances = descriptors @ vectors
        distances *= -2
        distances += squares
        distances += (descriptors**2).sum(axis=1, keepdims=True)
        distances *= -gamma
        return np.exp(distances, out=distances)

    return rbf


def _pairs(parts: _Doubles) -> _Doubles:
    """Return [N, pairs] from each class's sums against the others, [classes, N, classes - 1]."""
    first, second = np.triu_indices(len(parts), 1)
    # Of the others, class j comes as number j - 1 to a class before it, and class i as number i to one behind it.
    return (parts[first, :, second - 1] + parts[second, :, first]).T


def _votes(margins: _Doubles, classes: int) -> Floats:
    """Return votes, ties by confidence, [N, classes], from margins [N, pairs], positive for a pair's second class."""
    votes, confidence = np.zeros((2, len(margins), classes))
    start = 0
    for i in range(classes - 1):
        margin = margins[:, start : start + classes - 1 - i]  # of class i against each one behind it
        start += margin.shape[1]
        confidence[:, i] -= margin.sum(axis=1)
        confidence[:, i + 1 :] += margin
        is_second = margin > 0
        votes[:, i] += (~is_second).sum(axis=1)
        votes[:, i + 1 :] += is_second
    return np.asarray(votes + confidence / (3 * (np.abs(confidence) + 1)), dtype=np.float32)
