"""Collections in Milvus: distributed, for more items than one machine holds, and for many servers.

Each collection has a random name in Milvus and an alias with its real name. Moving the alias replaces a collection in
one step. Its kind is in its description. All reads have strong consistency, so that acknowledged items are found.
Filters are made of checked parts only: declared fields, and values as Milvus's constants.
"""

import base64
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from penult.lookup.errors import CollectionExists, CollectionUnknown, StoreUnavailable
from penult.lookup.types import LABEL, CollectionSpec, Filter, Floats, Hit, Item, Stats
from penult.proxies import channel_options

_PREFIX, _ALIAS = "penult_", "penult_a_"
_CONNECT_S, _TIMEOUT_S = 10.0, 60.0
_LINKS, _EF_BUILD, _EF_SEARCH, _MAX_EF = 16, 100, 128, 32_768
_TEXT_BYTES, _ID_BYTES, _SOURCE_BYTES = 65_535, 512, 4096
_STRONG = "Strong"
# Up to so many matching rows a filter is answered by looking at each; more are never fetched at a time.
_FEW_ROWS, _PAGE = 1000, 1000
_LOCATED = ["id", LABEL, "metadata"]
_WHOLE = [*_LOCATED, "vector", "source", "thumbnail"]
_NOT_THERE = ("not found", "can't find", "not exist")


class MilvusStore:
    """Collections whose names begin with penult_ in one database."""

    def __init__(self, url: str) -> None:
        """Connect to milvus://[USER:PASSWORD@]HOST:PORT[/DATABASE][?index=flat|hnsw]; raise StoreUnavailable."""
        parts = urlsplit(url)
        self._index = parse_qs(parts.query).get("index", ["hnsw"])[0]
        if self._index not in ("flat", "hnsw") or not parts.hostname:
            line = "--lookup milvus://HOST:PORT, maybe with ?index=flat or ?index=hnsw"
            raise StoreUnavailable("STORE_UNKNOWN", line)
        user = f"{parts.username}:{parts.password or ''}" if parts.username else ""
        with _translated():
            self._client = MilvusClient(
                f"http://{parts.hostname}:{parts.port or 19530}", token=user, db_name=parts.path.strip("/"),
                timeout=_CONNECT_S, grpc_options=dict(channel_options(parts.hostname, str(parts.port or ""))),
            )  # fmt: skip

    def create(self, spec: CollectionSpec) -> "MilvusCollection":
        """Make an empty collection."""
        real = f"{_PREFIX}{uuid.uuid4().hex}"
        schema = self._client.create_schema(enable_dynamic_field=False, description=json.dumps(asdict(spec)))
        schema.add_field("id", DataType.VARCHAR, max_length=_ID_BYTES, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=spec.dimension)
        for name, length in ((LABEL, _ID_BYTES), ("source", _SOURCE_BYTES), ("thumbnail", _TEXT_BYTES)):
            schema.add_field(name, DataType.VARCHAR, max_length=length)
        schema.add_field("metadata", DataType.JSON)
        how = self._client.prepare_index_params()
        options = {"M": _LINKS, "efConstruction": _EF_BUILD} if self._index == "hnsw" else {}
        how.add_index("vector", index_type=self._index.upper(), metric_type="COSINE", params=options)
        with _translated():
            self._client.create_collection(
                real, schema=schema, index_params=how, consistency_level=_STRONG, timeout=_TIMEOUT_S
            )
            try:
                self._client.create_alias(real, _alias(spec.name))
            except MilvusException as error:
                self._client.drop_collection(real)
                raise CollectionExists("COLLECTION_EXISTS", f"there is a collection {spec.name} already") from error
        return MilvusCollection(self._client, real, spec, self._index)

    def open(self, name: str) -> "MilvusCollection":
        """Return a collection; read each time, because another server may have replaced it."""
        with _translated():
            description = self._client.describe_collection(_alias(name))
        spec = CollectionSpec(**json.loads(description["description"]))
        return MilvusCollection(self._client, description["collection_name"], replace(spec, name=name), self._index)

    def specs(self) -> list[CollectionSpec]:
        """Return what collections there are."""
        found = []
        with _translated():
            for real in self._client.list_collections():
                description = self._client.describe_collection(real) if real.startswith(_PREFIX) else {}
                for alias in (each for each in description.get("aliases", ()) if each.startswith(_ALIAS)):
                    name = bytes.fromhex(alias.removeprefix(_ALIAS)).decode()
                    found.append(replace(CollectionSpec(**json.loads(description["description"])), name=name))
        return sorted(found, key=lambda spec: spec.name)

    def drop(self, name: str) -> None:
        """Remove a collection."""
        real = self.open(name).real
        with _translated():
            self._client.drop_alias(_alias(name))
            self._client.drop_collection(real)

    def replace(self, name: str, by: str) -> None:
        """Give collection `by` the name of another, which is dropped."""
        old, new = self.open(name).real, self.open(by).real
        with _translated():
            self._client.alter_alias(new, _alias(name))  # the one step that searches see
            self._client.drop_alias(_alias(by))
            self._client.drop_collection(old)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class MilvusCollection:
    """One collection; see penult.lookup.types.Collection."""

    def __init__(self, client: MilvusClient, real: str, spec: CollectionSpec, index: str) -> None:
        """Refer to a collection that is there, by Milvus's own name."""
        self.spec, self.real = spec, real
        self._client, self._index = client, index

    def upsert(self, items: Sequence[Item]) -> None:
        """Store items in one request."""
        rows = [
            {
                "id": item.id,
                "vector": item.vector.tolist(),
                LABEL: item.label,
                "metadata": dict(item.metadata),
                "source": item.source,
                "thumbnail": base64.b64encode(item.thumbnail).decode(),
            }
            for item in items
        ]
        with _translated():
            self._client.upsert(self.real, rows, timeout=_TIMEOUT_S)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items; those that are there are counted before, for Milvus counts what was asked for."""
        with _translated():
            there = len(self._query(f"id in {_constant(list(ids))}", ["id"], len(ids)))
            if there:
                self._client.delete(self.real, ids=list(ids), timeout=_TIMEOUT_S)
            return there

    def search(self, queries: Floats, k: int, where: Filter = ()) -> list[list[Hit]]:
        """Return the k nearest of each query."""
        terms = _condition(where)
        with _translated():
            matching = self._count(terms) if where else 0
            if where and matching <= _FEW_ROWS:
                return self._exactly(queries, k, terms)
            found = self._nearest(queries, k, terms, max(_EF_SEARCH, 2 * k))
            if any(len(hits) < k for hits in found):
                wanted = min(k, matching if where else self._count(""))
                if any(len(hits) < wanted for hits in found):
                    found = self._nearest(queries, k, terms, _MAX_EF)
                if any(len(hits) < wanted for hits in found):
                    return self._exactly(queries, k, terms)
            return found

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Return items."""
        with _translated():
            rows = self._query(f"id in {_constant(list(ids))}", _WHOLE, len(ids))
        found = {row["id"]: _item(row) for row in rows}
        return [found[id_] for id_ in ids if id_ in found]

    def scan(self, after: str, limit: int) -> list[Item]:
        """Return the items that follow an id."""
        with _translated():
            return [_item(row) for row in self._query(f"id > {_constant(after)}", _WHOLE, limit)]

    def stats(self) -> Stats:
        """Return what there is."""
        with _translated():
            return Stats(items=self._count(""), index="exact" if self._index == "flat" else "hnsw")

    def settle(self) -> None:
        """Seal what has come, so that the index holds it."""
        with _translated():
            self._client.flush(self.real, timeout=_TIMEOUT_S)

    def _nearest(self, queries: Floats, k: int, terms: str, ef: int) -> list[list[Hit]]:
        how = {"metric_type": "COSINE", "params": {"ef": ef} if self._index == "hnsw" else {}}
        answers = self._client.search(
            self.real, queries.tolist(), filter=terms, limit=k, output_fields=_LOCATED, search_params=how,
            consistency_level=_STRONG, timeout=_TIMEOUT_S,
        )  # fmt: skip
        return [[_hit(found["entity"] | {"id": found["id"]}, found["distance"]) for found in hits] for hits in answers]

    def _exactly(self, queries: Floats, k: int, terms: str) -> list[list[Hit]]:
        """Look at every row that matches, page by page."""
        units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        best: list[list[Hit]] = [[] for _ in queries]
        after = ""
        while rows := self._query(_and(terms, f"id > {_constant(after)}"), [*_LOCATED, "vector"], _PAGE):
            vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
            similarities = units @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
            for place, row in enumerate(similarities):
                hits = best[place] + [_hit(r, float(s)) for r, s in zip(rows, row, strict=True)]
                best[place] = sorted(hits, key=lambda hit: -hit.similarity)[:k]
            after = rows[-1]["id"]
        return best

    def _query(self, terms: str, fields: Sequence[str], limit: int) -> list[dict[str, Any]]:
        found = self._client.query(
            self.real,
            filter=terms,
            output_fields=list(fields),
            limit=limit,
            consistency_level=_STRONG,
            timeout=_TIMEOUT_S,
        )
        return sorted(found, key=lambda row: str(row["id"]).encode())

    def _count(self, terms: str) -> int:
        (found,) = self._client.query(
            self.real, filter=terms, output_fields=["count(*)"], consistency_level=_STRONG, timeout=_TIMEOUT_S
        )
        return int(found["count(*)"])


