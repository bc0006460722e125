"""Search kernel, C and gamma of an SVM by cross-validation in which groups of photos are never parted."""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.preprocessing import Normalizer
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.class_weight import compute_sample_weight

from penult.bundle.scores import Floats, pieces
from penult.console import progress
from penult.export.evaluation import svm_cost
from penult.export.evaluation.folds import MAX_FOLDS, Labels, Rows, Split, hits_by_repeat, repeated
from penult.export.evaluation.least_squares import factor
from penult.export.evaluation.svm_cost import LINEAR, RBF, Counts
from penult.interrupts import apart

GRID = tuple(float(f"{c:.2g}") for c in np.logspace(-2, 3, 11))
RBF_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
# Times scikit-learn's "scale": 1 / (numbers per descriptor x their variance).
RBF_GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0)
# After fine-tuning, the photos that the network learnt from are apart by class. Then nearly every C is right on nearly
# all of them. The smallest of equals is far too small for new photos, and cost 3 points on average (bench/RESULTS.md).
USUAL_C = 1.0
LIBLINEAR, LIBSVM, LEAST_SQUARES = "LIBLINEAR", "LIBSVM", "least squares"
_PATIENCE = 2
_TIE = 1e-6
_MAX_ITERATIONS = 20_000
# LIBLINEAR's default takes half the time of scikit-learn's 1e-4 and gave the same choices. The final fit uses 1e-4.
_SEARCH_TOLERANCE = 1e-2

# Correct answers by repeat and photo, [repeats, N].
Hits = NDArray[np.bool_]
# C and gamma.
Candidate = tuple[float, float]
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
        hits: For each repeat and each of `rows`, whether the chosen SVM was correct when it was held out.
        solver: LIBLINEAR, LIBSVM or LEAST_SQUARES.
        tried: As `hits`, of every (C, gamma).
    """

    kernel: str
    c: float
    gamma: float
    accuracy: dict[Candidate, float]
    rows: Rows
    hits: Hits
    solver: str = LIBLINEAR
    tried: dict[Candidate, Hits] = field(default_factory=dict, repr=False)

    @property
    def best(self) -> float:
        """The accuracy of the chosen C and gamma."""
        return self.accuracy[self.c, self.gamma]

    def accuracy_by_c(self, gamma: float) -> dict[float, float]:
        """Return accuracy by C, at one gamma."""
        return dict(sorted((c, value) for (c, at), value in self.accuracy.items() if at == gamma))

    def unbiased_hits(self, repeats: Sequence[Sequence[Split]]) -> Hits:
        """Return `hits` with C and gamma of each fold chosen by the photos of the other folds.

        The best of many tries is partly the luckiest one. A fold that has no say in the choice does not show this luck
        (as in Tibshirani and Tibshirani 2009). No further SVM is fitted.

        Args:
            repeats: The splits by which all `tried` were answered.
        """
        found = self.hits.copy()
        for repeat, splits in enumerate(repeats):
            for _, held_out in splits:
                others = np.ones(found.shape[1], dtype=bool)
                others[held_out] = False
                chosen = max(self.tried, key=lambda key: self.tried[key][:, others].mean())
                found[repeat, held_out] = self.tried[chosen][repeat, held_out]
        return found

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the best choice, and accuracy by every C and gamma that was tried."""
        best = {"photos": len(self.rows), "c": self.c, "accuracy": self.best}
        if self.kernel == LINEAR:
            return best | {"accuracy_by_c": by_text(self.accuracy_by_c(self.gamma))}
        gammas = sorted({gamma for _, gamma in self.accuracy})
        by_gamma = [{"gamma": gamma, "accuracy_by_c": by_text(self.accuracy_by_c(gamma))} for gamma in gammas]
        return best | {"gamma": self.gamma, "by_gamma": by_gamma}


def by_text(accuracy_by_c: dict[float, float]) -> dict[str, float]:
    """Return accuracy by C with C as text, as in metrics.json."""
    return {f"{c:g}": accuracy for c, accuracy in accuracy_by_c.items()}


