"""Collections for the service: opened on first use, with checks, threads of their own, times and bounds.

The checks of penult.lookup.checks run before the engine, so that all engines reject the same requests.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from penult.bundle.scores import Floats
from penult.lookup import checks
from penult.lookup.errors import CollectionExists, CollectionUnknown, StoreUnavailable
from penult.lookup.opening import OFF, has_collections, is_shared, open_store
from penult.lookup.types import Collection, CollectionSpec, FieldType, Filter, Hit, Item, Stats, Store
from penult.service.errors import LookupOff, Overloaded
from penult.service.inference.admission import AdmissionControl
from penult.service.inference.fair_queue import FairExecutor
from penult.service.observability import tracing
from penult.service.observability.call import caller
from penult.service.observability.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")
DEFAULT_K = 10
_RETRY_MS = 200
# Seconds without a new attempt after the store could not be opened.
_REST_S = 2.0
# The most requests that wait, per thread.
_WAITING_EACH = 64


@dataclass(frozen=True)
class Query:
    """Select the stored items that count as neighbours; `max_distance` is 1 - cosine, 0 for no limit."""

    collection: str
    k: int = DEFAULT_K
    where: Filter = ()
    max_distance: float = 0.0


@dataclass(frozen=True)
class Listed:
    """A collection and its counts."""

    spec: CollectionSpec
    stats: Stats


class Collections:
    """Queries the store that --lookup names. Its methods run on the event loop; the store runs on threads."""

    def __init__(self, where: str, threads: int, metrics: Metrics, is_one_of_several: bool = False) -> None:
        """Open nothing yet; `is_one_of_several` says that this server has several worker processes."""
        self._where, self._metrics = where, metrics
        self._is_off = where == OFF
        self._why_off = "this server keeps no collections; start it with --lookup DIR"
        if is_one_of_several and not is_shared(where) and not self._is_off:
            self._is_off = True
            self._why_off = "several workers cannot share a folder; use --lookup postgresql://… or --workers 1"
        self._threads = FairExecutor(ThreadPoolExecutor(threads, "lookup"))
        self._shares = AdmissionControl(threads * _WAITING_EACH)
        self._opening = asyncio.Lock()
        self._store: Store | None = None
        self._failed: tuple[StoreUnavailable | None, float] = None, 0.0
        # The result of the last all(), so that a reader does not wait for the store.
        self.listed: list[Listed] = []

    @property
    def is_on(self) -> bool:
        """Whether this server keeps collections."""
        return not self._is_off

    def is_there(self) -> bool:
        """Return whether the store is shared or has collections; to open it early saves the first caller's time."""
        return not self._is_off and (is_shared(self._where) or has_collections(Path(self._where)))

    async def open(self) -> None:
        """Open the store and make every index. Raises PenultError."""
        store = await self._opened()
        for spec in await self._on_thread(store.specs):
            await self._on_thread(partial(store.open, spec.name))

    async def find(self, query: Query, vectors: Sequence[Floats], fingerprint: str) -> list[list[Hit]]:
        """Return the neighbours of descriptors, float32 [dimension]; a fingerprint of "" is not checked.

        Raises PenultError.
        """
        collection = await self._collection(query.collection)
        if fingerprint:
            checks.check_fingerprint(collection.spec, fingerprint)
        checks.check_query(collection.spec, vectors, query.k, query.where)
        search = partial(collection.search, np.stack(vectors), query.k, query.where)
        started = time.perf_counter()
        found = await self._on_thread(search, "search")
        ended = time.perf_counter()
        self._metrics.phase_seconds.labels("lookup").observe(ended - started)
        if trace := tracing.current():
            trace.phase("lookup", started, ended, **{"penult.collection": query.collection})
        least = 1 - query.max_distance if query.max_distance else -2.0
        near = [[hit for hit in hits if hit.similarity >= least] for hits in found]
        for hits in near:
            self._metrics.lookup_results.observe(len(hits))
        return near

    async def spec(self, name: str) -> CollectionSpec | None:
        """Return the spec of a collection; None if it does not exist."""
        try:
            return (await self._collection(name)).spec
        except CollectionUnknown:
            return None

    async def put(
        self, name: str, fingerprint: str, model: str, items: Sequence[Item], fields: dict[str, FieldType]
    ) -> None:
        """Store items of a model's descriptors; create the collection if it does not exist. Raises PenultError."""
        wanted = CollectionSpec(name, items[0].vector.size, fingerprint, model, fields)
        spec = await self.spec(name) or wanted
        checks.check_spec(spec)
        checks.check_fingerprint(spec, fingerprint)
        checks.check_items(spec, items)
        await self._on_thread(partial((await self._made(spec)).upsert, items), "put")

    async def delete(self, name: str, ids: Sequence[str]) -> int:
        """Remove items and return how many existed. Raises PenultError."""
        checks.check_ids(ids)
        return await self._on_thread(partial((await self._collection(name)).delete, ids), "delete")

    async def get(self, name: str, ids: Sequence[str]) -> list[Item]:
        """Return items by id. Raises PenultError."""
        checks.check_ids(ids)
        return await self._on_thread(partial((await self._collection(name)).get, ids), "get")

    async def scan(self, name: str, after: str, limit: int) -> list[Item]:
        """Return a page of items. Raises PenultError."""
        limit = min(limit, checks.MAX_ITEMS)
        return await self._on_thread(partial((await self._collection(name)).scan, after, limit), "get")

    async def all(self) -> list[Listed]:
        """Return all collections, by name. Raises PenultError."""
        store = await self._opened()

        def stats(spec: CollectionSpec) -> Listed | None:
            try:
                collection = store.open(spec.name)
                return Listed(collection.spec, collection.stats())
            except CollectionUnknown:  # dropped since
                return None

        specs = await self._on_thread(store.specs)
        found = [listed for spec in specs if (listed := await self._on_thread(partial(stats, spec)))]
        self._metrics.lookup_collections.set(len(found))
        self._metrics.lookup_items.set(sum(listed.stats.items for listed in found))
        self.listed = found
        return found

    async def count(self, every_s: float) -> None:
        """Count collections and items for the metrics every `every_s` seconds, once the store is open; never return."""
        while True:
            await asyncio.sleep(every_s)
            if self._store:
                try:
                    await self.all()
                except Exception as error:  # requests report it too, and the store may recover
                    log.debug("collections cannot be counted: %s", error)

    async def drop(self, name: str) -> None:
        """Remove a collection. Raises PenultError."""
        checks.check_name(name)
        await self._on_thread(partial((await self._opened()).drop, name))

    async def replace(self, name: str, by: str) -> None:
        """Rename collection `by` to `name`, and drop the one that had this name. Raises PenultError."""
        checks.check_name(name)
        checks.check_name(by)
        if name == by:
            raise CollectionExists("COLLECTION_EXISTS", "a collection cannot take its own place")
        await self._on_thread(partial((await self._opened()).replace, name, by))

    async def _collection(self, name: str) -> Collection:
        checks.check_name(name)
        return await self._on_thread(partial((await self._opened()).open, name))

    async def _made(self, spec: CollectionSpec) -> Collection:
        store = await self._opened()

        def make() -> Collection:
            try:
                return store.open(spec.name)
            except CollectionUnknown:
                try:
                    return store.create(spec)
                except CollectionExists:  # another request created it first
                    return store.open(spec.name)

        made = await self._on_thread(make)
        # A concurrent request may have created it for another model.
        checks.check_fingerprint(made.spec, spec.fingerprint)
        return made

    async def _opened(self) -> Store:
        if self._is_off:
            raise LookupOff("LOOKUP_OFF", self._why_off)
        async with self._opening:
            if self._store is None:
                self._store = await self._on_thread(self._open)
            return self._store

    def _open(self) -> Store:
        """Open the store.

        Fail at once for _REST_S seconds after a failure. Otherwise requests would wait for the store one by one.
        """
        failed, until = self._failed
        if failed and time.monotonic() < until:
            raise StoreUnavailable(failed.reason, failed.message)
        try:
            return open_store(self._where)
        except StoreUnavailable as error:
            self._failed = error, time.monotonic() + _REST_S
            raise

    async def _on_thread(self, act: Callable[[], T], operation: str = "") -> T:
        """Run a function of the store on a thread; `operation` is its label in penult_lookup_seconds."""
        client = caller()
        if not self._shares.fits(client, 1):
            raise Overloaded("LOOKUP_FULL", "too many lookups wait; try again after the hint", retry_after_ms=_RETRY_MS)
        self._shares.add(client, 1)
        work = partial(self._timed, act, operation) if operation else act
        future: asyncio.Future[T] = asyncio.wrap_future(self._threads.submit(client, work))
        future.add_done_callback(lambda _: self._shares.remove(client, 1))
        return await future

    def _timed(self, act: Callable[[], T], operation: str) -> T:
        with self._metrics.lookup_seconds.labels(operation).time():
            return act()