def _alias(name: str) -> str:
    """Return Milvus's name for ours: it knows no dashes."""
    return _ALIAS + name.encode().hex()


def _condition(where: Filter) -> str:
    terms = []
    for condition in where:
        name = LABEL if condition.field == LABEL else f'metadata["{condition.field}"]'
        if condition.values:
            # One by one: of JSON, Milvus 2.3 does not take truth values in a list.
            terms.append("(" + " || ".join(f"{name} == {_constant(value)}" for value in condition.values) + ")")
        for sign, bound in ((">=", condition.low), ("<=", condition.high)):
            if bound is not None:
                terms.append(f"{name} {sign} {_constant(bound)}")
    return " && ".join(terms)


def _constant(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _and(*terms: str) -> str:
    return " && ".join(f"({term})" for term in terms if term)


def _hit(row: dict[str, Any], similarity: float) -> Hit:
    return Hit(row["id"], similarity, row[LABEL], row["metadata"])


def _item(row: dict[str, Any]) -> Item:
    vector, thumbnail = np.array(row["vector"], dtype=np.float32), base64.b64decode(row["thumbnail"])
    return Item(row["id"], vector, row[LABEL], row["metadata"], row["source"], thumbnail)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except MilvusException as error:
        line = next(iter(str(error.message).splitlines()), "no reason given")
        if any(words in line for words in _NOT_THERE):
            raise CollectionUnknown("COLLECTION_UNKNOWN", "there is no such collection") from error
        raise StoreUnavailable("STORE_UNREACHABLE", f"Milvus: {line}") from error