class Folds:
    """Stratified folds on threads: both solvers release Python's lock and use no random numbers."""

    def __init__(
        self,
        labels: Labels,
        groups: Rows | None,
        seed: int,
        class_weight: str | None,
        threads: ThreadPoolExecutor,
        repeats: int = 1,
    ) -> None:
        """Divide photos with these labels [N] and groups [N] `repeats` times."""
        self.labels = labels
        self.groups = np.arange(len(labels)) if groups is None else groups
        self.seed = seed
        self.class_weight = class_weight
        self.repeats = repeats
        self._threads = threads

    def weights(self, rows: Rows) -> NDArray[np.float64]:
        """Return the weight of each of `rows` in the accuracy; the mean is 1."""
        return np.asarray(compute_sample_weight(self.class_weight, self.labels[rows]))

    def of(self, rows: Rows) -> Callable[[_Predict], Hits]:
        """Return a function that returns which of `rows` are correct when they are held out, [repeats, n]."""
        labels = self.labels[rows]
        repeats = repeated(labels, self.groups[rows], self.seed, self.repeats)

        def hits(predict: _Predict) -> Hits:
            splits = [split for repeat in repeats for split in repeat]
            return hits_by_repeat(labels, repeats, self._threads.map(lambda split: predict(*split), splits))

        return hits


def search_linear(
    descriptors: Floats, labels: Labels, folds: Folds, counts: Counts, is_fine_tuned: bool = False
) -> Search:
    """Try rising C; the smallest C with the best accuracy is chosen.

    The search ends once accuracy stays below its best. The largest C take the most time and are rarely best. On the
    descriptors of a fine-tuned network, the C nearest to USUAL_C is chosen unless another one is clearly better.
    """
    share = svm_cost.linear_share(counts)
    is_fine_tuned = is_fine_tuned and share > 0
    order = sorted(GRID, key=lambda c: abs(math.log(c / USUAL_C))) if is_fine_tuned else GRID
    candidates = progress([(c, 0.0) for c in order], "searching C of the linear SVM", len(GRID))
    if not share:
        rows, unit = np.arange(len(labels)), Normalizer().fit_transform(descriptors)
        weights = folds.weights(rows)
        factored = apart(lambda: factor(unit, labels, weights))
        found = _search_c(
            LINEAR, candidates, rows, weights, lambda c, _: apart(partial(factored.hits, c))[None], past_ties=True
        )
        return replace(found, solver=LEAST_SQUARES)
    rows = _sample(labels, folds.seed, share)
    unit, seen = Normalizer().fit_transform(descriptors[rows]), labels[rows]
    hits_of = folds.of(rows)

    def predict(c: float, train: Rows, held_out: Rows) -> Labels:
        estimator = estimator_of(LINEAR, c, 0, folds.class_weight, folds.seed).set_params(tol=_SEARCH_TOLERANCE)
        return np.asarray(estimator.fit(unit[train], seen[train]).predict(unit[held_out]))

    search = _search_usual if is_fine_tuned else partial(_search_c, past_ties=True)
    return search(LINEAR, candidates, rows, folds.weights(rows), lambda c, _: hits_of(partial(predict, c)))


def search_rbf(descriptors: Floats, labels: Labels, folds: Folds, is_fine_tuned: bool = False) -> Search:
    """Try rising C for every gamma, on distances computed once; of ties the smallest C, then gamma, is chosen.

    On the descriptors of a fine-tuned network, USUAL_C and scikit-learn's gamma are chosen unless others are clearly
    better.
    """
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

    if is_fine_tuned:
        grid = [(c, float(f"{multiple * scale:.4g}")) for c in RBF_GRID for multiple in RBF_GAMMAS]
        grid.sort(key=lambda pair: abs(math.log(pair[0] / USUAL_C)) + abs(math.log(pair[1] / scale)))
        shown = progress(grid, "searching C and gamma of the RBF SVM", len(grid))
        weights = folds.weights(rows)
        found = _search_usual(RBF, shown, rows, weights, lambda c, g: try_c(np.exp(-g * distances), c, g))
        return replace(found, solver=LIBSVM)
    searches = []
    for multiple in progress(RBF_GAMMAS, "searching C and gamma of the RBF SVM", len(RBF_GAMMAS)):
        gamma = float(f"{multiple * scale:.4g}")
        hits = partial(try_c, np.exp(-gamma * distances))
        # Once every photo is on the correct side, a larger C changes nothing.
        candidates = [(c, gamma) for c in RBF_GRID]
        searches.append(_search_c(RBF, candidates, rows, folds.weights(rows), hits, past_ties=False))
    best = max(searches, key=lambda search: (round(search.best, 6), -search.c, -search.gamma))
    tried = {key: value for search in searches for key, value in search.accuracy.items()}
    every = {key: value for search in searches for key, value in search.tried.items()}
    return Search(RBF, best.c, best.gamma, tried, rows, best.hits, LIBSVM, every)


