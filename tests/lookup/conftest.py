"""Engines for the contract, and what they should have answered, by looking at everything."""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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


@pytest.fixture(scope="module")
def make_oracle() -> type[Oracle]:
    """Make what a collection should hold."""
    return Oracle


@pytest.fixture(scope="module")
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


# Milvus takes a second for what others do in a hundredth; flat, which is not the default, has its turn at night.
_MILVUS = ("milvus", "milvus-graph") if os.environ.get("PENULT_FULL") == "1" else ("milvus-graph",)


@dataclass
class Engine:
    """A kind of store: open_at(PLACE) as often as wanted; what was stored there is there again."""

    name: str
    open_at: Callable[[str], Store]

    @property
    def is_graph(self) -> bool:
        """Whether a graph is searched, which finds nearly all."""
        return self.name.endswith("graph")


@pytest.fixture(
    scope="module",
    params=["embedded", "embedded-graph", *(
        pytest.param(name, marks=pytest.mark.system) for name in ("pgvector", "pgvector-graph", *_MILVUS))],
)  # fmt: skip
def engine(request, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Each engine, as it is for few items and, with the limit between set low, for many."""
    kind, _, mode = request.param.partition("-")
    limit = 200 * DIMENSION if mode else 50_000_000
    if kind == "embedded":
        folder = tmp_path_factory.mktemp("embedded")
        return Engine(request.param, lambda place: EmbeddedStore(folder / place, limit))
    if kind == "milvus":
        from penult.lookup.milvus import MilvusStore

        address = f"milvus://127.0.0.1:{request.getfixturevalue('milvus')}?index={'hnsw' if mode else 'flat'}"
        return Engine(request.param, lambda place: MilvusStore(address))
    from penult.lookup.pgvector import PgvectorStore

    make_database = request.getfixturevalue("make_database")
    databases = defaultdict(make_database)
    return Engine(request.param, lambda place: PgvectorStore(databases[place], limit))


@pytest.fixture(scope="module")
def shared_store(engine: Engine) -> Iterator[Store]:
    """A store of the engine for tests that leave it as it is, or clean up."""
    opened = engine.open_at("shared")
    for spec in opened.specs():  # Milvus is one for all
        opened.drop(spec.name)
    yield opened
    opened.close()


@pytest.fixture
def store(shared_store: Store) -> Iterator[Store]:
    """The same; what a test makes in it goes with the test."""
    before = {spec.name for spec in shared_store.specs()}
    yield shared_store
    for spec in shared_store.specs():
        if spec.name not in before:
            shared_store.drop(spec.name)


@pytest.fixture
def spec() -> CollectionSpec:
    """A collection of short descriptors with a field of each type."""
    return CollectionSpec(f"things-{next(_NUMBERS)}", DIMENSION, "f" * 64, "pets", FIELDS)


_NUMBERS = itertools.count()
