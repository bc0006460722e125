"""Compare networks, sizes and copies of photos by an SVM on frozen descriptors, cross-validated.

No label has shaped the descriptors, so every photo that may be learnt from can be held out in turn. The SVM is that of
least squares with an RBF kernel (Suykens and Vandewalle 1999): one matrix of each fold is solved for all classes and
every C, which takes a tenth of LIBLINEAR's time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from penult.bundle.scores import Floats
from penult.export.evaluation.folds import Labels, Rows, Split, hits_by_repeat, repeated
from penult.export.evaluation.outputs import unit_rows
from penult.interrupts import apart

_REPEATS = 3
_GRID = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(frozen=True)
class Answers:
    """How often each photo was answered correctly when it was held out, [N], and the C that was chosen."""

    right: NDArray[np.float64]
    c: float

    @property
    def accuracy(self) -> float:
        """The mean over photos."""
        return float(self.right.mean())


@dataclass(frozen=True)
class Lead:
    """The accuracy of one choice minus that of another on the same photos, and its standard error."""

    difference: float
    error: float

    @property
    def is_better(self) -> bool:
        """True if the difference is more than its standard error."""
        return self.difference > self.error


def lead(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Lead:
    """Compare answers [N] to the same photos; one further photo counts as different, as in choice.py."""
    found = ours - theirs
    error = math.sqrt((found.var() * len(found) + 1) / len(found) ** 2)
    return Lead(float(found.mean()), error)


def cross_validate(descriptors: Floats, labels: Labels, groups: Rows, seed: int) -> Answers:
    """Hold out every photo in turn, with C from the other folds.

    Args:
        descriptors: float32 [N, length].
        labels: [N].
        groups: [N], a number for each group of photos that folds must not part.
        seed: Decides the folds.
    """
    own = np.unique(labels, return_inverse=True)[1]
    repeats = repeated(own, groups, seed, _REPEATS)
    with _one_thread():
        hits = _hits(_kernel(descriptors), own, repeats)
    found = np.zeros((_REPEATS, len(own)), dtype=bool)
    for repeat, splits in enumerate(repeats):
        for _, held_out in splits:
            others = np.ones(len(own), dtype=bool)
            others[held_out] = False
            best = int(hits[:, :, others].mean(axis=(1, 2)).argmax())
            found[repeat, held_out] = hits[best, repeat, held_out]
    return Answers(found.mean(axis=0), _GRID[int(hits.mean(axis=(1, 2)).argmax())])


def _one_thread() -> threadpool_limits:
    """Use one thread of OpenBLAS inside; several wait for each other by spinning, for seconds beside other work."""
    return threadpool_limits(limits=1, user_api="blas")


def _hits(kernel: NDArray[np.float64], own: Labels, repeats: Sequence[Sequence[Split]]) -> NDArray[np.bool_]:
    """Return right answers by C, repeat and photo, [C, repeats, N]."""
    hits = np.zeros((len(_GRID), _REPEATS, len(own)), dtype=bool)
    for repeat, splits in enumerate(repeats):
        for train, held_out in splits:
            values, directions = apart(partial(np.linalg.eigh, kernel[np.ix_(train, train)]))
            targets, mean = _targets(own[train], int(own.max()) + 1)
            along, seen = directions.T @ targets, kernel[np.ix_(held_out, train)] @ directions
            for place, c in enumerate(_GRID):
                scores = seen @ (along / (values + 1 / (2 * c))[:, None]) + mean
                hits[place, repeat, held_out] = scores.argmax(axis=1) == own[held_out]
    return hits


def learning_copies(
    descriptors: Floats, copies: Sequence[Floats], labels: Labels, groups: Rows, c: float, seed: int
) -> NDArray[np.float64]:
    """Return right answers [N] to photos as they are, of SVMs that learn from copies of the others too.

    Args:
        descriptors: float32 [N, length] of the photos as they are.
        copies: The same of mirrored or turned copies; none gives the answers to compare with.
        labels: [N].
        groups: [N].
        c: C of the SVM of the photos alone. It is divided by the number of copies, so that a photo counts as much.
        seed: Decides the folds.
    """
    count, times = len(labels), 1 + len(copies)
    kernel, (names, own) = _kernel(np.concatenate([descriptors, *copies])), np.unique(labels, return_inverse=True)
    repeats = repeated(own, groups, seed, _REPEATS)

    def answers(photos: Rows, held_out: Rows) -> Labels:
        train = np.concatenate([photos + count * number for number in range(times)])
        targets, mean = _targets(own[train % count], len(names))
        ridge = kernel[np.ix_(train, train)] + np.eye(len(train)) * times / (2 * c)
        along = apart(partial(np.linalg.solve, ridge, targets))
        return np.asarray((kernel[np.ix_(held_out, train)] @ along + mean).argmax(axis=1))

    found = (answers(*split) for splits in repeats for split in splits)
    with _one_thread():
        return np.asarray(hits_by_repeat(own, repeats, found).mean(axis=0))


def _kernel(descriptors: Floats) -> NDArray[np.float64]:
    """Return the RBF kernel [N, N] of descriptors, with scikit-learn's usual gamma."""
    unit = unit_rows(descriptors)
    distances = np.maximum(2 - 2 * unit @ unit.T, 0)
    return np.asarray(np.exp(-distances / (unit.shape[1] * (unit.var() or 1))))


def _targets(labels: Labels, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return -1 and 1 for each photo and class less their means, [n, classes], and the means."""
    targets = np.full((len(labels), classes), -1.0)
    targets[np.arange(len(labels)), labels] = 1
    mean = targets.mean(axis=0)
    return targets - mean, mean
