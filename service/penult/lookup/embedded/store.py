"""A folder of collections: the record on the disk, an index per collection in memory, one process at a time."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from penult.lookup.embedded import files
from penult.lookup.embedded.pieces import Ints, one_thread
from penult.lookup.embedded.record import Record
from penult.lookup.embedded.vectors import EXACT_NUMBERS, Builder, Vectors
from penult.lookup.errors import CollectionUnknown, StoreUnavailable
from penult.lookup.opening import RECORD
from penult.lookup.types import CollectionSpec, Filter, Floats, Hit, Item, Stats


class EmbeddedStore:
    """Collections in a folder; open it once per process, after any fork."""

    def __init__(self, folder: Path, exact_numbers: int = EXACT_NUMBERS) -> None:
        """Open or make the folder; raise StoreUnavailable where another process has it, or it is damaged."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = files.Lock(folder)
        except OSError as error:
            raise StoreUnavailable("STORE_FOLDER", f"{folder} cannot be used for collections: {error}") from error
        self._folder, self._exact_numbers = folder, exact_numbers
        try:
            self._record = Record(folder / RECORD)
        except BaseException:
            self._lock.release()
            raise
        self._open: dict[str, EmbeddedCollection] = {}
        self._changing = threading.RLock()

    def create(self, spec: CollectionSpec) -> "EmbeddedCollection":
        """Make an empty collection."""
        with self._changing:
            return self._opened(self._record.create(spec), spec)

    def open(self, name: str) -> "EmbeddedCollection":
        """Return a collection; its index is made the first time."""
        found = self._open.get(name)
        if found is not None:
            return found
        with self._changing:
            return self._open.get(name) or self._opened(*self._record.find(name))

    def specs(self) -> list[CollectionSpec]:
        """Return what collections there are."""
        return [spec for _, spec in self._record.specs()]

    def drop(self, name: str) -> None:
        """Remove a collection."""
        with self._changing:
            number, _ = self._record.find(name)
            self._forget(name, number, lambda: self._record.drop(number))

    def replace(self, name: str, by: str) -> None:
        """Give collection `by` the name of another, which is dropped."""
        with self._changing:
            old, _ = self._record.find(name)
            new, spec = self._record.find(by)
            self._forget(name, old, lambda: self._record.replace(old, new, name))
            taken = self._open.pop(by, None)
            if taken:
                taken.spec = replace(spec, name=name)
                self._open[name] = taken

    def close(self) -> None:
        """Wait for graphs that are being built, and close the files."""
        for collection in self._open.values():
            collection.close()
        self._record.close()
        self._lock.release()

    def _opened(self, number: int, spec: CollectionSpec) -> "EmbeddedCollection":
        vectors = Vectors(spec.dimension, self._exact_numbers)
        self._open[spec.name] = EmbeddedCollection(self._folder, self._record, number, spec, vectors)
        return self._open[spec.name]

    def _forget(self, name: str, number: int, act: Callable[[], None]) -> None:
        """Close a collection around what ends it, so that no thread writes to it any more."""
        collection = self._open.pop(name, None)
        if collection:
            collection.close()
        act()
        files.forget_graph(self._folder, number)


