"""Engines for the contract, and what they should have answered, by looking at everything."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from penult.lookup.embedded import EmbeddedStore
from penult.lookup.types import LABEL, CollectionSpec, Condition, Filter, Hit, Item, Store

DIMENSION = 24
FIELDS = {"price": "number", "maker": "string", "sold": "boolean"}


@dataclass
class Oracle:
    """A collection in a dictionary."""

    items: dict[str, Item] = field(default_factory=dict)

    def upsert(self, items: list[Item]) -> None:
        """Store items."""
        self.items |= {item.id: item for item in items}

    def delete(self, ids: list[str]) -> None:
        """Remove items."""
        for id_ in ids:
            self.items.pop(id_, None)

    def matching(self, where: Filter = ()) -> list[Item]:
        """Return the items that a filter lets through."""
        return [item for item in self.items.values() if all(_holds(condition, item) for condition in where)]

    def similarities(self, query: np.ndarray, where: Filter = ()) -> dict[str, float]:
        """Return the cosine of every item that matches, in float64."""
        return {item.id: _cosine(query, item.vector) for item in self.matching(where)}

    def agrees(self, query: np.ndarray, k: int, hits: list[Hit], where: Filter = ()) -> None:
        """Assert that an answer is right: as many as there should be, the nearest, in order, with all that belongs."""
        right = self.similarities(query, where)
        best = sorted(right.values(), reverse=True)[:k]
        assert len({hit.id for hit in hits}) == len(hits)
        np.testing.assert_allclose([hit.similarity for hit in hits], best, atol=2e-6)
        for hit in hits:  # ties may come in any order
            item = self.items[hit.id]
            assert abs(right[hit.id] - hit.similarity) < 2e-6
            assert (hit.label, dict(hit.metadata)) == (item.label, dict(item.metadata))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _holds(condition: Condition, item: Item) -> bool:
    value = item.label if condition.field == LABEL else item.metadata.get(condition.field)
    if value is None:
        return False
    if condition.values:
        return value in condition.values
    return (condition.low is None or value >= condition.low) and (condition.high is None or value <= condition.high)


@pytest.fixture
def oracle() -> Oracle:
    """What a collection should hold."""
    return Oracle()


@pytest.fixture
def spec() -> CollectionSpec:
    """A collection of short descriptors with a field of each type."""
    return CollectionSpec("things", DIMENSION, "f" * 64, "pets", FIELDS)


@pytest.fixture
def make_items() -> Callable[..., list[Item]]:
    """Make items in clusters: make_items(count, seed=0, start=0)."""

    def make(count: int, seed: int = 0, start: int = 0) -> list[Item]:
        chance = np.random.default_rng(seed)
        centres = np.random.default_rng(99).normal(size=(12, DIMENSION))
        items = []
        for number in range(start, start + count):
            label = int(chance.integers(12))
            vector = (centres[label] + chance.normal(size=DIMENSION) * 0.4).astype(np.float32) * 7
            metadata = {
                "price": float(chance.integers(100)),
                "maker": f"m{chance.integers(4)}",
                "sold": bool(chance.integers(2)),
            }
            if number % 10 == 3:
                metadata.pop("price")
            items.append(
                Item(
                    f"item-{number:05d}",
                    vector,
                    f"class {label}",
                    metadata,
                    f"p/{number}.jpg",
                    b"\xff\xd8" * (number % 3),
                )
            )
        return items

    return make


@dataclass
class Engine:
    """A kind of store: open it as often as wanted; what was stored is there again."""

    name: str
    open: Callable[[], Store]


@pytest.fixture(params=["embedded", "embedded-graph", "pgvector", "pgvector-graph"])
def engine(request, tmp_path: Path) -> Engine:
    """Each engine, as it is for few items and, with the limit between set low, for many."""
    kind, _, mode = request.param.partition("-")
    limit = 200 * DIMENSION if mode else 50_000_000
    if kind == "embedded":
        return Engine(request.param, lambda: EmbeddedStore(tmp_path / "lookup", limit))
    from penult.lookup.pgvector import PgvectorStore

    url = request.getfixturevalue("database")
    return Engine(request.param, lambda: PgvectorStore(url, limit))


@pytest.fixture
def store(engine: Engine) -> Iterator[Store]:
    """A store of the engine, empty."""
    opened = engine.open()
    yield opened
    opened.close()
