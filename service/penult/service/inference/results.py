"""What the pipeline answers, in plain values: no protobuf above or below this line."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import PenultError
from penult.bundle.scores import Floats, softmax
from penult.lookup.types import Hit
from penult.lookup.vote import vote

# The third scorer, beside the manifest's dense and svm: it needs no model of classes, only a collection.
NEIGHBOURS = "neighbours"
# With so many times more classes than are asked for, sorting all of them costs more than finding the best first.
_FEW = 20


@dataclass(frozen=True)
class Scored:
    """One class with its score and calibrated probability."""

    label: str
    score: float
    probability: float


@dataclass(frozen=True)
class Answer:
    """One photo's classes, best first (none where they were not asked for), and its descriptor, float32 [length]."""

    classes: tuple[Scored, ...]
    descriptor: Floats
    # The nearest stored items, nearest first; none where they were not asked for.
    neighbours: tuple[Hit, ...] = ()
    # How far the photo lies from the training photos, and whether that is above the threshold; None without a baseline.
    novelty: float | None = None
    is_novel: bool = False


@dataclass(frozen=True)
class Timings:
    """Seconds: the longest of the request's photos in each stage, and the whole."""

    decode: float = 0.0
    queue: float = 0.0
    inference: float = 0.0
    score: float = 0.0
    total: float = 0.0


# One outcome per photo, in request order.
Outcome = Answer | PenultError


def rank(scores: Floats, classes: Sequence[str], temperature: float, top_k: int) -> list[tuple[Scored, ...]]:
    """Return, per row of scores [N, classes], the `top_k` best classes."""
    probabilities = softmax(scores, temperature)
    order = _best(scores, top_k)
    return [
        tuple(Scored(classes[c], float(scores[row, c]), float(probabilities[row, c])) for c in columns)
        for row, columns in enumerate(order)
    ]


def _best(scores: Floats, top_k: int) -> NDArray[np.intp]:
    """Return the places of the `top_k` largest scores of each row, largest first; of equal ones the first is argmax."""
    if not 0 < _FEW * top_k < scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    # Of thousands of classes, only those that can be among the best are sorted.
    least = -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1]
    rows = [np.flatnonzero(row >= low) for row, low in zip(scores, least, strict=True)]
    return np.array([
        found[np.argsort(-row[found], kind="stable")[:top_k]] for row, found in zip(scores, rows, strict=True)
    ])  # fmt: skip


def voted(neighbours: Sequence[Hit]) -> tuple[Scored, ...]:
    """Return classes by the k-nearest vote, score and probability both their share; none where nobody votes."""
    return tuple(Scored(label, share, share) for label, share in vote(neighbours))
