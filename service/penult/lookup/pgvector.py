"""Collections in PostgreSQL with pgvector: for several servers that share one store.

Exact while a collection is small, else by pgvector's HNSW index, which several servers build once. Vectors lie there as
float32, bit for bit. Names and values go in as parameters only; tables are named by number.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

from penult.lookup.errors import CollectionExists, CollectionUnknown, StoreUnavailable
from penult.lookup.types import LABEL, CollectionSpec, Filter, Floats, Hit, Item, Stats, Value

EXACT_NUMBERS = 50_000_000
_CONNECTIONS, _WAIT_S = 8, 10.0
_LINKS, _EF_BUILD, _EF_SEARCH, _MAX_EF = 16, 100, 128, 1000
# pgvector's HNSW takes vectors up to 2000 numbers, and up to 4000 in half precision.
_MAX_FULL, _MAX_HALF = 2000, 4000
# Up to so many matching rows a filter is answered by looking at each of them.
_FEW_ROWS = 20_000
# Several servers starting at once must not make the schema, or an index, side by side.
_SCHEMA_LOCK = 0x70656E756C74
_SQL = {"string": "text", "number": "double precision", "boolean": "boolean"}


class PgvectorStore:
    """Collections in the schema `penult` of one database."""

    def __init__(self, url: str, exact_numbers: int = EXACT_NUMBERS) -> None:
        """Connect to postgresql://…; raise StoreUnavailable if that fails, or if pgvector is missing."""
        self._exact_numbers = exact_numbers
        with _translated():
            with psycopg.connect(url, connect_timeout=int(_WAIT_S)) as db:
                _prepare(db)
            self._pool = ConnectionPool(
                url, min_size=1, max_size=_CONNECTIONS, timeout=_WAIT_S, configure=register_vector, open=True,
                check=ConnectionPool.check_connection,
            )  # fmt: skip

    def create(self, spec: CollectionSpec) -> "PgvectorCollection":
        """Make an empty collection."""
        with self.connected() as db:
            try:
                insert = "INSERT INTO penult.collections (name, spec) VALUES (%s, %s) RETURNING number"
                number = _one(db.execute(insert, (spec.name, json.dumps(asdict(spec)))))
            except psycopg.errors.UniqueViolation as error:
                raise CollectionExists("COLLECTION_EXISTS", f"there is a collection {spec.name} already") from error
            columns = "".join(f"m_{place} {_SQL[kind]}, " for place, kind in enumerate(spec.fields.values()))
            db.execute(
                _text(
                    f'CREATE TABLE penult.items_{number} (id text COLLATE "C" PRIMARY KEY, label text NOT NULL, '
                    f"{columns}vector vector({spec.dimension}) NOT NULL, source text NOT NULL, "
                    "thumbnail bytea NOT NULL)"
                )
            )
            for column in (LABEL, *(f"m_{place}" for place in range(len(spec.fields)))):
                db.execute(_text(f"CREATE INDEX ON penult.items_{number} ({column})"))
        return PgvectorCollection(self, number, spec, self._exact_numbers)

    def open(self, name: str) -> "PgvectorCollection":
        """Return a collection; read each time, because another server may have replaced it."""
        with self.connected() as db:
            number, spec = _find(db, name)
        return PgvectorCollection(self, number, spec, self._exact_numbers)

    def specs(self) -> list[CollectionSpec]:
        """Return what collections there are."""
        with self.connected() as db:
            rows = db.execute('SELECT name, spec FROM penult.collections ORDER BY name COLLATE "C"').fetchall()
        return [CollectionSpec(**(spec | {"name": name})) for name, spec in rows]

    def drop(self, name: str) -> None:
        """Remove a collection."""
        with self.connected() as db:
            _drop(db, _find(db, name)[0])

    def replace(self, name: str, by: str) -> None:
        """Give collection `by` the name of another, which is dropped, in one transaction."""
        with self.connected() as db:
            number, _ = _find(db, by)
            _drop(db, _find(db, name)[0])
            db.execute("UPDATE penult.collections SET name = %s WHERE number = %s", (name, number))

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    @contextmanager
    def connected(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection for one transaction; raise StoreUnavailable, or CollectionUnknown for a lost table."""
        with _translated():
            with self._pool.connection() as db:
                yield db


class PgvectorCollection:
    """One collection; see penult.lookup.types.Collection."""

    def __init__(self, store: PgvectorStore, number: int, spec: CollectionSpec, exact_numbers: int) -> None:
        """Refer to a collection that is there."""
        self.spec = spec
        self._store, self._number, self._exact_numbers = store, number, exact_numbers
        self._table = f"penult.items_{number}"
        self._columns = ["id", LABEL, *(f"m_{place}" for place in range(len(spec.fields)))]

    def upsert(self, items: Sequence[Item]) -> None:
        """Store items in one transaction."""
        columns = [*self._columns, "vector", "source", "thumbnail"]
        updates = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
        insert = _text(
            f"INSERT INTO {self._table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))}) "
            f"ON CONFLICT (id) DO UPDATE SET {updates}"
        )
        rows = [
            (
                i.id,
                i.label,
                *(i.metadata.get(name) for name in self.spec.fields),
                Vector(i.vector),
                i.source,
                i.thumbnail,
            )
            for i in sorted(items, key=lambda item: item.id)  # the same order everywhere, so that writers cannot block
        ]
        with self._store.connected() as db:
            db.cursor().executemany(insert, rows)
        self._index_if_large()

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items."""
        with self._store.connected() as db:
            return db.execute(_text(f"DELETE FROM {self._table} WHERE id = ANY(%s)"), (list(ids),)).rowcount

    def search(self, queries: Floats, k: int, where: Filter = ()) -> list[list[Hit]]:
        """Return the k nearest of each query."""
        terms, parameters = _condition(self.spec, where)
        with self._store.connected() as db:
            if where and self._matching(db, terms, parameters, _FEW_ROWS + 1) <= _FEW_ROWS:
                return [self._nearest(db, query, k, terms, parameters, exact=True) for query in queries]
            found = [self._nearest(db, query, k, terms, parameters, exact=False) for query in queries]
            shortest = min(len(hits) for hits in found)
            if shortest < k and self._matching(db, terms, parameters, k) > shortest:
                found = [self._nearest(db, query, k, terms, parameters, exact=True) for query in queries]
            return found

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return items."""
        query = _text(f"SELECT {self._all()} FROM {self._table} WHERE id = ANY(%s)")
        with self._store.connected() as db:
            found = {row[0]: self._item(row) for row in db.execute(query, (list(ids),))}
        return [found[id_] for id_ in ids if id_ in found]

    def scan(self, after: str, limit: int) -> list[Item]:
        """Return the items that follow an id."""
        query = _text(f"SELECT {self._all()} FROM {self._table} WHERE id > %s ORDER BY id LIMIT %s")
        with self._store.connected() as db:
            return [self._item(row) for row in db.execute(query, (after, limit))]

    def stats(self) -> Stats:
        """Return what there is."""
        with self._store.connected() as db:
            items = _one(db.execute(_text(f"SELECT count(*) FROM {self._table}")))
            disk = _one(db.execute("SELECT pg_total_relation_size(%s)", (self._table,)))
            return Stats(items=items, index="hnsw" if self._has_index(db) else "exact", disk_bytes=disk)

    def settle(self) -> None:
        """Make the index now, where there should be one."""
        with self._store.connected() as db:
            db.execute(_text(f"ANALYZE {self._table}"))
        self._index_if_large(in_background=False)

    def _nearest(
        self, db: psycopg.Connection[Any], query: Floats, k: int, terms: str, parameters: list[Any], exact: bool
    ) -> list[Hit]:
        db.execute(_text(f"SET LOCAL enable_indexscan = {'off' if exact else 'on'}"))
        db.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        db.execute(_text(f"SET LOCAL hnsw.ef_search = {min(_MAX_EF, max(_EF_SEARCH, 2 * k))}"))
        distance, limit, columns = "vector <=> %s", k, ", ".join(self._columns)
        statement = f"SELECT {columns}, 1 - ({distance}) FROM {self._table} WHERE {terms} ORDER BY {distance} LIMIT %s"
        vector = Vector(query)
        if self.spec.dimension > _MAX_FULL and not exact:  # found in half precision, ranked in full
            statement = (
                f"SELECT {columns}, 1 - ({distance}) AS similarity FROM (SELECT * FROM {self._table} WHERE {terms} "
                f"ORDER BY {self._half('vector')} <=> {self._half('%s')} LIMIT %s) AS near ORDER BY similarity DESC"
            )
            limit, arguments = 2 * k, [vector, *parameters, vector]
        else:
            arguments = [vector, *parameters, vector]
        rows = db.execute(_text(statement), [*arguments, limit]).fetchall()
        return [Hit(row[0], row[-1], row[1], _metadata(self.spec, row[2:-1])) for row in rows[:k]]

    def _half(self, what: str) -> str:
        return f"({what}::vector::halfvec({self.spec.dimension}))"

    def _matching(self, db: psycopg.Connection[Any], terms: str, parameters: list[Any], most: int) -> int:
        query = _text(f"SELECT count(*) FROM (SELECT 1 FROM {self._table} WHERE {terms} LIMIT %s) AS matching")
        return int(_one(db.execute(query, [*parameters, most])))

    def _index_if_large(self, in_background: bool = True) -> None:
        """Make the HNSW index once a collection is too large to be looked through."""
        if self.spec.dimension > _MAX_HALF:
            return
        with self._store.connected() as db:
            # PostgreSQL's own estimate, which its autovacuum keeps: counting would cost as much as a search.
            rows = _one(db.execute("SELECT reltuples FROM pg_class WHERE oid = %s::regclass", (self._table,)))
            if rows * self.spec.dimension <= self._exact_numbers or self._has_index(db):
                return
        if in_background:
            threading.Thread(target=self._make_index, name="penult-index", daemon=True).start()
        else:
            self._make_index()

    def _make_index(self) -> None:
        is_full = self.spec.dimension <= _MAX_FULL
        what = "vector vector_cosine_ops" if is_full else f"{self._half('vector')} halfvec_cosine_ops"
        with self._store.connected() as db:
            db.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK + self._number,))
            if not self._has_index(db):
                options = f"WITH (m = {_LINKS}, ef_construction = {_EF_BUILD})"
                db.execute(_text(f"CREATE INDEX {self._index_name()} ON {self._table} USING hnsw ({what}) {options}"))

    def _has_index(self, db: psycopg.Connection[Any]) -> bool:
        return bool(_one(db.execute("SELECT to_regclass(%s) IS NOT NULL", (f"penult.{self._index_name()}",))))

    def _index_name(self) -> str:
        return f"items_{self._number}_hnsw"

    def _all(self) -> str:
        return ", ".join([*self._columns, "vector", "source", "thumbnail"])

    def _item(self, row: tuple[Any, ...]) -> Item:
        *known, vector, source, thumbnail = row
        numbers = np.asarray(vector.to_numpy() if hasattr(vector, "to_numpy") else vector, dtype=np.float32)
        return Item(known[0], numbers, known[1], _metadata(self.spec, known[2:]), source, bytes(thumbnail))


def _text(statement: str) -> sql.SQL:
    """Mark a statement that holds our own words and numbers only; whatever callers name is a parameter."""
    return sql.SQL(statement)  # type: ignore[arg-type, unused-ignore]


def _prepare(db: psycopg.Connection[Any]) -> None:
    db.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
    db.execute("CREATE EXTENSION IF NOT EXISTS vector")
    db.execute("CREATE SCHEMA IF NOT EXISTS penult")
    db.execute(
        "CREATE TABLE IF NOT EXISTS penult.collections "
        "(number serial PRIMARY KEY, name text NOT NULL UNIQUE, spec json NOT NULL)"
    )


def _find(db: psycopg.Connection[Any], name: str) -> tuple[int, CollectionSpec]:
    row = db.execute("SELECT number, spec FROM penult.collections WHERE name = %s", (name,)).fetchone()
    if row is None:
        raise CollectionUnknown("COLLECTION_UNKNOWN", f"there is no collection {name[:64]}")
    return row[0], replace(CollectionSpec(**row[1]), name=name)


def _drop(db: psycopg.Connection[Any], number: int) -> None:
    db.execute("DELETE FROM penult.collections WHERE number = %s", (number,))
    db.execute(_text(f"DROP TABLE penult.items_{number}"))


def _condition(spec: CollectionSpec, where: Filter) -> tuple[str, list[Any]]:
    columns = {LABEL: LABEL} | {name: f"m_{place}" for place, name in enumerate(spec.fields)}
    terms, parameters = ["true"], list[Any]()
    for condition in where:
        column = columns[condition.field]
        if condition.values:
            terms.append(f"{column} = ANY(%s)")
            parameters.append(list(condition.values))
        for sign, bound in ((">=", condition.low), ("<=", condition.high)):
            if bound is not None:
                terms.append(f"{column} {sign} %s")
                parameters.append(bound)
    return " AND ".join(terms), parameters


def _metadata(spec: CollectionSpec, values: Sequence[Any]) -> dict[str, Value]:
    return {name: value for name, value in zip(spec.fields, values, strict=True) if value is not None}


def _one(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    assert row is not None  # each statement that this follows gives one row
    return row[0]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UndefinedTable as error:  # dropped or replaced, maybe by another server
        raise CollectionUnknown("COLLECTION_UNKNOWN", "the collection is gone") from error
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
        raise StoreUnavailable("STORE_PGVECTOR", f"the database has no pgvector: {_line(error)}") from error
    except (psycopg.OperationalError, PoolTimeout) as error:
        raise StoreUnavailable("STORE_UNREACHABLE", f"the database does not answer: {_line(error)}") from error


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
