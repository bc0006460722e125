"""Compare networks, sizes and copies of photos by an SVM on frozen descriptors, cross-validated.

No label has shaped the descriptors, so every photo that may be learnt from can be held out in turn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import Normalizer

from penult.bundle.scores import Floats
from penult.export.evaluation import svm_cost
from penult.export.evaluation.folds import Labels, Rows, hits_by_repeat, repeated
from penult.export.evaluation.svm import counts_of
from penult.export.evaluation.svm_search import LEAST_SQUARES, Folds, estimator_of, search_linear
from penult.interrupts import pool

_REPEATS = 3


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


def cross_validate(
    descriptors: Floats, labels: Labels, groups: Rows, seed: int, class_weight: str | None = None
) -> Answers:
    """Hold out every photo in turn, with C from the other folds.

    Args:
        descriptors: float32 [N, length].
        labels: [N].
        groups: [N], a number for each group of photos that folds must not part.
        seed: Decides the folds.
        class_weight: None or "balanced".
    """
    dense = np.unique(labels, return_inverse=True)[1]
    counts = counts_of(dense, descriptors.shape[1], groups)
    repeats = max(min(svm_cost.repeats(svm_cost.LINEAR, counts), _REPEATS), 1)
    with pool(svm_cost.linear_threads(counts)) as threads:
        search = search_linear(descriptors, dense, Folds(dense, groups, seed, class_weight, threads, repeats), counts)
    hits = search.hits
    if search.solver != LEAST_SQUARES and len(search.rows) == len(labels):
        hits = search.unbiased_hits(repeated(dense, groups, seed, repeats))
    return Answers(hits.mean(axis=0), search.c)


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
    unit = [Normalizer().fit_transform(each) for each in (descriptors, *copies)]
    repeats = repeated(labels, groups, seed, _REPEATS)
    estimator = estimator_of(svm_cost.LINEAR, c / len(unit), 0.0, None, seed).set_params(tol=1e-2)

    def answers(train: Rows, held_out: Rows) -> Labels:
        fitted = estimator.fit(np.concatenate([rows[train] for rows in unit]), np.tile(labels[train], len(unit)))
        return np.asarray(fitted.predict(unit[0][held_out]))

    found = (answers(*split) for splits in repeats for split in splits)
    return np.asarray(hits_by_repeat(labels, repeats, found).mean(axis=0))
