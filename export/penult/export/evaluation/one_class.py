"""Novelty with one class: two measures, a threshold for a share of false alarms, and the AUROC on other photos.

The threshold and the choice between the measures use photos of the class only. Other photos are for the report.
"""

import math
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import OneClassSVM

from penult.bundle.baseline import Baseline, Limit, nearest_distance
from penult.bundle.manifest import MEASURES, NEAREST, NOVELTY, SVM
from penult.bundle.scores import Floats, pieces, wilson
from penult.export.evaluation.drift_baseline import MIN_THRESHOLD, held_out_distances, pooled, spread
from penult.export.evaluation.outputs import SplitOutputs, unit_rows

# Each photo is compared with so many training photos at most: 10 MB for descriptors of 1,280 numbers.
MAX_REFERENCES = 2048
# Distances to several nearest photos are averaged, so that one odd training photo excuses no other (bench/one_class.py
# compares the numbers here).
NEIGHBOURS = 3
# Kernel values fall to exp(-10) at the usual distance between a photo and the nearest other one.
_EXPONENT = 10.0
# Copies would make the kernel too narrow. At 150, float64 holds the kernel values of any two photos.
_MAX_GAMMA = 150.0
_NU = 0.1
_Z95 = 1.959964
_MAX_HELD_OUT = 10_000


@dataclass(frozen=True)
class Nearest:
    """The mean of 1 - cosine to the few nearest of `references`, unit descriptors float32 [n, length]."""

    references: Floats

    @property
    def neighbours(self) -> int:
        """How many nearest photos are averaged."""
        return min(NEIGHBOURS, len(self.references))

    def novelty(self, descriptors: Floats) -> Floats:
        """Return the novelty, float32 [N], of descriptors float32 [N, length]."""
        return nearest_distance(self.references, descriptors, self.neighbours)


@dataclass(frozen=True)
class OneClassSvm:
    """A pipeline of Normalizer and OneClassSVM, on raw descriptors."""

    pipeline: Pipeline

    @property
    def svm(self) -> OneClassSVM:
        """The last step."""
        return self.pipeline[-1]

    def novelty(self, descriptors: Floats) -> Floats:
        """Return the novelty, float32 [N], of descriptors float32 [N, length], as the service computes it.

        penult.service.models.svm.one_class describes it. scikit-learn's score_samples() is not used. It subtracts the
        offset and adds it again, so that the small sums of distant photos are lost.
        """
        total, gamma = float(self.svm.dual_coef_.sum()), float(self.svm.gamma)
        found = np.empty(len(descriptors), dtype=np.float32)
        for rows in pieces(len(descriptors), max(len(self.svm.support_vectors_), descriptors.shape[1])):
            kernel = rbf_kernel(unit_rows(descriptors[rows]), self.svm.support_vectors_, gamma)
            mean = kernel @ self.svm.dual_coef_[0] / total
            found[rows] = -np.log(np.maximum(mean, np.finfo(np.float64).tiny)) / (2 * gamma)
        return np.clip(found, np.float32(0), np.float32(2))

    def to_bytes(self) -> bytes:
        """Return the bytes of svm.pkl."""
        return pickle.dumps(self.pipeline, protocol=5)


@dataclass(frozen=True)
class Fitted:
    """A measure with its limit, and the distances of the held-out photos, float32 [n], in rising order."""

    measure: Nearest | OneClassSvm
    limit: Limit
    held_out: Floats


def fit(
    train: SplitOutputs, val: SplitOutputs, rate: float, seed: int, groups: Sequence[str] = ()
) -> dict[str, Fitted]:
    """Fit both measures on the training photos, and their thresholds on held-out photos of the class.

    Held-out are the validation photos, and training photos, each measured without its own fifth of them.

    Args:
        train: The training photos.
        val: The validation photos.
        rate: The share of photos of the class that may be above the threshold.
        seed: Decides the fifths, and which photos are used if there are very many.
        groups: The group of each training photo, "" for none; a group is never parted.
    """
    rows = spread(train.labels, seed, MAX_REFERENCES)
    units = unit_rows(train.descriptors[rows]).astype(np.float32)
    names = [groups[row] or str(row) for row in rows] if groups else [str(row) for row in rows]
    numbers = np.unique(names, return_inverse=True)[1]
    found: dict[str, Fitted] = {}
    for name, make in _MAKERS.items():

        def distance(chosen: NDArray[np.intp], make: _Make = make) -> Callable[[Floats], Floats]:
            return make(units[chosen]).novelty

        measure = make(units)
        distances = pooled(held_out_distances(distance, units, seed, numbers), measure.novelty(val.descriptors))
        distances = np.sort(np.clip(distances, 0, 2).astype(np.float32))
        found[name] = Fitted(measure, limit_of(distances, rate), distances)
    return found


_Make = Callable[[Floats], "Nearest | OneClassSvm"]


def _one_class_svm(units: Floats) -> OneClassSvm:
    """Fit the SVM on unit descriptors. Its kernel is narrow, because a wide one sees only the mean of the photos."""
    exact = units.astype(np.float64)
    squared = np.maximum(2 - 2 * exact @ exact.T, 0)
    np.fill_diagonal(squared, np.inf)
    usual = float(np.median(squared.min(axis=1))) if len(units) > 1 else 1.0
    gamma = min(_EXPONENT / max(usual, 1e-12), _MAX_GAMMA)
    pipeline = make_pipeline(Normalizer(), OneClassSVM(kernel="rbf", gamma=gamma, nu=_NU))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OneClassSvm(pipeline.fit(exact))


_MAKERS: dict[str, _Make] = {NEAREST: Nearest, SVM: _one_class_svm}


