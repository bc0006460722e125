"""Fit the classifier again after each answer, and score the whole pool with it.

The classifier is a least-squares SVM with an RBF kernel (Suykens and Vandewalle 1999) on descriptors of length 1. The
cosines of labelled photos with all others stay in memory, so a further label adds one column, and the rest is a
Cholesky factorisation. Leaving photos out has a closed form, which gives cross-validated answers without further fits.
They choose the kernel's width. Labels beyond the columns that memory has room for are learnt by a regression on the
columns at hand (Nyström method, Williams and Seeger 2001). The ridge was chosen on pool photos (bench/labelling.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, lapack, solve_triangular

from penult.bundle.scores import Floats, softmax

Rows = NDArray[np.intp]
Exact = NDArray[np.float64]

# The kernel is exp(-sharpness d² / median d²); the ridge is added to its diagonal.
RIDGE = 0.03
_JITTER = 1e-4
_SHARPNESSES = (0.35, 0.7, 1.0, 1.5, 2.5)
# The sharpness is chosen on at most so many labelled photos.
_MAX_SEARCHED = 500
_MEDIAN_OF = 500
# Numbers of kernel columns kept (256 MiB), and how many columns at most.
_MAX_KEPT, _MAX_COLUMNS = 1 << 26, 2048
_BLOCK_ROWS, _BLOCK_COLUMNS = 8192, 256
# Of so many labelled photos, the last ones, the usual novelty is computed.
_MAX_COMPARED = 2048
# The factor from scores to logits, if there are few labels, and how many labels this belief weighs.
_USUAL_FACTOR, _BELIEF = 4.0, 10.0
_FACTORS = np.geomspace(0.5, 40, 45)


@dataclass(frozen=True)
class Fit:
    """What the classifier answers for the pool of N photos, n of them labelled.

    Attributes:
        rows: The labelled photos, [n].
        labels: Their classes, [n].
        classes: How many classes there are.
        probabilities: Calibrated, of all photos, float32 [N, classes].
        left_out: Probabilities of each labelled photo by a fit without it and its near-copies, float32 [n, classes].
        novelty: 1 less the cosine to the most similar labelled photo, float32 [N]; 0 for a labelled photo.
        usual_novelty: The same of labelled photos without themselves and near-copies, float32 [at most n].
        order: All photos in an order that depends on their descriptors and the seed alone, [N].
        is_sample: Whether a labelled photo is among the first of `order` that are all labelled, bool [n]. These are a
            random sample of the pool, whatever the other labelled photos were chosen by.
    """

    rows: Rows
    labels: NDArray[np.int64]
    classes: int
    probabilities: Floats
    left_out: Floats
    novelty: Floats
    usual_novelty: Floats
    order: Rows
    is_sample: NDArray[np.bool_]


class Learner:
    """Fits to growing labels of one pool; use it in one thread."""

    def __init__(self, inputs: Floats, groups: NDArray[np.int64], seed: int = 0) -> None:
        """Take the pool; nothing is copied.

        Args:
            inputs: Descriptors of length 1, float32 [N, length].
            groups: A number for each photo that near-copies share, [N].
            seed: Decides the order of random picks.
        """
        self._inputs, self._groups, self._seed = inputs, groups, seed
        count = len(inputs)
        self.order: Rows = np.argsort(_keys(inputs, seed), kind="stable")
        self._usual_width = self._width = kernel_width(inputs[self.order[:_MEDIAN_OF]])
        self._columns = np.empty((max(1, min(_MAX_COLUMNS, count, _MAX_KEPT // max(count, 1))), count), np.float32)
        self._is_searched = False
        self._landmarks: list[int] = []
        self._nearest = np.full(count, -1, np.float32)
        self._seen: set[int] = set()
        self._last: tuple[Rows, Floats] = np.empty(0, np.intp), np.empty((0, 0), np.float32)

    def answers(self, inputs: Floats) -> NDArray[np.int64]:
        """Return the classes of other photos by the last fit, [m], from descriptors of length 1, [m, length]."""
        photos, weights = self._last
        return np.asarray((kernel(inputs @ self._inputs[photos].T, self._width) @ weights).argmax(axis=1))

    def fit(self, rows: Rows, labels: NDArray[np.int64], classes: int) -> Fit:
        """Fit to labels.

        Args:
            rows: The labelled photos, [n]; at least one.
            labels: Their classes, [n].
            classes: How many classes there are; some may have no label yet.
        """
        self._add(rows)
        if len(rows) <= _MAX_SEARCHED or not self._is_searched:
            self._is_searched = True
            self._width = self._best_width(rows[-_MAX_SEARCHED:], labels[-_MAX_SEARCHED:], classes)
        scores, left_out = self._scores(rows, labels, classes)
        temperature = 1 / _factor(left_out, labels)
        return Fit(
            rows, labels, classes, softmax(scores, temperature), softmax(left_out, temperature), self._novelty(),
            self._usual_novelty(rows), self.order, self._is_sample(rows),
        )  # fmt: skip

    # -- cosines with labelled photos ----------------------------------------------------------------------------------

    def _add(self, rows: Rows) -> None:
        """Compute the columns of photos that are labelled now, and each photo's likeness to what is labelled."""
        labelled = set(rows.tolist())
        if not self._seen <= labelled:  # a label was taken back
            self._seen, self._nearest = set(), np.full(len(self._inputs), -1, np.float32)
        new = [row for row in rows.tolist() if row not in self._seen]
        have = set(self._landmarks)
        for start in range(0, len(new), _BLOCK_COLUMNS):
            some = np.array(new[start : start + _BLOCK_COLUMNS], np.intp)
            kept = np.array([place for place, row in enumerate(some.tolist()) if row not in have], np.intp)
            kept = kept[: len(self._columns) - len(self._landmarks)]
            into = slice(len(self._landmarks), len(self._landmarks) + len(kept))
            for at in range(0, len(self._inputs), _BLOCK_ROWS):
                block = slice(at, at + _BLOCK_ROWS)
                cosines = self._inputs[some] @ self._inputs[block].T
                np.maximum(self._nearest[block], cosines.max(axis=0), out=self._nearest[block])
                self._columns[into, block] = cosines[kept]
            self._landmarks += some[kept].tolist()
        self._seen = labelled

    # -- the fit -------------------------------------------------------------------------------------------------------

    def _scores(self, rows: Rows, labels: NDArray[np.int64], classes: int) -> tuple[Exact, Exact]:
        """Return scores of the pool [N, classes], and of labelled photos by fits without them [n, classes]."""
        targets = _targets(labels, classes)
        place = {row: number for number, row in enumerate(self._landmarks)}
        if all(row in place for row in rows.tolist()):
            used = np.array([place[row] for row in rows.tolist()], np.intp)
            solved = _exact(self._kernel(self._columns[np.ix_(used, rows)]), targets)
        else:
            used = np.arange(len(self._landmarks))
            among = self._kernel(self._columns[: len(used), self._landmarks])
            solved = _regression(among, lambda part: self._kernel(self._columns[: len(used), rows[part]]), targets)
        self._last = np.array(self._landmarks, np.intp)[used], solved.weights.astype(np.float32)
        return self._pool_scores(used, solved.weights), targets - self._without(rows, solved)

    def _pool_scores(self, used: Rows, weights: Exact) -> Exact:
        scores = np.zeros((len(self._inputs), weights.shape[1]))
        single = weights.astype(np.float32)
        contiguous = len(used) == len(self._landmarks) and bool((used == np.arange(len(used))).all())
        for at in range(0, len(self._inputs), _BLOCK_ROWS):
            block = slice(at, at + _BLOCK_ROWS)
            columns = self._columns[: len(used), block] if contiguous else self._columns[used, block]
            scores[block] = kernel(columns, self._width).T @ single
        return scores

    def _kernel(self, cosines: Floats) -> Exact:
        return kernel(cosines, self._width).astype(np.float64)

    def _best_width(self, rows: Rows, labels: NDArray[np.int64], classes: int) -> float:
        """Return the width with the smallest squared residuals of photos that are left out."""
        inputs, targets = self._inputs[rows], _targets(labels, classes)
        cosines = inputs @ inputs.T

        def error(width: float) -> float:
            solved = _exact(kernel(cosines, width).astype(np.float64), targets)
            return float((self._without(rows, solved) ** 2).mean())

        return min((self._usual_width / each for each in _SHARPNESSES), key=error)

    def _without(self, rows: Rows, solved: "_Solved") -> Exact:
        """Return residuals [n, classes] of photos by the fit without them and their near-copies."""
        found = solved.residuals / solved.left[:, None]
        _, numbers, sizes = np.unique(self._groups[rows], return_inverse=True, return_counts=True)
        for group in np.flatnonzero(sizes > 1):
            members = np.flatnonzero(numbers == group)
            found[members] = np.linalg.solve(solved.left_of(members), solved.residuals[members])
        return found

    # -- novelty and the random sample ---------------------------------------------------------------------------------

    def _novelty(self) -> Floats:
        novelty: Floats = np.maximum(1 - self._nearest, 0)
        novelty[list(self._seen)] = 0
        return novelty

    def _usual_novelty(self, rows: Rows) -> Floats:
        """Return the novelty of labelled photos [n] without themselves; of many labels, the last ones decide."""
        found = np.full(len(rows), np.nan, np.float32)
        last = np.arange(len(rows))[-_MAX_COMPARED:]
        known, groups = self._inputs[rows[last]], self._groups[rows[last]]
        for part in np.array_split(np.arange(len(last)), -(-len(last) // 512)):
            cosines = known[part] @ known.T
            cosines[groups[part][:, None] == groups[None]] = -1
            found[last[part]] = np.maximum(1 - cosines.max(axis=1), 0)
        return found[last]

    def _is_sample(self, rows: Rows) -> NDArray[np.bool_]:
        is_labelled = np.zeros(len(self._inputs), bool)
        is_labelled[rows] = True
        in_order = is_labelled[self.order]
        first = len(in_order) if in_order.all() else int(in_order.argmin())
        is_first = np.zeros(len(self._inputs), bool)
        is_first[self.order[:first]] = True
        return is_first[rows]


def kernel(cosines: Floats, width: float) -> Floats:
    """Return the kernel of photos with these cosines, of a width that kernel_width() returns."""
    found: Floats = np.exp((2 / width) * np.minimum(cosines - 1, 0))
    return found


def kernel_width(inputs: Floats) -> float:
    """Return the median squared distance of different rows of `inputs` [n, length]."""
    if len(inputs) < 2:
        return 1.0
    some = inputs[:_MEDIAN_OF]
    distances = (2 - 2 * (some @ some.T))[np.triu_indices(len(some), 1)]
    return max(float(np.median(distances)), 1e-6)


@dataclass(frozen=True)
class _Solved:
    """A fit to n targets by m columns.

    Attributes:
        weights: Of the columns, [m, classes].
        residuals: Targets less scores, [n, classes].
        left: The share of each target that its own residual keeps, [n].
        left_of: Returns these shares for some targets together, as a matrix.
    """

    weights: Exact
    residuals: Exact
    left: Exact
    left_of: Callable[[Rows], Exact]


def _targets(labels: NDArray[np.int64], classes: int) -> Exact:
    targets = np.full((len(labels), classes), -1.0)
    targets[np.arange(len(labels)), labels] = 1
    return targets


def _exact(kernel: Exact, targets: Exact) -> _Solved:
    """Fit to a kernel [n, n]."""
    factor, _ = cho_factor(kernel + RIDGE * np.eye(len(kernel)), lower=True, overwrite_a=True, check_finite=False)
    weights: Exact = cho_solve((factor, True), targets, check_finite=False)
    inverse, _ = lapack.dpotri(factor, lower=1)

    def left_of(some: Rows) -> Exact:
        block = inverse[np.ix_(some, some)]
        found: Exact = RIDGE * (np.tril(block) + np.tril(block, -1).T)
        return found

    return _Solved(weights, RIDGE * weights, RIDGE * np.diag(inverse), left_of)


def _regression(among: Exact, columns: Callable[[slice], Exact], targets: Exact) -> _Solved:
    """Fit by m landmarks, whose kernel is `among` [m, m], to the columns [m, n] of the labelled photos."""
    count, size = len(targets), len(among)
    root = np.linalg.cholesky(among + _JITTER * np.eye(size))
    features = np.empty((size, count), np.float32)
    gram, sums = RIDGE * np.eye(size), np.zeros((size, targets.shape[1]))
    parts = [slice(at, at + _BLOCK_ROWS) for at in range(0, count, _BLOCK_ROWS)]
    for part in parts:
        block: Exact = solve_triangular(root, columns(part), lower=True)
        gram += block @ block.T
        sums += block @ targets[part]
        features[:, part] = block
    factor = np.linalg.cholesky(gram)
    inner = cho_solve((factor, True), sums)
    residuals, left = np.empty_like(targets), np.empty(count)

    def whitened(some: slice | Rows) -> Exact:
        solved: Exact = solve_triangular(factor, features[:, some].astype(np.float64), lower=True)
        return solved

    for part in parts:
        residuals[part] = targets[part] - features[:, part].T @ inner
        left[part] = 1 - (whitened(part) ** 2).sum(axis=0)

    def left_of(some: Rows) -> Exact:
        block = whitened(some)
        return np.asarray(np.eye(len(some)) - block.T @ block)

    return _Solved(solve_triangular(root.T, inner, lower=False), residuals, left, left_of)


def _factor(scores: Exact, labels: NDArray[np.int64]) -> float:
    """Return the factor that makes probabilities of left-out scores [n, classes] most likely (Guo et al. 2017).

    With few labels it stays near the usual one.
    """
    rows = np.arange(len(scores))

    def loss(factor: float) -> float:
        logits = scores * factor
        top = logits.max(axis=1)
        logs = logits[rows, labels] - top - np.log(np.exp(logits - top[:, None]).sum(axis=1))
        belief: float = _BELIEF * np.log(factor / _USUAL_FACTOR) ** 2
        return float(-logs.sum()) + belief

    return float(min(_FACTORS.tolist(), key=loss))


def _keys(inputs: Floats, seed: int) -> NDArray[np.uint64]:
    """Return a number for each row from its bits and the seed, so that further photos change none, uint64 [N]."""
    random = np.random.default_rng(seed)
    factors = random.integers(1, 1 << 63, inputs.shape[1], dtype=np.uint64) | np.uint64(1)
    keys = np.empty(len(inputs), np.uint64)
    for at in range(0, len(inputs), 1024):
        bits = np.ascontiguousarray(inputs[at : at + 1024]).view(np.uint32)
        keys[at : at + 1024] = (bits.astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)
    keys ^= keys >> np.uint64(31)
    keys *= np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(29))
