"""Fit an SVM on L2-normalised descriptors; cross-validation searches kernel, C and gamma.

With few labels the SVM is often better than the dense head (research/learning.md, part A). So both are always fitted
and reported. A fixed C = 1 cost 11 points there, so C is searched. On frozen descriptors the RBF kernel gains points
too (TrashNet, SqueezeNet 1.1: 83.1 % against 79.0 % in cross-validation). After fine-tuning the classes are well
separated, the kernels tie, and the linear one is faster to serve. StandardScaler did not help either kernel.
"""

import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.class_weight import compute_sample_weight

from penult.bundle.class_map import LinearHead
from penult.bundle.scores import Floats, as_columns, pieces
from penult.console import say
from penult.export.evaluation import svm_cost
from penult.export.evaluation.folds import Labels, Rows, count_folds
from penult.export.evaluation.least_squares import factor
from penult.export.evaluation.svm_cost import AUTO, RBF, Counts
from penult.export.evaluation.svm_search import (
    LEAST_SQUARES,
    Folds,
    Search,
    beats,
    by_text,
    estimator_of,
    search_linear,
    search_rbf,
)
from penult.interrupts import apart, pool

# The photos that C is searched on.
TRAINING, TRAINING_AND_VALIDATION = "training", "training and validation"
# Longer fits are announced with their time.
_LONG_S = 20.0


@dataclass(frozen=True)
class FittedSvm:
    """A pipeline fitted on raw descriptors, and the search of each kernel, the chosen one first.

    Attributes:
        photos: How many photos it was fitted on.
        repeats: How often they were divided into folds.
        parts: The photos that C was searched on.
    """

    pipeline: Pipeline
    searches: tuple[Search, ...]
    folds: int
    class_weight: str | None
    seed: int
    photos: int
    seconds: float
    how: str = ""
    repeats: int = 1
    parts: str = TRAINING

    @property
    def kernel(self) -> str:
        """The kernel chosen."""
        return self.searches[0].kernel

    @property
    def c(self) -> float:
        """The C chosen."""
        return self.searches[0].c

    @property
    def gamma(self) -> float | None:
        """The gamma chosen; None for the linear kernel."""
        return self.searches[0].gamma or None

    @property
    def accuracy_by_c(self) -> dict[float, float]:
        """Cross-validated accuracy by C, of the chosen kernel at the chosen gamma."""
        return self.searches[0].accuracy_by_c(self.searches[0].gamma)

    def scores(self, descriptors: Floats) -> Floats:
        """Return decision values float32 [N, classes]; scikit-learn's float64 values are computed in pieces."""
        classes = len(self.pipeline.classes_)
        columns = classes**2 // 2 if self.kernel == RBF else classes
        found = np.empty((len(descriptors), classes), dtype=np.float32)
        for rows in pieces(len(descriptors), max(columns, descriptors.shape[1])):
            found[rows] = as_columns(self.pipeline.decision_function(descriptors[rows]))
        return found

    @property
    def head(self) -> LinearHead | None:
        """The SVM as a linear layer on descriptors of unit length, for class maps; None with an RBF kernel."""
        if self.kernel == RBF:
            return None
        estimator = self.pipeline[-1]
        weights, bias = (np.asarray(each, dtype=np.float32) for each in (estimator.coef_, estimator.intercept_))
        bias = np.broadcast_to(bias, len(weights))
        if len(weights) == 1:  # one plane stands for two classes
            weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
        return LinearHead(weights, bias, is_normalised=True)

    def to_bytes(self) -> bytes:
        """Return the bytes of svm.pkl."""
        return pickle.dumps(self.pipeline, protocol=5)

    def as_json(self) -> dict[str, Any]:
        """Return the entry "svm" of metrics.json."""
        return {
            "kernel": self.kernel,
            "solver": self.searches[0].solver,
            "search": self.how,
            "c": self.c,
            "gamma": self.gamma,
            "class_weight": self.class_weight,
            "photos": self.photos,
            "folds": self.folds,
            "repeats": self.repeats,
            "photos_searched": len(self.searches[0].rows),
            "parts_searched": self.parts,
            "criterion": "balanced accuracy" if self.class_weight else "accuracy",
            "accuracy_by_c": by_text(self.accuracy_by_c),
            "searches": {search.kernel: search.as_json() for search in self.searches},
            "seconds": round(self.seconds, 2),
        }


