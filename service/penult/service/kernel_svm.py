"""A fitted SVC as matrix products: kernel values against the support vectors, then one product per pair of classes.

scikit-learn asks libsvm for one photo and one support vector at a time; as two matrix products the same numbers come
8 to 29 times faster (research/ceilings.md, section 1). All in float64, as libsvm computes: in float32, sums over a
thousand support vectors with large coefficients would leave the 1e-5 that is promised.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import Floats, as_columns

Score = Callable[[Floats], Floats]
_Doubles = NDArray[np.float64]


def from_shell(svc: Any) -> Score | None:
    """Return descriptors float32 [N, d] → scores float32 [N, classes]; None for a kernel or form not known here.

    `svc` holds a pickled SVC's attributes. Source: scikit-learn's BaseSVC._dense_decision_function and
    _ovr_decision_function, libsvm's svm_predict_values.
    """
    kernel = _kernel(svc)
    if kernel is None or getattr(svc, "decision_function_shape", "") != "ovr" or svc._sparse:
        return None
    counts = np.asarray(svc._n_support)
    pairs = _pair_coefficients(np.asarray(svc._dual_coef_, dtype=np.float64), counts)
    intercept = np.asarray(svc._intercept_, dtype=np.float64)

    def score(descriptors: Floats) -> Floats:
        decisions = kernel(descriptors.astype(np.float64)) @ pairs + intercept
        return as_columns(-decisions[:, 0] if len(counts) == 2 else _votes(-decisions, len(counts)))

    return score


def _kernel(svc: Any) -> Callable[[_Doubles], _Doubles] | None:
    vectors = np.ascontiguousarray(np.asarray(svc.support_vectors_, dtype=np.float64).T)
    if svc.kernel == "linear":
        return lambda descriptors: descriptors @ vectors
    if svc.kernel != "rbf":
        return None
    gamma, squares = float(svc._gamma), (vectors**2).sum(axis=0)

    def rbf(descriptors: _Doubles) -> _Doubles:
        distances = descriptors @ vectors
        distances *= -2
        distances += squares
        distances += (descriptors**2).sum(axis=1, keepdims=True)
        distances *= -gamma
        return np.exp(distances, out=distances)

    return rbf


def _pair_coefficients(dual: _Doubles, counts: NDArray[np.int32]) -> _Doubles:
    """Return [support vectors, pairs]: libsvm keeps, per vector, its weight against each other class in turn."""
    ends = np.cumsum(counts)
    starts, classes = ends - counts, len(counts)
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    matrix = np.zeros((ends[-1], len(pairs)))
    for column, (i, j) in enumerate(pairs):
        matrix[starts[i] : ends[i], column] = dual[j - 1, starts[i] : ends[i]]
        matrix[starts[j] : ends[j], column] = dual[i, starts[j] : ends[j]]
    return matrix


def _votes(margins: _Doubles, classes: int) -> Floats:
    """Return votes, ties by confidence, [N, classes], from margins [N, pairs], positive for a pair's second class."""
    votes, confidence = np.zeros((2, len(margins), classes))
    column = 0
    for i in range(classes):
        for j in range(i + 1, classes):
            margin = margins[:, column]
            confidence[:, i] -= margin
            confidence[:, j] += margin
            is_second = margin > 0
            votes[:, i] += ~is_second
            votes[:, j] += is_second
            column += 1
    return np.asarray(votes + confidence / (3 * (np.abs(confidence) + 1)), dtype=np.float32)
