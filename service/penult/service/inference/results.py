"""What the pipeline answers, in plain values: no protobuf above or below this line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from penult.bundle.class_map import ClassMap
from penult.bundle.errors import PenultError
from penult.bundle.scores import Floats
from penult.lookup.types import Hit
from penult.lookup.vote import vote

# The third scorer, beside the manifest's dense and svm: it needs no model of classes, only a collection.
NEIGHBOURS = "neighbours"
# Why an answer is withheld.
UNSURE, NOVEL = "unsure", "novel"


class Scored(NamedTuple):
    """One class with its score and calibrated probability."""

    label: str
    score: float
    probability: float


@dataclass(frozen=True)
class Answer:
    """One photo's classes, best first (none where they were not asked for), and its descriptor, float32 [length]."""

    classes: tuple[Scored, ...]
    descriptor: Floats
    # The nearest stored items, nearest first; empty if the request did not ask for them.
    neighbours: tuple[Hit, ...] = ()
    # The image's distance to the training images, and whether it exceeds the threshold; None without a baseline.
    novelty: float | None = None
    is_novel: bool = False
    # Why the model withholds its answer: UNSURE or NOVEL, "" if it does not.
    abstained: str = ""
    # The dense head's scores, float32 [1, classes], whichever scorer gave the classes; None if the network has not run.
    logits: Floats | None = None
    # What each place adds to the score of a class; empty if the request did not ask for it.
    maps: tuple[ClassMap, ...] = ()


@dataclass(slots=True)
class Timings:
    """Seconds of the request's slowest image in each stage, and of the whole request."""

    decode: float = 0.0
    queue: float = 0.0
    inference: float = 0.0
    score: float = 0.0
    total: float = 0.0


# One outcome per image, in request order.
Outcome = Answer | PenultError


def voted(neighbours: Sequence[Hit]) -> tuple[Scored, ...]:
    """Return classes by the k-nearest vote, with their share as score and probability; none if no neighbour votes."""
    return tuple(Scored(label, share, share) for label, share in vote(neighbours))