def fit(
    descriptors: Floats,
    labels: Labels,
    seed: int,
    kernel: str = AUTO,
    class_weight: str | None = None,
    groups: Rows | None = None,
    repeats: int = 1,
    is_fine_tuned: bool = False,
) -> FittedSvm:
    """Fit Normalizer and LinearSVC, or Normalizer and SVC.

    With many classes or photos, C is searched on a share of the photos, or by least squares (see svm_cost).

    Args:
        descriptors: float32 [N, length].
        labels: [N], 0 to classes - 1.
        seed: Decides folds and samples.
        kernel: "linear", "rbf" or "auto". "auto" uses RBF if it is clearly better in cross-validation, and does not try
            it if the counts show that it is too slow.
        class_weight: None or "balanced", as in scikit-learn.
        groups: [N], a number for each group of photos that folds must not part; None if there are no groups.
        repeats: How often the photos are divided into folds.
        is_fine_tuned: True if the network may have learnt from these photos and labels.

    Raises:
        SettingsError: "rbf" would take hours.
    """
    started = time.perf_counter()
    counts = counts_of(labels, descriptors.shape[1], groups)
    svm_cost.check(kernel, counts)
    if svm_cost.seconds(kernel, counts, repeats) > _LONG_S:
        what = f"{counts.photos:,} photos of {counts.classes:,} classes"
        say(f"fitting the SVM on {what}: {svm_cost.summary(kernel, counts, repeats)}")
    searches: list[Search] = []
    with _quiet(), pool(svm_cost.linear_threads(counts)) as threads:
        folds = Folds(labels, groups, seed, class_weight, threads, repeats)
        if kernel != RBF:
            searches.append(search_linear(descriptors, labels, folds, counts, is_fine_tuned))
        # If the linear kernel is correct on all photos, RBF cannot be better.
        if kernel == RBF or (kernel == AUTO and not (svm_cost.why_no_rbf(counts) or searches[0].hits.all())):
            searches.append(search_rbf(descriptors, labels, folds, is_fine_tuned))
        if len(searches) == 2 and beats(searches[1], searches[0], folds):
            searches.reverse()
        pipeline = _fitted(searches[0], class_weight, seed, descriptors, labels)
    seconds = time.perf_counter() - started
    times = len(labels) if searches[0].solver == LEAST_SQUARES else counts.folds
    how = svm_cost.method(kernel, counts)
    return FittedSvm(
        pipeline, tuple(searches), times, class_weight, seed, len(labels), seconds, how, len(searches[0].hits)
    )


def fit_again(chosen: FittedSvm, descriptors: Floats, labels: Labels) -> FittedSvm:
    """Fit the chosen kernel, C and gamma on other descriptors [N, length] and labels [N]."""
    started = time.perf_counter()
    with _quiet():
        pipeline = _fitted(chosen.searches[0], chosen.class_weight, chosen.seed, descriptors, labels)
    seconds = chosen.seconds + time.perf_counter() - started
    return replace(chosen, pipeline=pipeline, photos=len(labels), seconds=seconds)


def counts_of(labels: Labels, length: int, groups: Rows | None = None) -> Counts:
    """Return the counts that svm_cost needs, for labels [N], groups [N] and descriptors of `length` numbers."""
    return Counts(len(labels), len(np.unique(labels)), length, count_folds(labels, groups))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of scikit-learn that the choice of C and folds already accounts for."""
    with warnings.catch_warnings():
        # The cross-validated accuracy shows whether a C that does not converge is good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Fewer photos than folds: count_folds() uses as few folds as possible.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        # With few photos per class, scikit-learn suspects that labels are measurements.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def _fitted(chosen: Search, class_weight: str | None, seed: int, descriptors: Floats, labels: Labels) -> Pipeline:
    estimator = estimator_of(chosen.kernel, chosen.c, chosen.gamma, class_weight, seed)
    pipeline = make_pipeline(Normalizer(), estimator)
    if chosen.solver != LEAST_SQUARES:
        return apart(lambda: pipeline.fit(descriptors, labels))
    unit = pipeline[0].fit_transform(descriptors)
    factored = apart(lambda: factor(unit, labels, np.asarray(compute_sample_weight(class_weight, labels))))
    coefficients, intercepts = factored.plane(chosen.c)
    # The attributes that scikit-learn's own fit sets, with these coefficients. Two classes have one plane.
    places = slice(1, 2) if len(coefficients) == 2 else slice(None)
    estimator.coef_ = np.ascontiguousarray(coefficients[places])
    estimator.intercept_ = intercepts[places]
    estimator.classes_ = np.arange(len(coefficients))
    estimator.n_features_in_ = unit.shape[1]
    estimator.n_iter_ = 1
    return pipeline