def limit_of(distances: Floats, rate: float) -> Limit:
    """Return the threshold that a share `rate` of photos like the held-out ones exceeds, of rising distances [n].

    A new photo of the same kind is above it with probability `rate` at most (Vovk et al. 2005). With fewer than
    1 / rate - 1 photos, it is the largest distance.
    """
    place = min(len(distances), math.ceil((len(distances) + 1) * (1 - rate) - 1e-9))
    threshold = max(float(distances[place - 1]), MIN_THRESHOLD)
    above = float((distances > threshold).mean())
    return Limit(threshold, above, float(np.median(distances)), len(distances))


def enough_photos(rate: float) -> int:
    """Return how many held-out photos put the upper end of the 95 % interval of the share at twice `rate`."""
    low, high = 1, 1 << 24
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if wilson(rate, middle)[1] <= 2 * rate else (middle + 1, high)
    return low


def baseline(fitted: Mapping[str, Fitted], measure: str, val: SplitOutputs) -> Baseline:
    """Return the contents of baseline.npz for the measure that is served."""
    near, chosen = fitted[NEAREST], fitted[measure]
    assert isinstance(near.measure, Nearest)
    held_out = chosen.held_out
    if len(held_out) > _MAX_HELD_OUT:
        held_out = np.quantile(held_out, np.linspace(0, 1, _MAX_HELD_OUT)).astype(np.float32)
    made = Baseline(
        references=near.measure.references,
        nearest=near.limit,
        distance=float(np.mean(near.measure.novelty(val.descriptors))),
        class_share=np.ones(1, dtype=np.float32),
        confidence={},
        photos=len(val.labels),
        svm_limit=chosen.limit if measure == SVM else None,
        held_out=held_out,
        neighbours=near.measure.neighbours,
    )
    sure = made.probability(chosen.measure.novelty(val.descriptors))
    return replace(made, confidence={NOVELTY: float(sure.mean())})


# -- figures for metrics.json ------------------------------------------------------------------------------------------


def figures(
    fitted: Mapping[str, Fitted], measure: str, rate: float, measured: Mapping[str, SplitOutputs], outliers: Floats
) -> dict[str, Any]:
    """Return false alarms by split, and threshold and AUROC by measure, for metrics.json.

    Args:
        fitted: Both measures.
        measure: The one that is served.
        rate: The share of false alarms that was asked for.
        measured: The network's outputs by split.
        outliers: Descriptors [n, length] of other photos, which may be none.
    """
    chosen = fitted[measure]
    parts: dict[str, Any] = {
        part: {NOVELTY: _alarms(chosen, measured[part].descriptors)} for part in ("test", "val", "train")
    }
    by_measure = {name: _of_measure(fitted[name], measured["test"].descriptors, outliers) for name in MEASURES}
    low, high = chosen.limit.interval
    novelty = {
        "measure": measure,
        "false_alarms": rate,
        "threshold": chosen.limit.threshold,
        "photos_held_out": chosen.limit.photos,
        "share_held_out_above": chosen.limit.share,
        "share_above_interval_95": [low, high],
        "share_above": {part: parts[part][NOVELTY]["share"] for part in ("val", "test")},
        "photos_enough": enough_photos(rate),
        "outliers": len(outliers),
        "measures": by_measure,
    }
    return parts | {"novelty": novelty, "default_scorer": NOVELTY}


def _alarms(fitted: Fitted, descriptors: Floats) -> dict[str, Any]:
    above = int((fitted.measure.novelty(descriptors) > fitted.limit.threshold).sum())
    share = above / len(descriptors)
    return {
        "photos": len(descriptors),
        "false_alarms": above,
        "share": share,
        "share_95": list(wilson(share, len(descriptors))),
    }


def _of_measure(fitted: Fitted, test: Floats, outliers: Floats) -> dict[str, Any]:
    found: dict[str, Any] = {"threshold": fitted.limit.threshold, "test": _alarms(fitted, test)}
    if isinstance(fitted.measure, OneClassSvm):
        svm = fitted.measure.svm
        found |= {"gamma": float(svm.gamma), "nu": _NU, "support_vectors": len(svm.support_vectors_)}
    else:
        found |= {"references": len(fitted.measure.references), "neighbours": fitted.measure.neighbours}
    if not len(outliers):
        return found
    own, others = fitted.measure.novelty(test), fitted.measure.novelty(outliers)
    value, share = auroc(own, others), float((others > fitted.limit.threshold).mean())
    return found | {
        "auroc": value,
        "auroc_95": list(auroc_interval(value, len(own), len(others))),
        "outliers_found": int((others > fitted.limit.threshold).sum()),
        "outliers_found_95": list(wilson(share, len(others))),
    }


def auroc(own: Floats, others: Floats) -> float:
    """Return how often a photo of something else is more novel than one of the class, ties counted half."""
    is_other = np.concatenate([np.zeros(len(own)), np.ones(len(others))])
    return float(roc_auc_score(is_other, np.concatenate([own, others])))


def roc(own: Floats, others: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shares of the class and of other photos above each threshold, rising."""
    is_other = np.concatenate([np.zeros(len(own)), np.ones(len(others))])
    shares = roc_curve(is_other, np.concatenate([own, others]))
    return shares[0], shares[1]


def auroc_interval(value: float, own: int, others: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUROC (Newcombe 2006, method 5), which has a width at 1 too."""

    def is_likely(true: float) -> bool:
        extra = (own + others) / 2 - 1
        factor = 1 + extra * ((1 - true) / (2 - true) + true / (1 + true))
        return abs(value - true) <= _Z95 * math.sqrt(true * (1 - true) * factor / (own * others))

    def end(unlikely: float) -> float:
        inside, outside = value, unlikely
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_likely(middle) else (inside, middle)
        return inside

    return end(0.0), end(1.0)
