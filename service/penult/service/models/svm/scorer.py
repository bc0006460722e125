"""Score descriptors with the estimators of scikit-learn that penult knows.

scikit-learn is never imported. A pickle is code, so it is read as plain arrays (pickle_reader.py), and the scores of
normalise or standardise, then a linear or kernel SVM, are matrix products. This makes the start seconds faster, and
libsvm, which checks no number, gets none from an untrusted file. Each array's type, shape and numbers are checked
before use. Goldens made with scikit-learn verify at load that the scores are the same within 1e-5.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from penult.bundle.class_map import LinearHead
from penult.bundle.errors import BundleError
from penult.bundle.scores import Floats, as_columns
from penult.service.models.svm import kernel_svc, one_class
from penult.service.models.svm.estimator_state import EstimatorState
from penult.service.models.svm.pickle_reader import open_pickle

Score = Callable[[Floats], Floats]


def load_scorer(data: bytes, descriptor_length: int, classes: int, allow_skew: bool = False) -> Score:
    """Return a function from descriptors float32 [N, descriptor_length] to decision values float32 [N, classes].

    Raises BundleError unless the pickle holds a fitted SVM of these sizes. An SVM of another scikit-learn also raises,
    unless `allow_skew` (see open_pickle).
    """
    found = open_pickle(data, allow_skew)
    with _checked():
        score = _as_products(found, descriptor_length, partial(_classifier, classes=classes))
        _probe(score, descriptor_length, (1, classes))
    return score


def load_linear(data: bytes, descriptor_length: int, classes: int, allow_skew: bool = False) -> LinearHead | None:
    """Return an SVM that is linear in descriptors of unit length, for class maps; None if it is another one.

    Raises BundleError as load_scorer() does.
    """
    found = open_pickle(data, allow_skew)
    with _checked():
        *before, last = _steps(found)
        if last.kind != "LinearSVC" or [step.kind for step in before] != ["Normalizer"]:
            return None
        if before[0].text("norm") != "l2":
            return None
        rows = 1 if classes == 2 else classes
        weights = _single(last, "coef_", rows, descriptor_length)
        # The scores of zeros are the bias.
        bias = _linear_svc(last, descriptor_length, classes)(np.zeros((1, descriptor_length), dtype=np.float32))[0]
        return LinearHead(np.concatenate([-weights, weights]) if rows == 1 else weights, bias, is_normalised=True)


def load_novelty(data: bytes, descriptor_length: int, allow_skew: bool = False) -> Score:
    """Return a function from descriptors float32 [N, descriptor_length] to their novelty float32 [N], 0 to 2.

    Raises BundleError as load_scorer() does, unless the pickle holds a fitted one-class SVM.
    """
    found = open_pickle(data, allow_skew)
    with _checked():
        novelty = _as_products(found, descriptor_length, one_class.from_state)
        _probe(novelty, descriptor_length, (1,))
    return novelty


@contextmanager
def _checked() -> Iterator[None]:
    """Raise BundleError for any error: the attributes are input, and any of them may be something else."""
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError("SVM_INVALID", "svm.pkl holds no fitted SVM; restore the bundle, or fit it again") from error


def _as_products(found: Any, length: int, last_step: Callable[[EstimatorState, int], Score]) -> Score:
    """Return the scores of normalise/standardise and an SVM as matrix products; raise BundleError."""
    *steps, last = _steps(found)
    if any(step.kind not in _TRANSFORMS for step in steps):
        raise _no_svm()
    transforms = [_TRANSFORMS[step.kind](step, length) for step in steps]
    classify = last_step(last, length)

    def score(descriptors: Floats) -> Floats:
        for transform in transforms:
            descriptors = transform(descriptors)
        return classify(descriptors)

    return score


def _classifier(svm: EstimatorState, length: int, classes: int) -> Score:
    """Return the scores of a LinearSVC or SVC; raise BundleError."""
    if svm.kind not in _CLASSIFIERS:
        raise _no_svm()
    _check_classes(svm, classes)
    return _CLASSIFIERS[svm.kind](svm, length, classes)


def _no_svm() -> BundleError:
    return BundleError("SVM_INVALID", "svm.pkl holds no SVM or pipeline that ends in one; fit the SVM again")


def _steps(found: Any) -> list[EstimatorState]:
    """Return a pipeline's steps, or the one estimator."""
    if not isinstance(found, EstimatorState):
        raise BundleError("SVM_INVALID", "svm.pkl holds no SVM; restore the bundle, or fit it again")
    if found.kind != "Pipeline":
        return [found]
    steps = [step for _, step in found.state["steps"]]
    kept = [step for step in steps if isinstance(step, EstimatorState)]
    if not kept or any(step not in (None, "passthrough") for step in steps if not isinstance(step, EstimatorState)):
        raise found.unusable("steps")
    return kept


