"""What goes into a client and comes out of it, in plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Crop:
    """A photo as the network looks at it: uint8 RGB [crop, crop, 3] (`get_model().preprocess.crop`), not resized."""

    pixels: NDArray[np.uint8]


Result = TypeVar("Result")
Photo = str | Path | bytes | NDArray[np.uint8] | Crop


# One value, any of a list, or from … to as a tuple (None: open).
Value = str | float | bool
Where = Mapping[str, Value | Sequence[Value] | tuple[float | None, float | None]]


class RequestFailed(Exception):
    """A request has no answer. `code` is gRPC's, `reason` a stable word or "", `request_id` the server's log entry."""

    def __init__(self, code: str, reason: str, message: str, request_id: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.reason, self.message, self.request_id = code, reason, message, request_id


@dataclass(frozen=True)
class ItemFailure:
    """Why one photo has no answer: gRPC's code by name, a stable word, a line for people."""

    code: str
    reason: str
    message: str


@dataclass(frozen=True)
class ScoredClass:
    """One class with its score (logit or SVM decision value) and calibrated probability."""

    label: str
    score: float
    probability: float


@dataclass(frozen=True)
class Neighbour:
    """A stored item near to a photo; `similarity` is the cosine of their descriptors, -1 to 1."""

    id: str
    label: str
    similarity: float
    metadata: Mapping[str, Value]


@dataclass(frozen=True)
class Neighbours:
    """Which stored items to look for: the `k` nearest of a collection that match, up to a distance (1 - cosine)."""

    collection: str
    k: int = 10
    where: Where = field(default_factory=dict)
    max_distance: float = 0.0


@dataclass(frozen=True)
class Classification:
    """One photo's best class, the runners-up, and its descriptor (float32 [length]) and neighbours if asked for."""

    label: str
    score: float
    probability: float
    classes: tuple[ScoredClass, ...]
    descriptor: NDArray[np.float32] | None = None
    neighbours: tuple[Neighbour, ...] = ()
    # How unlike the photos that the model was made with, 0 to 2, and whether it is above the threshold; None: unknown.
    novelty: float | None = None
    is_novel: bool = False


@dataclass(frozen=True)
class ClassifyAnswer:
    """What answered, and one result per photo, in order; photos above `novelty_threshold` are novel (None: unknown)."""

    model: str
    version: int
    fingerprint: str
    scorer: str
    results: tuple[Classification | ItemFailure, ...]
    novelty_threshold: float | None = None


@dataclass(frozen=True)
class DescribeAnswer:
    """What answered, and one descriptor (float32 [length]) or failure per photo, in order."""

    model: str
    version: int
    fingerprint: str
    results: tuple[NDArray[np.float32] | ItemFailure, ...]


@dataclass(frozen=True)
class PhotoAnswer(Generic[Result]):
    """One photo of many: what answered, and a Classification or a descriptor, or why there is none.

    A Classification is novel above `novelty_threshold` (None: unknown).
    """

    photo: Photo
    model: str
    version: int
    fingerprint: str
    scorer: str
    result: Result | ItemFailure
    novelty_threshold: float | None = None


@dataclass(frozen=True)
class LookupAnswer:
    """What described the photos ("" for descriptors), and each one's neighbours, nearest first, in order."""

    model: str
    version: int
    fingerprint: str
    results: tuple[tuple[Neighbour, ...] | ItemFailure, ...]


@dataclass(frozen=True)
class NewItem:
    """Something to be found: a photo, or its descriptor (float32 [length]).

    `source` and `thumbnail` (a JPEG) are kept as they are, to show the item and to describe it anew. `fingerprint` says
    which model made the descriptor: another's is refused.
    """

    id: str
    photo: Photo | None = None
    descriptor: NDArray[np.float32] | None = None
    label: str = ""
    metadata: Mapping[str, Value] = field(default_factory=dict)
    source: str = ""
    thumbnail: bytes = b""
    fingerprint: str = ""


@dataclass(frozen=True)
class StoredItem:
    """An item as it is stored; descriptor and thumbnail if asked for."""

    id: str
    label: str
    metadata: Mapping[str, Value]
    source: str
    descriptor: NDArray[np.float32] | None
    thumbnail: bytes


@dataclass(frozen=True)
class CollectionInfo:
    """What a collection is, and how much it holds; `index` is exact or hnsw; bytes are 0 where not known."""

    name: str
    items: int
    model: str
    fingerprint: str
    dimension: int
    metric: str
    fields: Mapping[str, str]
    index: str
    memory_bytes: int
    disk_bytes: int
