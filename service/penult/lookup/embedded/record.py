"""The record: one SQLite file that holds every collection, and is right whatever else is lost.

WAL with synchronous=FULL: a change is on the disk when it is acknowledged. Rows carry a sequence number that is never
used twice; the index in memory knows rows by it. What callers name (ids, values) only ever goes in as a parameter.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.lookup.errors import CollectionExists, CollectionUnknown, StoreUnavailable
from penult.lookup.types import LABEL, CollectionSpec, Filter, Floats, Item, Value

_FORMAT = 1
# A descriptor of 512 numbers fills half of the default's 4 KiB page, and wastes the other half.
_PAGE_BYTES = 16 << 10
# Per connection, so per thread that searches: what is read of hits stays at hand.
_CACHE_KIB = 16 << 10
_CHUNK_ROWS = 4096
# SQLite's own limit is higher; so many parameters at a time are plenty.
_MAX_PARAMETERS = 500


Known = tuple[str, str, dict[str, Value]]


class Record:
    """The SQLite file. One thread at a time writes; each thread that reads has a connection of its own."""

    def __init__(self, path: Path) -> None:
        """Open or create it; raise StoreUnavailable."""
        self._path, self._local, self._opened = path, threading.local(), list[sqlite3.Connection]()
        self._writer_lock, self._opened_lock = threading.Lock(), threading.Lock()
        try:
            self._writer = self._connect()
            self._prepare()
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise StoreUnavailable("STORE_DAMAGED", f"{path} cannot be opened: {error}") from error
            raise

    def close(self) -> None:
        """Close all connections."""
        with self._opened_lock:
            for connection in self._opened:
                connection.close()

    @property
    def disk_bytes(self) -> int:
        """What the file and its log take."""
        return sum(p.stat().st_size for p in self._path.parent.glob(self._path.name + "*") if p.exists())

    # -- collections -----------------------------------------------------------------------------------------------

    def specs(self) -> list[tuple[int, CollectionSpec]]:
        """Return all collections with their numbers, by name."""
        rows = self._reader().execute("SELECT number, name, spec FROM collections ORDER BY name").fetchall()
        return [(number, CollectionSpec(**(json.loads(spec) | {"name": name}))) for number, name, spec in rows]

    def find(self, name: str) -> tuple[int, CollectionSpec]:
        """Return a collection's number and spec; raise CollectionUnknown."""
        for number, spec in self.specs():
            if spec.name == name:
                return number, spec
        raise CollectionUnknown("COLLECTION_UNKNOWN", f"there is no collection {name[:64]}")

    def create(self, spec: CollectionSpec) -> int:
        """Make a collection and return its number; raise CollectionExists."""
        with self._writing() as db:
            try:
                number = db.execute(
                    "INSERT INTO collections (name, spec) VALUES (?, ?)", (spec.name, json.dumps(asdict(spec)))
                ).lastrowid
            except sqlite3.IntegrityError as error:
                raise CollectionExists("COLLECTION_EXISTS", f"there is a collection {spec.name} already") from error
            assert number is not None  # SQLite numbers every row
            columns = ["id TEXT NOT NULL UNIQUE", "label TEXT NOT NULL"]
            columns += [f"m_{place} {_SQL[kind]}" for place, kind in enumerate(spec.fields.values())]
            db.execute(f"CREATE TABLE items_{number} (seq INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(columns)})")
            # Apart, so that what a search reads of its hits lies close together.
            db.execute(
                f"CREATE TABLE blobs_{number} (seq INTEGER PRIMARY KEY, vector BLOB NOT NULL, source TEXT NOT NULL, "
                "thumbnail BLOB NOT NULL)"
            )
            for column in ("label", *(f"m_{place}" for place in range(len(spec.fields)))):
                db.execute(f"CREATE INDEX items_{number}_{column} ON items_{number} ({column})")
            return number

    def drop(self, number: int) -> None:
        """Remove a collection."""
        with self._writing() as db:
            _drop(db, number)

    def replace(self, old: int, new: int, name: str) -> None:
        """Remove one collection and give its name to another."""
        with self._writing() as db:
            _drop(db, old)
            db.execute("UPDATE collections SET name = ? WHERE number = ?", (name, new))

    # -- items -----------------------------------------------------------------------------------------------------

    def upsert(self, number: int, spec: CollectionSpec, items: Sequence[Item]) -> tuple[list[int], list[int]]:
        """Store items; return their sequence numbers, and those of the rows that they took the place of."""
        columns = ["id", LABEL, *(f"m_{place}" for place in range(len(spec.fields)))]
        insert = f"INSERT INTO items_{number} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        with self._writing() as db:
            gone = _delete(db, number, [item.id for item in items])
            added = []
            for item in items:
                extra = (item.metadata.get(name) for name in spec.fields)
                seq = db.execute(insert, (item.id, item.label, *extra)).lastrowid
                blobs = (seq, item.vector.tobytes(), item.source, item.thumbnail)
                db.execute(f"INSERT INTO blobs_{number} VALUES (?, ?, ?, ?)", blobs)
                added.append(seq)
        return [seq for seq in added if seq is not None], gone

    def delete(self, number: int, ids: Sequence[str]) -> list[int]:
        """Remove items and return their sequence numbers."""
        with self._writing() as db:
            return _delete(db, number, ids)

    def matching(self, number: int, spec: CollectionSpec, where: Filter) -> NDArray[np.int64]:
        """Return the sequence numbers of the rows that match, int64, rising."""
        terms, parameters = _condition(spec, where)
        rows = self._reader().execute(f"SELECT seq FROM items_{number} WHERE {terms}", parameters)
        rows.arraysize = _CHUNK_ROWS
        return np.sort(np.fromiter((seq for (seq,) in rows), dtype=np.int64))

    def vectors(self, number: int, spec: CollectionSpec, above: int = 0) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Yield sequence numbers above one, rising, with vectors, float32 [rows, dimension], chunk by chunk."""
        rows = self._reader().execute(f"SELECT seq, vector FROM blobs_{number} WHERE seq > ? ORDER BY seq", (above,))
        while chunk := rows.fetchmany(_CHUNK_ROWS):
            numbers = np.frombuffer(b"".join(vector for _, vector in chunk), dtype=np.float32)
            yield np.array([seq for seq, _ in chunk], dtype=np.int64), numbers.reshape(-1, spec.dimension)

    def seqs(self, number: int, upto: int) -> NDArray[np.int64]:
        """Return the sequence numbers that are there, up to one, int64, rising."""
        rows = self._reader().execute(f"SELECT seq FROM items_{number} WHERE seq <= ? ORDER BY seq", (upto,))
        return np.fromiter((seq for (seq,) in rows), dtype=np.int64)

    def known(self, number: int, spec: CollectionSpec, seqs: Sequence[int]) -> dict[int, Known]:
        """Return id, label and metadata by sequence number; those gone are left out."""
        columns = ["seq", "id", LABEL, *(f"m_{place}" for place in range(len(spec.fields)))]
        rows = self._some(f"SELECT {', '.join(columns)} FROM items_{number} WHERE seq IN", seqs)
        return {row[0]: (row[1], row[2], _metadata(spec, row[3:])) for row in rows}

    def get(self, number: int, spec: CollectionSpec, ids: Sequence[str]) -> list[Item]:
        """Return the items that are there, in the order asked for."""
        rows = self._some(f"SELECT {_all(spec)} FROM {_whole(number)} WHERE id IN", ids)
        found = {row[0]: _item(spec, row) for row in rows}
        return [found[id_] for id_ in ids if id_ in found]

    def scan(self, number: int, spec: CollectionSpec, after: str, limit: int) -> list[Item]:
        """Return the items that follow an id."""
        query = f"SELECT {_all(spec)} FROM {_whole(number)} WHERE id > ? ORDER BY id LIMIT ?"
        return [_item(spec, row) for row in self._reader().execute(query, (after, limit))]

    def count(self, number: int) -> int:
        """Return how many items there are."""
        (count,) = self._reader().execute(f"SELECT count(*) FROM items_{number}").fetchone()
        return int(count)

    # -- seals: what an index file on disk stands for --------------------------------------------------------------

    def seal(self, number: int, token: str, upto: int) -> None:
        """Note that an index file named by a token holds the rows up to a sequence number."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO seals VALUES (?, ?, ?)", (number, token, upto))

    def sealed(self, number: int) -> tuple[str, int] | None:
        """Return the token of the index file that belongs to what is recorded."""
        found = self._reader().execute("SELECT token, upto FROM seals WHERE number = ?", (number,)).fetchone()
        return (found[0], found[1]) if found else None

    # -- connections -----------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        with self._opened_lock:
            self._opened.append(db)
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return db

    def _reader(self) -> sqlite3.Connection:
        if not hasattr(self._local, "db"):
            self._local.db = self._connect()
        db: sqlite3.Connection = self._local.db
        return db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Write all of it or nothing; on the disk on return. Raises StoreUnavailable, as for a full disk."""
        with self._writer_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise StoreUnavailable("STORE_WRITE", f"the collections cannot be written: {error}") from error

    def _prepare(self) -> None:
        with self._writing() as db:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                raise StoreUnavailable("STORE_FORMAT", f"{self._path} is of format {found}, made by a newer penult")
            db.execute(f"PRAGMA user_version = {_FORMAT}")
            db.execute(
                "CREATE TABLE IF NOT EXISTS collections (number INTEGER PRIMARY KEY AUTOINCREMENT, "
                "name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL)"
            )
            db.execute("CREATE TABLE IF NOT EXISTS seals (number INTEGER PRIMARY KEY, token TEXT, upto INTEGER)")

    def _some(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for at in range(0, len(values), _MAX_PARAMETERS):
            part = values[at : at + _MAX_PARAMETERS]
            found += self._reader().execute(f"{query} ({', '.join('?' * len(part))})", part).fetchall()
        return found


_SQL = {"string": "TEXT", "number": "REAL", "boolean": "INTEGER"}


def _whole(number: int) -> str:
    return f"items_{number} JOIN blobs_{number} USING (seq)"


def _all(spec: CollectionSpec) -> str:
    columns = ["id", "vector", LABEL, "source", "thumbnail", *(f"m_{place}" for place in range(len(spec.fields)))]
    return ", ".join(columns)


def _item(spec: CollectionSpec, row: tuple[Any, ...]) -> Item:
    id_, vector, label, source, thumbnail = row[:5]
    return Item(id_, np.frombuffer(vector, dtype=np.float32), label, _metadata(spec, row[5:]), source, thumbnail)


def _metadata(spec: CollectionSpec, values: Sequence[object]) -> dict[str, Value]:
    """Return declared fields that a row has; SQLite knows no booleans."""
    if not spec.fields:
        return {}
    found: dict[str, Value] = {}
    for (name, kind), value in zip(spec.fields.items(), values, strict=True):
        if value is not None:
            assert isinstance(value, (str, int, float))
            found[name] = bool(value) if kind == "boolean" else value
    return found


def _condition(spec: CollectionSpec, where: Filter) -> tuple[str, list[Value]]:
    columns = {LABEL: LABEL} | {name: f"m_{place}" for place, name in enumerate(spec.fields)}
    terms, parameters = [], list[Value]()
    for condition in where:
        column = columns[condition.field]
        if condition.values:
            terms.append(f"{column} IN ({', '.join('?' * len(condition.values))})")
            parameters += condition.values
        for sign, bound in ((">=", condition.low), ("<=", condition.high)):
            if bound is not None:
                terms.append(f"{column} {sign} ?")
                parameters.append(bound)
    return " AND ".join(terms), parameters


def _delete(db: sqlite3.Connection, number: int, ids: Sequence[str]) -> list[int]:
    delete = f"DELETE FROM items_{number} WHERE id = ? RETURNING seq"
    gone = [seq for id_ in ids for (seq,) in db.execute(delete, (id_,)).fetchall()]
    db.executemany(f"DELETE FROM blobs_{number} WHERE seq = ?", [(seq,) for seq in gone])
    return gone


def _drop(db: sqlite3.Connection, number: int) -> None:
    db.execute(f"DROP TABLE items_{number}")
    db.execute(f"DROP TABLE blobs_{number}")
    db.execute("DELETE FROM collections WHERE number = ?", (number,))
    db.execute("DELETE FROM seals WHERE number = ?", (number,))
