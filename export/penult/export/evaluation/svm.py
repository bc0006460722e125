"""Fit an SVM on L2-normalised descriptors; cross-validation on training photos searches kernel, C and gamma.

With few labels the SVM is often better than the dense head (research/learning.md, part A). So both are always fitted
and reported. A fixed C = 1 cost 11 points there, so C is searched. On frozen descriptors the RBF kernel gains points
too (TrashNet, SqueezeNet 1.1: 83.1 % against 79.0 % in cross-validation). After fine-tuning the classes are well
separated, the kernels tie, and the linear one is faster to serve. StandardScaler did not help either kernel.
"""

import math
import pickle
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.class_weight import compute_sample_weight

from penult.bundle.scores import Floats, as_columns, pieces
from penult.console import progress, say
from penult.export.evaluation import svm_cost
from penult.export.evaluation.least_squares import factor
from penult.export.evaluation.svm_cost import AUTO, LINEAR, RBF, Counts
from penult.interrupts import apart, pool

GRID = tuple(float(f"{c:.2g}") for c in np.logspace(-2, 3, 11))
RBF_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
# Times scikit-learn's "scale": 1 / (numbers per descriptor x their variance).
RBF_GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0)
LIBLINEAR, LIBSVM, LEAST_SQUARES = "LIBLINEAR", "LIBSVM", "least squares"
_PATIENCE = 2
_TIE = 1e-6
_FOLDS = 5
_MAX_ITERATIONS = 20_000
# LIBLINEAR's default takes half the time of scikit-learn's 1e-4 and gave the same choices. The final fit uses 1e-4.
_SEARCH_TOLERANCE = 1e-2
# Longer fits are announced with their time.
_LONG_S = 20.0

Labels = NDArray[np.int64]
Rows = NDArray[np.intp]
Hits = NDArray[np.bool_]
# Fits on some rows and returns the classes of others.
_Predict = Callable[[Rows, Rows], Labels]


@dataclass(frozen=True)
class Search:
    """The cross-validation of one kernel.

    Attributes:
        c: The chosen C.
        gamma: The chosen gamma; 0 for the linear kernel.
        accuracy: Accuracy by (C, gamma). With balanced class weights it is the mean recall over classes.
        rows: The photos that were used.
        hits: For each of `rows`, whether the chosen SVM was correct when it was held out.
        solver: LIBLINEAR, LIBSVM or LEAST_SQUARES.
    """

    kernel: str
    c: float
    gamma: float
    accuracy: dict[tuple[float, float], float]
    rows: Rows
    hits: Hits
    solver: str = LIBLINEAR

    @property
    def best(self) -> float:
        """The accuracy of the chosen C and gamma."""
        return self.accuracy[self.c, self.gamma]

    def accuracy_by_c(self, gamma: float) -> dict[float, float]:
        """Return accuracy by C, at one gamma."""
        return {c: value for (c, at), value in self.accuracy.items() if at == gamma}

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the best choice, and accuracy by every C and gamma that was tried."""
        best = {"photos": len(self.rows), "c": self.c, "accuracy": self.best}
        if self.kernel == LINEAR:
            return best | {"accuracy_by_c": _by_text(self.accuracy_by_c(self.gamma))}
        gammas = sorted({gamma for _, gamma in self.accuracy})
        by_gamma = [{"gamma": gamma, "accuracy_by_c": _by_text(self.accuracy_by_c(gamma))} for gamma in gammas]
        return best | {"gamma": self.gamma, "by_gamma": by_gamma}


@dataclass(frozen=True)
class FittedSvm:
    """A pipeline fitted on raw descriptors, and the search of each kernel, the chosen one first."""

    pipeline: Pipeline
    searches: tuple[Search, ...]
    folds: int
    class_weight: str | None
    seed: int
    photos: int
    seconds: float
    how: str = ""

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
            "criterion": "balanced accuracy" if self.class_weight else "accuracy",
            "accuracy_by_c": _by_text(self.accuracy_by_c),
            "searches": {search.kernel: search.as_json() for search in self.searches},
            "seconds": round(self.seconds, 2),
        }


def _by_text(accuracy_by_c: dict[float, float]) -> dict[str, float]:
    return {f"{c:g}": accuracy for c, accuracy in accuracy_by_c.items()}


def fit(
    descriptors: Floats, labels: Labels, seed: int, kernel: str = AUTO, class_weight: str | None = None
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

    Raises:
        SettingsError: "rbf" would take hours.
    """
    started = time.perf_counter()
    counts = counts_of(labels, descriptors.shape[1])
    svm_cost.check(kernel, counts)
    if svm_cost.seconds(kernel, counts) > _LONG_S:
        what = f"{counts.photos:,} photos of {counts.classes:,} classes"
        say(f"fitting the SVM on {what}: {svm_cost.summary(kernel, counts)}")
    searches: list[Search] = []
    with _quiet(), pool(svm_cost.linear_threads(counts)) as threads:
        folds = _Folds(labels, seed, class_weight, threads)
        if kernel != RBF:
            searches.append(_search_linear(descriptors, labels, folds, counts))
        # If the linear kernel is correct on all photos, RBF cannot be better.
        if kernel == RBF or (kernel == AUTO and not (svm_cost.why_no_rbf(counts) or searches[0].hits.all())):
            searches.append(_search_rbf(descriptors, labels, folds))
        if len(searches) == 2 and _beats(searches[1], searches[0], folds):
            searches.reverse()
        pipeline = _fitted(searches[0], class_weight, seed, descriptors, labels)
    seconds = time.perf_counter() - started
    times = len(labels) if searches[0].solver == LEAST_SQUARES else counts.folds
    how = svm_cost.method(kernel, counts)
    return FittedSvm(pipeline, tuple(searches), times, class_weight, seed, len(labels), seconds, how)