class EmbeddedCollection:
    """One collection; see penult.lookup.types.Collection."""

    def __init__(self, folder: Path, record: Record, number: int, spec: CollectionSpec, vectors: Vectors) -> None:
        """Make the index from the record, and from the graph on the disk if that is whole."""
        self.spec = spec
        self._folder, self._record, self._number, self._vectors = folder, record, number, vectors
        self._writing = threading.Lock()
        self._is_closed = False
        self._builder = Builder(self._build)
        one_thread()
        self._load()
        self._build_if_stale()

    def upsert(self, items: Sequence[Item]) -> None:
        """Store items: on the disk, then in the index."""
        with self._writing:
            self._check_open()
            seqs, gone = self._record.upsert(self._number, self.spec, items)
            # First with the new, then without the old: to no search is an item gone that is there before and after.
            self._vectors.append(np.array(seqs, dtype=np.int64), np.stack([item.vector for item in items]))
            self._vectors.remove(np.array(gone, dtype=np.int64))
        self._build_if_stale()

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items: from the disk, then from the index."""
        with self._writing:
            self._check_open()
            gone = self._record.delete(self._number, ids)
            self._vectors.remove(np.array(gone, dtype=np.int64))
        self._build_if_stale()
        return len(gone)

    def search(self, queries: Floats, k: int, where: Filter = ()) -> list[list[Hit]]:
        """Return the k nearest of each query."""
        one_thread()
        found = self._search(queries, k, where)
        if found is None:  # a change has reached the record and not yet the index: wait for it
            with self._writing:
                found = self._search(queries, k, where)
        assert found is not None  # nothing changes while we hold the lock
        return found

    def _search(self, queries: Floats, k: int, where: Filter) -> list[list[Hit]] | None:
        only = self._record.matching(self._number, self.spec, where) if where else None
        found = self._vectors.search(queries, k, only)
        rows = found.seqs.tolist()
        seqs = sorted({seq for row in rows for seq in row if seq >= 0})
        known = self._record.known(self._number, self.spec, seqs)
        if len(known) < len(seqs):
            return None
        return [
            [
                Hit(id_, similarity, label, metadata)
                for similarity, (id_, label, metadata) in zip(nearness, (known[s] for s in row if s >= 0), strict=False)
            ]
            for row, nearness in zip(rows, found.similarities.tolist(), strict=True)
        ]

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return items."""
        return self._record.get(self._number, self.spec, ids)

    def scan(self, after: str, limit: int) -> list[Item]:
        """Return the items that follow an id."""
        return self._record.scan(self._number, self.spec, after, limit)

    def stats(self) -> Stats:
        """Return what there is."""
        pieces = self._vectors.snapshot.pieces
        has_graph = any(piece.graph is not None for piece in pieces)
        return Stats(
            items=self._vectors.snapshot.rows,
            index="hnsw" if has_graph else "exact",
            unsealed=pieces[-1].rows - pieces[-1].gone if has_graph else 0,
            memory_bytes=sum(piece.memory_bytes for piece in pieces),
            disk_bytes=self._record.disk_bytes,
        )

    def settle(self) -> None:
        """Wait until the index is as it will stay without further changes."""
        self._builder.wait()

    def close(self) -> None:
        """Take no more changes, and wait for a graph that is being built."""
        with self._writing:
            self._is_closed = True
        self._builder.wait()

    def _check_open(self) -> None:
        if self._is_closed:  # dropped or replaced while the caller had it
            raise CollectionUnknown("COLLECTION_UNKNOWN", f"collection {self.spec.name} is gone")

    def _load(self) -> None:
        above = 0
        piece = files.load_graph(self._folder, self._record, self._number)
        if piece is not None:
            above = int(piece.seqs[piece.rows - 1])
            there = self._record.seqs(self._number, above)
            piece.remove(np.setdiff1d(piece.seqs[: piece.rows], there, assume_unique=True))
            self._vectors.take(piece)
        for seqs, vectors in self._record.vectors(self._number, self.spec, above):
            self._vectors.append(seqs, vectors)

    def _build_if_stale(self) -> None:
        if self._vectors.is_stale and not self._is_closed:
            self._builder.start()

    def _build(self) -> None:
        """Build a graph of the current rows, use it, save it; repeat if many rows came meanwhile."""
        while self._vectors.is_stale and not self._is_closed:
            # Half of the cores: searches go on meanwhile.
            piece = self._vectors.sealed_copy(max(1, len(os.sched_getaffinity(0)) // 2))
            with self._writing:
                self._vectors.swap(piece)
            if not self._is_closed:
                files.save_graph(self._folder, self._record, self._number, piece)

    def seqs(self) -> Ints:
        """Return the sequence numbers that the index holds, rising; the record must have the same."""
        pieces = self._vectors.snapshot.pieces
        return np.sort(np.concatenate([piece.seqs[: piece.rows][piece.there] for piece in pieces]))
