"""The SVM on descriptors: L2-normalised, linear, C searched by cross-validation on training photos only.

The dense head is rarely the best use of few labels (research/learning.md, part A); both are always fitted and reported.
C must be searched: a fixed C = 1 cost 11 points there.
"""

import pickle
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC

from penult.bundle.scores import Floats, as_columns
from penult.export.progress import bar

GRID = tuple(float(f"{c:.2g}") for c in np.logspace(-2, 3, 11))
_PATIENCE = 3
_TIE = 1e-6
_FOLDS = 5
_MOST_ITERATIONS = 20_000


@dataclass(frozen=True)
class FittedSvm:
    """A fitted pipeline on raw descriptors, and how C was chosen: mean accuracy over the folds per C."""

    pipeline: Pipeline
    c: float
    accuracy_by_c: dict[float, float]

    def scores(self, descriptors: Floats) -> Floats:
        """Return decision values, float32 [N, classes]."""
        return as_columns(self.pipeline.decision_function(descriptors))

    def to_bytes(self) -> bytes:
        """Return the bytes of svm.pkl."""
        return pickle.dumps(self.pipeline, protocol=5)

    def as_json(self) -> dict[str, Any]:
        """Return what metrics.json tells of the choice."""
        return {"kernel": "linear", "c": self.c, "accuracy_by_c": {f"{c:g}": a for c, a in self.accuracy_by_c.items()}}


def fit(descriptors: Floats, labels: NDArray[np.int64], seed: int) -> FittedSvm:
    """Fit on descriptors [N, length] and labels [N]; the smallest C among the best wins.

    C rises until accuracy has stayed below its best for a while: the largest values cost the most and rarely win.
    """
    folds = max(2, min(_FOLDS, *Counter(labels.tolist()).values()))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    splits = list(splitter.split(descriptors, labels))
    accuracy: dict[float, float] = {}
    best = GRID[0]
    for tried, c in enumerate(bar(GRID, "searching C of the SVM", len(GRID))):
        hits = [_accuracy(descriptors, labels, train, held_out, c, seed) for train, held_out in splits]
        accuracy[c] = float(np.mean(hits))
        if accuracy[c] > accuracy[best] + _TIE:
            best = c
        elif accuracy[c] < accuracy[best] - _TIE and tried - GRID.index(best) >= _PATIENCE:
            break
    return FittedSvm(_fitted(descriptors, labels, best, seed), best, accuracy)


def _accuracy(
    descriptors: Floats,
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
    c: float,
    seed: int,
) -> float:
    pipeline = _fitted(descriptors[train], labels[train], c, seed)
    return float(pipeline.score(descriptors[held_out], labels[held_out]))


def _fitted(descriptors: Floats, labels: NDArray[np.int64], c: float, seed: int) -> Pipeline:
    pipeline = make_pipeline(Normalizer(), LinearSVC(C=c, dual="auto", max_iter=_MOST_ITERATIONS, random_state=seed))
    with warnings.catch_warnings():
        # A C that does not converge shows in its cross-validated accuracy, which decides.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return pipeline.fit(descriptors, labels)