def fit_again(chosen: FittedSvm, descriptors: Floats, labels: Labels) -> FittedSvm:
    """Fit the chosen kernel, C and gamma on other descriptors [N, length] and labels [N]."""
    started = time.perf_counter()
    with _quiet():
        pipeline = _fitted(chosen.searches[0], chosen.class_weight, chosen.seed, descriptors, labels)
    seconds = chosen.seconds + time.perf_counter() - started
    return replace(chosen, pipeline=pipeline, photos=len(labels), seconds=seconds)


def counts_of(labels: Labels, length: int) -> Counts:
    """Return the counts that svm_cost needs, for labels [N] and descriptors of `length` numbers."""
    return Counts(len(labels), len(np.unique(labels)), length, _count_folds(labels))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of scikit-learn that the choice of C and folds already accounts for."""
    with warnings.catch_warnings():
        # The cross-validated accuracy shows whether a C that does not converge is good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Fewer photos than folds: _count_folds() uses as few folds as possible.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        # With few photos per class, scikit-learn suspects that labels are measurements.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def _fitted(chosen: Search, class_weight: str | None, seed: int, descriptors: Floats, labels: Labels) -> Pipeline:
    estimator = _estimator(chosen.kernel, chosen.c, chosen.gamma, class_weight, seed)
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


class _Folds:
    """Stratified folds on threads: both solvers release Python's lock and use no random numbers."""

    def __init__(self, labels: Labels, seed: int, class_weight: str | None, threads: ThreadPoolExecutor) -> None:
        self.labels = labels
        self.seed = seed
        self.class_weight = class_weight
        self._threads = threads

    def weights(self, rows: Rows) -> NDArray[np.float64]:
        """Return the weight of each of `rows` in the accuracy; the mean is 1."""
        return np.asarray(compute_sample_weight(self.class_weight, self.labels[rows]))

    def of(self, rows: Rows) -> Callable[[_Predict], Hits]:
        """Return a function that returns which of `rows` are correct when they are held out."""
        labels = self.labels[rows]
        splitter = StratifiedKFold(_count_folds(labels), shuffle=True, random_state=self.seed)
        splits = list(splitter.split(np.zeros((len(rows), 1)), labels))

        def hits(predict: _Predict) -> Hits:
            named = np.empty_like(labels)
            found = self._threads.map(lambda split: predict(*split), splits)
            for (_, held_out), values in zip(splits, found, strict=True):
                named[held_out] = values
            return np.asarray(named == labels)

        return hits


def _search_linear(descriptors: Floats, labels: Labels, folds: _Folds, counts: Counts) -> Search:
    """Try rising C; the smallest C with the best accuracy is chosen.

    The search ends once accuracy stays below its best. The largest C take the most time and are rarely best.
    """
    share = svm_cost.linear_share(counts)
    candidates = progress([(c, 0.0) for c in GRID], "searching C of the linear SVM", len(GRID))
    if not share:
        rows, unit = np.arange(len(labels)), Normalizer().fit_transform(descriptors)
        weights = folds.weights(rows)
        factored = apart(lambda: factor(unit, labels, weights))
        found = _search_c(
            LINEAR, candidates, rows, weights, lambda c, _: apart(partial(factored.hits, c)), past_ties=True
        )
        return replace(found, solver=LEAST_SQUARES)
    rows = _sample(labels, folds.seed, share)
    unit, seen = Normalizer().fit_transform(descriptors[rows]), labels[rows]
    hits_of = folds.of(rows)

    def predict(c: float, train: Rows, held_out: Rows) -> Labels:
        estimator = _estimator(LINEAR, c, 0, folds.class_weight, folds.seed).set_params(tol=_SEARCH_TOLERANCE)
        return np.asarray(estimator.fit(unit[train], seen[train]).predict(unit[held_out]))

    return _search_c(
        LINEAR, candidates, rows, folds.weights(rows), lambda c, _: hits_of(partial(predict, c)), past_ties=True
    )


