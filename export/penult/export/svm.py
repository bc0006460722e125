"""The SVM on descriptors: L2-normalised, linear or RBF, C (and gamma) searched by cross-validation on training photos.

The dense head is rarely the best use of few labels (research/learning.md, part A); both are always fitted and reported.
C must be searched: a fixed C = 1 cost 11 points there. On frozen descriptors the RBF kernel is worth points too
(TrashNet, SqueezeNet 1.1: 83.1 % against 79.0 % in cross-validation); after fine-tuning the classes lie apart, the
kernels tie, and the linear one serves quicker. StandardScaler after the normaliser did not help either kernel.
"""

import math
import os
import pickle
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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

from penult.bundle.scores import Floats, as_columns
from penult.export.progress import bar

LINEAR, RBF, AUTO = "linear", "rbf", "auto"
GRID = tuple(float(f"{c:.2g}") for c in np.logspace(-2, 3, 11))
RBF_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
# Times scikit-learn's "scale": 1 / (numbers per descriptor x their variance).
RBF_GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0)
# The RBF search holds the distances of all pairs (8 bytes each), and its time grows with their number.
RBF_MOST_SEARCHED = 4000
_PATIENCE = 2
_TIE = 1e-6
_FOLDS = 5
_MOST_ITERATIONS = 20_000
# LIBLINEAR's own default: half the time of scikit-learn's 1e-4, with the same choices. The SVM is fitted to the latter.
_SEARCH_TOLERANCE = 1e-2

Labels = NDArray[np.int64]
Rows = NDArray[np.intp]
Hits = NDArray[np.bool_]
# Fits on some rows and names the classes of others.
_Predict = Callable[[Rows, Rows], Labels]


@dataclass(frozen=True)
class Search:
    """What cross-validation found for one kernel: `accuracy` by (C, gamma), gamma 0 for the linear kernel.

    `hits` tells for each photo of `rows` whether the best choice named it right when it was held out. Where classes
    are balanced, accuracy is the mean of their recalls: plain accuracy would choose the SVM that names the common ones.
    """

    kernel: str
    c: float
    gamma: float
    accuracy: dict[tuple[float, float], float]
    rows: Rows
    hits: Hits

    @property
    def best(self) -> float:
        """The accuracy of the chosen C and gamma."""
        return self.accuracy[self.c, self.gamma]

    def accuracy_by_c(self, gamma: float) -> dict[float, float]:
        """Return accuracy by C, at one gamma."""
        return {c: value for (c, at), value in self.accuracy.items() if at == gamma}

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the best, and accuracy by every C (and gamma) that was tried."""
        best = {"photos": len(self.rows), "c": self.c, "accuracy": self.best}
        if self.kernel == LINEAR:
            return best | {"accuracy_by_c": _by_text(self.accuracy_by_c(self.gamma))}
        gammas = sorted({gamma for _, gamma in self.accuracy})
        by_gamma = [{"gamma": gamma, "accuracy_by_c": _by_text(self.accuracy_by_c(gamma))} for gamma in gammas]
        return best | {"gamma": self.gamma, "by_gamma": by_gamma}


@dataclass(frozen=True)
class FittedSvm:
    """A pipeline fitted on raw descriptors of `photos` photos, and the search of each kernel, the chosen one first."""

    pipeline: Pipeline
    searches: tuple[Search, ...]
    folds: int
    class_weight: str | None
    seed: int
    photos: int
    seconds: float

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
        """Return decision values, float32 [N, classes]."""
        return as_columns(self.pipeline.decision_function(descriptors))

    def to_bytes(self) -> bytes:
        """Return the bytes of svm.pkl."""
        return pickle.dumps(self.pipeline, protocol=5)

    def as_json(self) -> dict[str, Any]:
        """Return what metrics.json tells of the choice."""
        return {
            "kernel": self.kernel,
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
    """Fit on descriptors [N, length] and labels [N], by Normalizer → LinearSVC or Normalizer → SVC.

    `kernel` "auto" tries both and takes the RBF one where it is clearly better in cross-validation; above
    RBF_MOST_SEARCHED photos it is linear. `class_weight` is None or "balanced", as scikit-learn means it.
    """
    started = time.perf_counter()
    kernels = [LINEAR, RBF] if kernel == AUTO else [kernel]
    if kernel == AUTO and len(labels) > RBF_MOST_SEARCHED:
        kernels = [LINEAR]
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        # A C that does not converge shows in its cross-validated accuracy, which decides.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search = {LINEAR: _search_linear, RBF: _search_rbf}
        folds = _Folds(labels, seed, class_weight, threads)
        searches: list[Search] = []
        for name in kernels:
            if not (searches and searches[0].hits.all()):  # nothing can be better than all of them
                searches.append(search[name](descriptors, labels, folds))
        if len(searches) == 2 and _beats(searches[1], searches[0], folds):
            searches.reverse()
        chosen = searches[0]
        pipeline = _fitted(chosen, class_weight, seed, descriptors, labels)
    seconds = time.perf_counter() - started
    return FittedSvm(pipeline, tuple(searches), _count_folds(labels), class_weight, seed, len(labels), seconds)


def fit_again(chosen: FittedSvm, descriptors: Floats, labels: Labels) -> FittedSvm:
    """Fit what was chosen, kernel, C and gamma, on other descriptors [N, length] and labels [N]."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline = _fitted(chosen.searches[0], chosen.class_weight, chosen.seed, descriptors, labels)
    seconds = chosen.seconds + time.perf_counter() - started
    return replace(chosen, pipeline=pipeline, photos=len(labels), seconds=seconds)


