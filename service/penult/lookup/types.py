"""What collections hold and answer, in plain values, and what an engine that keeps them must offer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Value = str | float | bool
FieldType = Literal["string", "number", "boolean"]
FIELD_TYPES: tuple[FieldType, ...] = ("string", "number", "boolean")
LABEL = "label"
COSINE = "cosine"


@dataclass(frozen=True)
class CollectionSpec:
    """What a collection is for its whole life: whose descriptors, of which length, with which metadata fields."""

    name: str
    dimension: int
    fingerprint: str
    model: str = ""
    fields: Mapping[str, FieldType] = field(default_factory=dict)
    metric: str = COSINE


@dataclass(frozen=True)
class Item:
    """One thing to be found: its descriptor, float32 [dimension], as the model gave it."""

    id: str
    vector: Floats
    label: str = ""
    metadata: Mapping[str, Value] = field(default_factory=dict)
    # Where the photo came from, and a small JPEG of it; both only where the caller wants them kept.
    source: str = ""
    thumbnail: bytes = b""


@dataclass(frozen=True)
class Condition:
    """A field has one of `values`; without values it is within `low` and `high`, both included."""

    field: str
    values: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None


Filter = tuple[Condition, ...]  # all must hold


@dataclass(frozen=True)
class Hit:
    """An item that was found; `similarity` is the cosine, -1 to 1."""

    id: str
    similarity: float
    label: str = ""
    metadata: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """How much a collection holds; `index` is "exact", or "hnsw" with `unsealed` items that are searched exactly."""

    items: int
    index: str
    unsealed: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


class Collection(Protocol):
    """One collection. Any number of threads may search while one changes it."""

    spec: CollectionSpec

    def upsert(self, items: Sequence[Item]) -> None:
        """Store items, in place of those with the same ids: all or none, durable and visible on return."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items, durably, and return how many were there."""
        ...

    def search(self, queries: Floats, k: int, where: Filter = ()) -> list[list[Hit]]:
        """Return, for each query of float32 [N, dimension], the k nearest items that match, the nearest first.

        Never fewer than k if at least k match.
        """
        ...

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return the items with these ids that are there, in the order asked for."""
        ...

    def scan(self, after: str, limit: int) -> list[Item]:
        """Return the items whose ids follow `after` in order of UTF-8 bytes; "" begins."""
        ...

    def stats(self) -> Stats:
        """Return what there is."""
        ...


class Store(Protocol):
    """A place that keeps collections."""

    def create(self, spec: CollectionSpec) -> Collection:
        """Make an empty collection; raise CollectionExists."""
        ...

    def open(self, name: str) -> Collection:
        """Return a collection; raise CollectionUnknown."""
        ...

    def specs(self) -> list[CollectionSpec]:
        """Return what collections there are, by name."""
        ...

    def drop(self, name: str) -> None:
        """Remove a collection with all that it holds; raise CollectionUnknown."""
        ...

    def replace(self, name: str, by: str) -> None:
        """Give collection `by` the name of another, which is dropped, in one step; raise CollectionUnknown."""
        ...

    def close(self) -> None:
        """Let go of everything; what was acknowledged is stored already."""
        ...