def _search_rbf(descriptors: Floats, labels: Labels, folds: _Folds) -> Search:
    """Try rising C for every gamma, on distances computed once; of ties the smallest C, then gamma, is chosen."""
    rows = _sample(labels, folds.seed, svm_cost.RBF_MAX_SEARCHED / len(labels))
    unit = Normalizer().fit_transform(descriptors[rows]).astype(np.float64)
    distances, seen = euclidean_distances(unit, squared=True), labels[rows]
    hits_of, weight = folds.of(rows), folds.class_weight
    scale = 1 / (unit.shape[1] * (unit.var() or 1))
    pairs = len(np.unique(labels)) ** 2 // 2  # each photo's answer has a number for each

    def try_c(kernel: NDArray[np.float64], c: float, gamma: float) -> Hits:
        def predict(train: Rows, held_out: Rows) -> Labels:
            estimator = SVC(C=c, kernel="precomputed", class_weight=weight, break_ties=True)
            estimator.fit(kernel[np.ix_(train, train)], seen[train])
            parts = pieces(len(held_out), max(len(train), pairs))
            return np.concatenate([estimator.predict(kernel[np.ix_(held_out[part], train)]) for part in parts])

        return hits_of(predict)

    searches = []
    for multiple in progress(RBF_GAMMAS, "searching C and gamma of the RBF SVM", len(RBF_GAMMAS)):
        gamma = float(f"{multiple * scale:.4g}")
        hits = partial(try_c, np.exp(-gamma * distances))
        # Once every photo is on the correct side, a larger C changes nothing.
        candidates = [(c, gamma) for c in RBF_GRID]
        searches.append(_search_c(RBF, candidates, rows, folds.weights(rows), hits, past_ties=False))
    best = max(searches, key=lambda search: (round(search.best, 6), -search.c, -search.gamma))
    tried = {key: value for search in searches for key, value in search.accuracy.items()}
    return Search(RBF, best.c, best.gamma, tried, rows, best.hits, LIBSVM)


def _search_c(
    kernel: str,
    candidates: Iterable[tuple[float, float]],
    rows: Rows,
    weights: NDArray[np.float64],
    hits_of: Callable[[float, float], Hits],
    past_ties: bool,
) -> Search:
    """Try (C, gamma) in order until all photos are correct, or until the last few values were not better.

    If `past_ties` is True, only worse values end the search, not equally good ones.
    """
    accuracy: dict[tuple[float, float], float] = {}
    best, best_hits, since = (0.0, 0.0), np.zeros(len(rows), dtype=bool), 0
    for candidate in candidates:
        hits = hits_of(*candidate)
        accuracy[candidate] = float(np.average(hits, weights=weights))
        if not any(best) or accuracy[candidate] > accuracy[best] + _TIE:
            best, best_hits, since = candidate, hits, 0
            if hits.all():
                break
            continue
        since += 1
        if since >= _PATIENCE and (accuracy[candidate] < accuracy[best] - _TIE or not past_ties):
            break
    return Search(kernel, *best, accuracy, rows, best_hits)


def _beats(rbf: Search, linear: Search, folds: _Folds) -> bool:
    """Return True if RBF is better by two standard errors on the photos that only one kernel gets right.

    The test is McNemar's (1947); the margin is two, because RBF is the best of three times as many tries. Otherwise the
    linear SVM is chosen: it has a few hundred numbers per class, while RBF keeps most training descriptors, and the
    service scores it in a hundredth of the time.
    """
    rows, ours, theirs = np.intersect1d(rbf.rows, linear.rows, assume_unique=True, return_indices=True)
    lead = folds.weights(rows) * (rbf.hits[ours].astype(float) - linear.hits[theirs])
    return bool(lead.sum() > 2 * math.sqrt((lead**2).sum()))


def _estimator(kernel: str, c: float, gamma: float, class_weight: str | None, seed: int) -> LinearSVC | SVC:
    if kernel == RBF:
        # break_ties: the class is the one with the largest decision value, as in the service.
        return SVC(C=c, gamma=gamma, class_weight=class_weight, decision_function_shape="ovr", break_ties=True)
    # The primal solver is faster at large C and draws no random numbers, which threads would share.
    return LinearSVC(C=c, dual=False, class_weight=class_weight, max_iter=_MAX_ITERATIONS, random_state=seed)


def _count_folds(labels: Labels) -> int:
    return max(2, min(_FOLDS, *Counter(labels.tolist()).values()))


def _sample(labels: Labels, seed: int, share: float) -> Rows:
    """Return a share of the rows of every class, at least as many as there are folds."""
    if share >= 1:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    groups: Sequence[Rows] = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([group[: max(_FOLDS, round(share * len(group)))] for group in groups]))