def _search_c(
    kernel: str,
    candidates: Iterable[Candidate],
    rows: Rows,
    weights: NDArray[np.float64],
    hits_of: Callable[[float, float], Hits],
    past_ties: bool,
) -> Search:
    """Try (C, gamma) in order until all photos are correct, or until the last few values were not better.

    If `past_ties` is True, only worse values end the search, not equally good ones.
    """
    accuracy: dict[Candidate, float] = {}
    tried: dict[Candidate, Hits] = {}
    best, since = (0.0, 0.0), 0
    for candidate in candidates:
        hits = tried[candidate] = hits_of(*candidate)
        accuracy[candidate] = float(np.average(hits.mean(axis=0), weights=weights))
        if not any(best) or accuracy[candidate] > accuracy[best] + _TIE:
            best, since = candidate, 0
            if hits.all():
                break
            continue
        since += 1
        if since >= _PATIENCE and (accuracy[candidate] < accuracy[best] - _TIE or not past_ties):
            break
    return Search(kernel, *best, accuracy, rows, tried[best], tried=tried)


def _search_usual(
    kernel: str,
    candidates: Iterable[Candidate],
    rows: Rows,
    weights: NDArray[np.float64],
    hits_of: Callable[[float, float], Hits],
) -> Search:
    """Try (C, gamma) in order, until all photos are correct; a later one must be clearly better."""
    accuracy: dict[Candidate, float] = {}
    tried: dict[Candidate, Hits] = {}
    best: Candidate | None = None
    for candidate in candidates:
        hits = tried[candidate] = hits_of(*candidate)
        accuracy[candidate] = float(np.average(hits.mean(axis=0), weights=weights))
        if best is None or is_clear(weights * (hits.mean(axis=0) - tried[best].mean(axis=0))):
            best = candidate
        if hits.all():
            break
    assert best is not None  # there are candidates
    return Search(kernel, *best, accuracy, rows, tried[best], tried=tried)


def is_clear(lead: NDArray[np.float64]) -> bool:
    """Return True if the sum of leads [N] of one scorer over another is above two standard errors (McNemar 1947)."""
    return bool(lead.sum() > 2 * math.sqrt((lead**2).sum()))


def beats(rbf: Search, linear: Search, folds: Folds) -> bool:
    """Return True if RBF is better by two standard errors on the photos that only one kernel gets right.

    The test is McNemar's (1947); the margin is two, because RBF is the best of three times as many tries. Otherwise the
    linear SVM is chosen: it has a few hundred numbers per class, while RBF keeps most training descriptors, and the
    service scores it in a hundredth of the time.
    """
    rows, ours, theirs = np.intersect1d(rbf.rows, linear.rows, assume_unique=True, return_indices=True)
    return is_clear(folds.weights(rows) * (rbf.hits[:, ours].mean(axis=0) - linear.hits[:, theirs].mean(axis=0)))


def estimator_of(kernel: str, c: float, gamma: float, class_weight: str | None, seed: int) -> LinearSVC | SVC:
    """Return the classifier that is fitted on descriptors of unit length."""
    if kernel == RBF:
        # break_ties: the class is the one with the largest decision value, as in the service.
        return SVC(C=c, gamma=gamma, class_weight=class_weight, decision_function_shape="ovr", break_ties=True)
    # The primal solver is faster at large C and draws no random numbers, which threads would share.
    return LinearSVC(C=c, dual=False, class_weight=class_weight, max_iter=_MAX_ITERATIONS, random_state=seed)


def _sample(labels: Labels, seed: int, share: float) -> Rows:
    """Return a share of the rows of every class, at least as many as there are folds."""
    if share >= 1:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    groups: Sequence[Rows] = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([group[: max(MAX_FOLDS, round(share * len(group)))] for group in groups]))
