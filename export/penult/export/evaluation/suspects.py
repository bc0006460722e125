"""Rank photos by how improbable their labels are, by classifiers that have not seen them.

The classifier is a least-squares SVM with an RBF kernel (Suykens and Vandewalle 1999) on frozen descriptors. Leaving
photos out has a closed form there, so each photo is scored by the fit to all others: the limit of many folds. Identical
photos and groups are left out together. Above MAX_LANDMARKS photos the kernel is approximated (Nyström method, Williams
and Seeger 2001). Kernel width and ridge were chosen on training photos with flipped labels (bench/suspects.py).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from penult.bundle.scores import Floats
from penult.console import progress
from penult.export.evaluation.outputs import unit_rows

Rows = NDArray[np.intp]
Exact = NDArray[np.float64]

MAX_LANDMARKS = 2048
# The kernel is exp(-2 d² / median d²), and the ridge is added to its diagonal.
_WIDTH, _RIDGE, _JITTER = 2.0, 0.3, 1e-6
_BLOCK_ROWS = 2048
# Temperature and biases are fitted on at most so many photos, and biases are pulled towards 0 a little.
_MAX_CALIBRATED, _BIAS_PENALTY = 20_000, 1e-3
# Photos whose label has less than this probability are listed.
LISTED_BELOW = 0.6


@dataclass(frozen=True)
class Ranking:
    """What each photo's label looks like to the classifier that has not seen the photo.

    Attributes:
        probabilities: float32 [N, classes].
        labels: The labels given, int64 [N].
        suggested: The most probable other class, int64 [N].
        scores: 1 less the probability of the label given, float32 [N].
        order: All photos, most suspect first, int64 [N].
    """

    probabilities: Floats
    labels: NDArray[np.int64]
    suggested: NDArray[np.int64]
    scores: Floats
    order: Rows

    @property
    def listed(self) -> Rows:
        """The photos to list, most suspect first."""
        return self.order[self.scores[self.order] > 1 - LISTED_BELOW]

    @property
    def contradicted(self) -> int:
        """How many photos have a label that is not the most probable class."""
        rows = np.arange(len(self.labels))
        return int((self.probabilities[rows, self.suggested] > self.probabilities[rows, self.labels]).sum())


def rank(probabilities: Floats, labels: NDArray[np.int64]) -> Ranking:
    """Rank photos by their probabilities [N, classes]; photos with equal scores stay in order."""
    rows = np.arange(len(labels))
    scores = 1 - probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -1
    return Ranking(probabilities, labels, others.argmax(axis=1), scores, np.argsort(-scores, kind="stable"))


def prepared(descriptors: Floats) -> Floats:
    """Return the signed square roots of descriptors [N, length], scaled to length 1."""
    roots = np.sign(descriptors) * np.sqrt(np.abs(descriptors))
    return unit_rows(roots).astype(np.float32)


def leave_out_probabilities(
    inputs: Floats, labels: NDArray[np.int64], classes: int, units: Sequence[str], seed: int = 0
) -> Floats:
    """Return class probabilities float32 [N, classes] of each photo by a classifier that has not seen it.

    Args:
        inputs: What prepared() returns, [N, length].
        labels: The labels given, [N].
        classes: How many classes there are.
        units: What names each photo together with those that are left out with it, [N].
        seed: Chooses the landmarks if there are many photos.
    """
    fit = _Fit(inputs, labels, classes, seed)
    scores = np.empty((len(labels), classes), np.float32)
    blocks = list(_blocks(units))
    for rows, bounds in progress(blocks, "comparing labels", len(blocks)):
        scores[rows] = fit.left_out(rows, bounds)
    return _calibrated(scores, labels)


def nearest(
    inputs: Floats, rows: Rows, wanted: NDArray[np.int64], labels: NDArray[np.int64], units: Sequence[str]
) -> Rows:
    """Return the nearest photo of class `wanted` for each of `rows`, outside its unit; -1 if there is none.

    Args:
        inputs: What prepared() returns, [N, length].
        rows: The photos, [n].
        wanted: A class for each of them, [n].
        labels: [N].
        units: As in leave_out_probabilities().
    """
    number = {name: place for place, name in enumerate(dict.fromkeys(units))}
    unit = np.array([number[name] for name in units])
    found = np.full(len(rows), -1, np.intp)
    for label in np.unique(wanted):
        of_class = np.flatnonzero(labels == label)
        places = np.flatnonzero(wanted == label)
        for some in np.array_split(places, -(-len(places) // 256)):
            likeness = inputs[rows[some]] @ inputs[of_class].T
            likeness[unit[rows[some]][:, None] == unit[of_class][None]] = -np.inf
            if of_class.size:
                best = likeness.argmax(axis=1)
                found[some] = np.where(np.isfinite(likeness.max(axis=1)), of_class[best], -1)
    return found


class _Fit:
    """The classifier of all photos, and the scores of photos by the fit without them."""

    def __init__(self, inputs: Floats, labels: NDArray[np.int64], classes: int, seed: int) -> None:
        """Fit to inputs [N, length] and labels [N]."""
        self._inputs, self._labels, self._classes = inputs, labels, classes
        random = np.random.default_rng(seed)
        chosen = np.sort(random.permutation(len(inputs))[:MAX_LANDMARKS])
        self._landmarks = inputs[chosen].astype(np.float64)
        distances = _squared_distances(self._landmarks[:1000], self._landmarks)
        self._width = _WIDTH / max(float(np.median(distances)), 1e-12)
        among = self._kernel(self._landmarks) + _JITTER * np.eye(len(chosen))
        self._root = np.linalg.cholesky(among)
        self._gram, self._sums = np.zeros_like(among), np.zeros((len(chosen), classes))
        for at in range(0, len(inputs), _BLOCK_ROWS):
            rows = np.arange(at, min(at + _BLOCK_ROWS, len(inputs)))
            features = self._features(rows)
            self._gram += features.T @ features
            self._sums += features.T @ self._targets(rows)
        self._factor = cho_factor(self._gram + _RIDGE * np.eye(len(chosen)), lower=True)
        self._weights: Exact = cho_solve(self._factor, self._sums)

    def left_out(self, rows: Rows, bounds: Sequence[int]) -> Exact:
        """Return scores [n, classes] of photos; those between two of `bounds` are left out together."""
        features, targets = self._features(rows), self._targets(rows)
        residuals = targets - features @ self._weights
        if len(rows) > len(self._landmarks) and len(bounds) == 2:  # one unit: fitting again costs less
            rest = self._gram - features.T @ features + _RIDGE * np.eye(len(self._gram))
            again: Exact = features @ np.linalg.solve(rest, self._sums - features.T @ targets)
            return again
        whitened = solve_triangular(self._factor[0], features.T, lower=True)
        leverage = (whitened**2).sum(axis=0)
        left = residuals / (1 - leverage)[:, None]
        for first, end in pairwise(bounds):
            if end - first > 1:
                part = whitened[:, first:end]
                left[first:end] = np.linalg.solve(np.eye(end - first) - part.T @ part, residuals[first:end])
        scores: Exact = targets - left
        return scores

    def _targets(self, rows: Rows) -> Exact:
        targets = np.full((len(rows), self._classes), -1.0)
        targets[np.arange(len(rows)), self._labels[rows]] = 1
        return targets

    def _kernel(self, inputs: NDArray[np.floating]) -> Exact:
        kernel: Exact = np.exp(-self._width * _squared_distances(inputs.astype(np.float64), self._landmarks))
        return kernel

    def _features(self, rows: Rows) -> Exact:
        """Return features [n, landmarks] whose products approximate the kernel."""
        features: Exact = solve_triangular(self._root, self._kernel(self._inputs[rows]).T, lower=True).T
        return features


def _squared_distances(left: Exact, right: Exact) -> Exact:
    """Return squared distances [n, m] of rows of length 1."""
    distances: Exact = np.maximum(2 - 2 * (left @ right.T), 0)
    return distances


def _blocks(units: Sequence[str]) -> Iterator[tuple[Rows, list[int]]]:
    """Yield rows in blocks of about _BLOCK_ROWS that part no unit, with the bounds of the units in each block."""
    members: dict[str, list[int]] = defaultdict(list)
    for row, unit in enumerate(units):
        members[unit].append(row)
    waiting: list[list[int]] = []
    size = 0
    for found in sorted(members.values(), key=len):
        if waiting and size + len(found) > _BLOCK_ROWS:
            yield _block(waiting)
            waiting, size = [], 0
        waiting.append(found)
        size += len(found)
    if waiting:
        yield _block(waiting)


def _block(units: Sequence[Sequence[int]]) -> tuple[Rows, list[int]]:
    return np.array(list(chain.from_iterable(units)), dtype=np.intp), np.cumsum([0, *map(len, units)]).tolist()


def _calibrated(scores: Floats, labels: NDArray[np.int64]) -> Floats:
    """Turn scores into probabilities: one factor and a bias per class with the lowest log loss (Guo et al. 2017).

    The biases make up for classes with few photos, whose scores are low.
    """
    step = -(-len(labels) // _MAX_CALIBRATED)
    some, given = scores[::step].astype(np.float64), labels[::step]
    rows = np.arange(len(given))

    def loss(values: Exact) -> tuple[float, Exact]:
        factor = np.exp(values[0])
        logs = _log_softmax(some * factor + values[1:])
        excess = np.exp(logs)
        excess[rows, given] -= 1
        excess /= len(given)
        penalty = _BIAS_PENALTY * (values[1:] ** 2).sum()
        slopes = excess.sum(axis=0) + 2 * _BIAS_PENALTY * values[1:]
        return float(penalty - logs[rows, given].mean()), np.r_[(excess * some).sum() * factor, slopes]

    start = np.r_[1.0, np.zeros(scores.shape[1])]
    bounds = [(-2.0, 5.0), *[(None, None)] * scores.shape[1]]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x.astype(np.float32)
    probabilities: Floats = np.exp(_log_softmax(scores * np.exp(found[0]) + found[1:])).astype(np.float32)
    return probabilities


def _log_softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    top = scores - scores.max(axis=1, keepdims=True)
    logs: NDArray[np.floating] = top - np.log(np.exp(top).sum(axis=1, keepdims=True))
    return logs
