"""Novelty by a fitted OneClassSVM, from its support vectors and coefficients.

Its decision value is a weighted sum of kernel values exp(-gamma d²), minus an offset. Novelty is half of the d² at
which one kernel value equals their weighted mean: -ln(mean) / (2 gamma). It falls if the decision value rises. For unit
descriptors it is near 1 - cosine to the nearest support vectors, 0 to 2, for any gamma and any number of vectors.
"""

import numpy as np

from penult.bundle.errors import BundleError
from penult.bundle.scores import Floats, pieces
from penult.service.models.svm.estimator_state import EstimatorState
from penult.service.models.svm.kernel_svc import Score, rbf_kernel

KIND = "OneClassSVM"
# The smallest number that float64 holds in full precision.
_TINY = np.finfo(np.float64).tiny


def from_state(svm: EstimatorState, length: int) -> Score:
    """Return descriptors float32 [N, length] → novelty float32 [N]; raise BundleError.

    Source: scikit-learn's OneClassSVM, libsvm's svm_predict_values.
    """
    if svm.kind != KIND or svm.flag("_sparse") or svm.text("kernel") != "rbf":
        raise BundleError(
            "SVM_UNSUPPORTED", f"svm.pkl holds no dense {KIND} with kernel rbf, which a model of one class needs"
        )
    vectors = svm.floats("support_vectors_", None, length)
    weights = svm.floats("_dual_coef_", 1, len(vectors))[0]
    total, gamma = float(weights.sum()), svm.number("_gamma")
    if not 0 < total < np.inf or (weights < 0).any():
        raise svm.unusable("_dual_coef_")
    if gamma <= 0:
        raise svm.unusable("_gamma")
    kernel, share = rbf_kernel(np.ascontiguousarray(vectors.T), gamma), weights / total

    def novelty(descriptors: Floats) -> Floats:
        found = np.empty(len(descriptors), dtype=np.float32)
        for rows in pieces(len(descriptors), max(len(vectors), length)):
            mean = kernel(descriptors[rows].astype(np.float64)) @ share
            found[rows] = -np.log(np.maximum(mean, _TINY)) / (2 * gamma)
        return np.clip(found, np.float32(0), np.float32(2))

    return novelty