def _check_classes(svm: EstimatorState, classes: int) -> None:
    """Raise BundleError unless the SVM's classes are the manifest's, by place."""
    if (svm.integers("classes_", classes) != np.arange(classes)).any():
        raise svm.unusable("classes_")


def _linear_svc(svm: EstimatorState, length: int, classes: int) -> Score:
    rows = 1 if classes == 2 else classes
    weights = np.ascontiguousarray(_single(svm, "coef_", rows, length).T)
    # Fitted without an intercept, it is 0.0.
    intercept = _single(svm, "intercept_", rows) if svm.flag("fit_intercept") else np.float32(0)

    def score(descriptors: Floats) -> Floats:
        values = descriptors @ weights + intercept
        return as_columns(values[:, 0] if rows == 1 else values)

    return score


def _normalizer(step: EstimatorState, length: int) -> Score:
    norm = step.text("norm")
    if norm not in _NORMS:
        raise step.unusable("norm")

    def transform(descriptors: Floats) -> Floats:
        norms = _NORMS[norm](descriptors)
        return np.asarray(descriptors / np.where(norms == 0, 1, norms), dtype=np.float32)  # as scikit-learn: 0 stays 0

    return transform


_NORMS: dict[str, Callable[[Floats], Any]] = {
    "l2": lambda descriptors: np.linalg.norm(descriptors, axis=1, keepdims=True),
    "l1": lambda descriptors: np.abs(descriptors).sum(axis=1, keepdims=True),
    "max": lambda descriptors: np.abs(descriptors).max(axis=1, keepdims=True),
}


def _standard_scaler(step: EstimatorState, length: int) -> Score:
    # Without centring, scikit-learn still keeps the mean that it saw.
    mean = _single(step, "mean_", length) if step.flag("with_mean") else np.float32(0)
    scale = _single(step, "scale_", length) if step.flag("with_std") else np.float32(1)
    if not np.all(scale > 0):
        raise step.unusable("scale_")
    return lambda descriptors: np.asarray((descriptors - mean) / scale, dtype=np.float32)


def _single(step: EstimatorState, name: str, *shape: int) -> Floats:
    """Return an array as float32; raise BundleError if it is too large for float32."""
    exact = step.floats(name, *shape)
    if (np.abs(exact) > np.finfo(np.float32).max).any():
        raise step.unusable(name)
    return exact.astype(np.float32)


_TRANSFORMS: dict[str, Callable[[EstimatorState, int], Score]] = {
    "Normalizer": _normalizer,
    "StandardScaler": _standard_scaler,
}
_CLASSIFIERS: dict[str, Callable[[EstimatorState, int, int], Score]] = {
    "LinearSVC": _linear_svc,
    "SVC": kernel_svc.from_state,
}


def _probe(score: Score, descriptor_length: int, shape: tuple[int, ...]) -> None:
    """Score one made-up descriptor, so that overflow shows before the first request."""
    with np.errstate(all="ignore"):
        values = score(np.full((1, descriptor_length), 0.5, dtype=np.float32))
    if values.shape != shape or not np.isfinite(values).all():
        raise BundleError("SVM_SHAPE", f"svm.pkl gives scores {values.shape}, not finite ones of shape {shape}")