def _fitted(chosen: Search, class_weight: str | None, seed: int, descriptors: Floats, labels: Labels) -> Pipeline:
    pipeline = make_pipeline(Normalizer(), _estimator(chosen.kernel, chosen.c, chosen.gamma, class_weight, seed))
    return pipeline.fit(descriptors, labels)


class _Folds:
    """Stratified folds, worked on by threads: both solvers leave Python's lock and use no random numbers."""

    def __init__(self, labels: Labels, seed: int, class_weight: str | None, threads: ThreadPoolExecutor) -> None:
        self.labels, self.seed, self.class_weight, self._threads = labels, seed, class_weight, threads

    def weights(self, rows: Rows) -> NDArray[np.float64]:
        """Return what a hit on each of `rows` counts; the mean is 1."""
        return np.asarray(compute_sample_weight(self.class_weight, self.labels[rows]))

    def of(self, rows: Rows) -> Callable[[_Predict], Hits]:
        """Return a function that tells which of `rows` are named right when held out."""
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


def _search_linear(descriptors: Floats, labels: Labels, folds: _Folds) -> Search:
    """Try C upwards; the smallest C among the best wins.

    C rises until accuracy has stayed below its best for a while: the largest values cost the most and rarely win.
    """
    rows = np.arange(len(labels))
    unit = Normalizer().fit_transform(descriptors)
    hits_of = folds.of(rows)

    def predict(c: float, train: Rows, held_out: Rows) -> Labels:
        estimator = _estimator(LINEAR, c, 0, folds.class_weight, folds.seed).set_params(tol=_SEARCH_TOLERANCE)
        return np.asarray(estimator.fit(unit[train], labels[train]).predict(unit[held_out]))

    candidates = bar([(c, 0.0) for c in GRID], "searching C of the linear SVM", len(GRID))
    return _climb(
        LINEAR, candidates, rows, folds.weights(rows), lambda c, _: hits_of(partial(predict, c)), past_ties=True
    )


def _search_rbf(descriptors: Floats, labels: Labels, folds: _Folds) -> Search:
    """Try every gamma with C upwards, on distances that are computed once; ties go to the smallest C, then gamma."""
    rows = _sample(labels, folds.seed)
    unit = Normalizer().fit_transform(descriptors[rows]).astype(np.float64)
    distances, seen = euclidean_distances(unit, squared=True), labels[rows]
    hits_of, weight = folds.of(rows), folds.class_weight
    scale = 1 / (unit.shape[1] * (unit.var() or 1))

    def try_c(kernel: NDArray[np.float64], c: float, gamma: float) -> Hits:
        def predict(train: Rows, held_out: Rows) -> Labels:
            estimator = SVC(C=c, kernel="precomputed", class_weight=weight, break_ties=True)
            estimator.fit(kernel[np.ix_(train, train)], seen[train])
            return np.asarray(estimator.predict(kernel[np.ix_(held_out, train)]))

        return hits_of(predict)

    searches = []
    for multiple in bar(RBF_GAMMAS, "searching C and gamma of the RBF SVM", len(RBF_GAMMAS)):
        gamma = float(f"{multiple * scale:.4g}")
        hits = partial(try_c, np.exp(-gamma * distances))
        # Once every photo is on its right side, a larger C changes nothing any more.
        candidates = [(c, gamma) for c in RBF_GRID]
        searches.append(_climb(RBF, candidates, rows, folds.weights(rows), hits, past_ties=False))
    best = max(searches, key=lambda search: (round(search.best, 6), -search.c, -search.gamma))
    tried = {key: value for search in searches for key, value in search.accuracy.items()}
    return Search(RBF, best.c, best.gamma, tried, rows, best.hits)


def _climb(
    kernel: str,
    candidates: Iterable[tuple[float, float]],
    rows: Rows,
    weights: NDArray[np.float64],
    hits_of: Callable[[float, float], Hits],
    past_ties: bool,
) -> Search:
    """Try (C, gamma) in order, until all are right or the best lies a few values back.

    `past_ties`: an equally good value is no reason to stop, only a worse one.
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
    """Tell whether RBF was better by more than two standard errors, on the photos that only one of them named right.

    Within that margin (McNemar 1947; two, as RBF is the best of three times as many tries) the linear SVM is taken: it
    is a few hundred numbers per class, where RBF keeps most of the training descriptors, and the service scores it
    without scikit-learn in a hundredth of the time.
    """
    lead = folds.weights(rbf.rows) * (rbf.hits.astype(float) - linear.hits[rbf.rows])
    return bool(lead.sum() > 2 * math.sqrt((lead**2).sum()))


def _estimator(kernel: str, c: float, gamma: float, class_weight: str | None, seed: int) -> LinearSVC | SVC:
    if kernel == RBF:
        # break_ties: the class is the one of the largest decision value, as the service reads it.
        return SVC(C=c, gamma=gamma, class_weight=class_weight, decision_function_shape="ovr", break_ties=True)
    # The primal solver: at large C it is the quicker one, and it draws no random numbers (threads share those).
    return LinearSVC(C=c, dual=False, class_weight=class_weight, max_iter=_MOST_ITERATIONS, random_state=seed)


def _count_folds(labels: Labels) -> int:
    return max(2, min(_FOLDS, *Counter(labels.tolist()).values()))


def _sample(labels: Labels, seed: int) -> Rows:
    """Return all rows, or of very many an even share of every class, at least as many as there are folds."""
    share = RBF_MOST_SEARCHED / len(labels)
    if share >= 1:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    groups: Sequence[Rows] = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([group[: max(_FOLDS, round(share * len(group)))] for group in groups]))
