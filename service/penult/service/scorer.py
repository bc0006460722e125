"""The one place that knows scikit-learn's pickles: descriptors in, decision values out.

A pickle is code, so it is opened by an unpickler that knows a short list of names (research/reliability.md, section
2). For the usual pipeline (normalise or standardise, then a linear or RBF SVM) even those names stand for empty shells
that only hold the arrays: scikit-learn is never imported then, which takes seconds off the start, and the scores are
matrix products. The goldens, made with scikit-learn itself, prove at load that they are the same within 1e-5.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from penult.bundle.errors import BundleError
from penult.bundle.scores import Floats, as_columns
from penult.service import kernel_svm
from penult.service.unpickle import open_pickle

Score = Callable[[Floats], Floats]

# What a pipeline may hold in place of a step.
_NO_STEP = (None, "passthrough")


def load_scorer(data: bytes, descriptor_length: int, classes: int) -> Score:
    """Return a function from descriptors float32 [N, descriptor_length] to decision values float32 [N, classes].

    Raises BundleError for a pickle that holds anything but a fitted SVM of these sizes.
    """
    shell = open_pickle(data, as_shells=True)
    try:
        products = _as_products(shell)
    except Exception as error:  # attributes that lack, or are no arrays
        raise BundleError("SVM_INVALID", "svm.pkl holds no fitted SVM; restore the bundle, or fit it again") from error
    score = products or _from_estimator(open_pickle(data, as_shells=False))
    _probe(score, descriptor_length, classes)
    return score


def _as_products(shell: Any) -> Score | None:
    """Return the scores of normalise/standardise + LinearSVC or SVC as matrix products; None for any other pipeline."""
    steps = [step for _, step in getattr(shell, "steps", [("svm", shell)]) if step not in _NO_STEP]
    if not steps or getattr(steps[-1], "kind", "") not in _CLASSIFIERS:
        return None
    transforms = [_TRANSFORMS[s.kind](s) for s in steps[:-1] if s.kind in _TRANSFORMS]
    classify = _CLASSIFIERS[steps[-1].kind](steps[-1])
    if classify is None or len(transforms) != len(steps) - 1 or None in transforms:
        return None
    last = classify

    def score(descriptors: Floats) -> Floats:
        for transform in transforms:
            assert transform is not None  # for the type checker: filtered above
            descriptors = transform(descriptors)
        return last(descriptors)

    return score


def _linear_svc(shell: Any) -> Score | None:
    if not hasattr(shell, "coef_"):
        return None
    weights = np.ascontiguousarray(shell.coef_.T, dtype=np.float32)
    intercept = np.asarray(shell.intercept_, dtype=np.float32)

    def score(descriptors: Floats) -> Floats:
        values = descriptors @ weights + intercept
        return as_columns(values[:, 0] if values.shape[1] == 1 else values)

    return score


def _normalizer(shell: Any) -> Score | None:
    if shell.norm != "l2":
        return None

    def transform(descriptors: Floats) -> Floats:
        norms = np.linalg.norm(descriptors, axis=1, keepdims=True)
        return np.asarray(descriptors / np.where(norms == 0, 1, norms), dtype=np.float32)  # as scikit-learn: 0 stays 0

    return transform


def _standard_scaler(shell: Any) -> Score | None:
    # Without centring, scikit-learn still keeps the mean that it saw.
    mean = shell.mean_.astype(np.float32) if shell.with_mean else np.float32(0)
    scale = shell.scale_.astype(np.float32) if shell.with_std else np.float32(1)
    return lambda descriptors: np.asarray((descriptors - mean) / scale, dtype=np.float32)


_TRANSFORMS: dict[str, Callable[[Any], Score | None]] = {"Normalizer": _normalizer, "StandardScaler": _standard_scaler}
_CLASSIFIERS: dict[str, Callable[[Any], Score | None]] = {"LinearSVC": _linear_svc, "SVC": kernel_svm.from_shell}


def _from_estimator(estimator: Any) -> Score:
    if not hasattr(estimator, "decision_function"):
        raise BundleError("SVM_INVALID", "svm.pkl holds no SVM or pipeline that ends in one; fit the SVM again")
    return lambda descriptors: as_columns(estimator.decision_function(descriptors))


def _probe(score: Score, descriptor_length: int, classes: int) -> None:
    """Score one made-up descriptor: wrong sizes and damaged arrays show before the first request."""
    try:
        values = score(np.full((1, descriptor_length), 0.5, dtype=np.float32))
    except Exception as error:  # shapes that do not fit raise whatever NumPy or scikit-learn does
        raise BundleError("SVM_SHAPE", f"svm.pkl cannot score descriptors of {descriptor_length} numbers") from error
    if values.shape != (1, classes) or not np.isfinite(values).all():
        raise BundleError("SVM_SHAPE", f"svm.pkl gives scores {values.shape}, not finite ones for {classes} classes")
