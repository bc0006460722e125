"""What is refused before any engine sees it: engines differ in what they take (research/lookup.md, Reject)."""

import json
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from penult.lookup.errors import LookupRefused, OtherDescriptors
from penult.lookup.types import COSINE, FIELD_TYPES, LABEL, CollectionSpec, Filter, Floats, Item, Value

MAX_ITEMS = 1000  # of a batch
MAX_K = 1000
MAX_QUERIES = 256
MAX_FIELDS = 32
_ID_BYTES, _LABEL_BYTES, _METADATA_BYTES, _SOURCE_BYTES, _THUMBNAIL_BYTES = 512, 512, 16 << 10, 4096, 45 << 10
_MAX_VALUES = 256
# A descriptor above this is no network's; below that length its direction is noise.
_LARGEST, _SHORTEST = 1e4, 1e-6
_MAX_NUMBERS = 16_384
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_KINDS = {"string": str, "number": float, "boolean": bool}


def check_name(name: str) -> None:
    """Raise LookupRefused for what is no name of a collection."""
    if not _NAME.fullmatch(name):
        raise LookupRefused("COLLECTION_NAME", "a collection's name is 1 to 64 letters, digits, '_' and '-'")


def check_spec(spec: CollectionSpec) -> None:
    """Raise LookupRefused for a collection that cannot be."""
    check_name(spec.name)
    if not 1 <= spec.dimension <= _MAX_NUMBERS:
        raise LookupRefused("COLLECTION_DIMENSION", f"descriptors have 1 to {_MAX_NUMBERS} numbers")
    if spec.metric != COSINE:
        raise LookupRefused("COLLECTION_METRIC", f"the metric is {COSINE}; there is no {spec.metric[:32]!r}")
    if len(spec.fields) > MAX_FIELDS:
        raise LookupRefused("COLLECTION_FIELDS", f"a collection declares {MAX_FIELDS} metadata fields at most")
    for name, kind in spec.fields.items():
        if name == LABEL or not _FIELD.fullmatch(name) or kind not in FIELD_TYPES:
            raise LookupRefused(
                "COLLECTION_FIELDS",
                f"a field is a word like price, other than {LABEL}, with the type {', '.join(FIELD_TYPES)}",
            )


def check_fingerprint(spec: CollectionSpec, fingerprint: str) -> None:
    """Raise OtherDescriptors where descriptors are not of the collection's model."""
    if fingerprint != spec.fingerprint:
        raise OtherDescriptors(
            "FINGERPRINT",
            f"collection {spec.name} holds descriptors of model {spec.model or '?'} ({spec.fingerprint[:12]}), these "
            f"are another's ({fingerprint[:12]}); make a new one with penult index reindex",
        )


def check_items(spec: CollectionSpec, items: Sequence[Item]) -> None:
    """Raise LookupRefused for a batch that cannot be stored; it names the first item that is wrong."""
    if not 1 <= len(items) <= MAX_ITEMS:
        raise LookupRefused("ITEM_COUNT", f"a batch has 1 to {MAX_ITEMS} items; this one {len(items)}")
    check_ids([item.id for item in items])
    if len({item.id for item in items}) != len(items):
        raise LookupRefused("ID_TWICE", "a batch names each id once")
    check_vectors(spec, [item.vector for item in items], "item")
    for place, item in enumerate(items):
        _check_text(item.label, _LABEL_BYTES, "LABEL", f"item {place}: a label")
        _check_text(item.source, _SOURCE_BYTES, "SOURCE", f"item {place}: a source")
        if len(item.thumbnail) > _THUMBNAIL_BYTES:
            raise LookupRefused("THUMBNAIL", f"item {place}: a thumbnail has {_THUMBNAIL_BYTES >> 10} KiB at most")
        _check_metadata(spec, place, item.metadata)


def check_ids(ids: Sequence[str]) -> None:
    """Raise LookupRefused for ids that cannot be, or too many."""
    if not 1 <= len(ids) <= MAX_ITEMS:
        raise LookupRefused("ITEM_COUNT", f"a request names 1 to {MAX_ITEMS} ids; this one {len(ids)}")
    for place, id_ in enumerate(ids):
        if not id_:
            raise LookupRefused("ID", f"item {place}: an id must not be empty")
        _check_text(id_, _ID_BYTES, "ID", f"item {place}: an id")


def check_vectors(spec: CollectionSpec, vectors: Sequence[Floats], what: str) -> None:
    """Raise LookupRefused for descriptors of another length, not finite, without direction, or absurdly large."""
    for place, vector in enumerate(vectors):
        if vector.dtype != np.float32 or vector.shape != (spec.dimension,):
            raise LookupRefused(
                "DESCRIPTOR_LENGTH",
                f"{what} {place}: {vector.size} numbers; collection {spec.name} holds descriptors of {spec.dimension}",
            )
        largest = float(np.abs(vector).max())
        if not math.isfinite(largest) or largest > _LARGEST:  # NaN is not finite either
            raise LookupRefused("DESCRIPTOR_VALUES", f"{what} {place}: numbers must be finite, and below {_LARGEST:g}")
        if float(np.linalg.norm(vector)) < _SHORTEST:
            raise LookupRefused("DESCRIPTOR_ZERO", f"{what} {place}: all numbers are zero, so it points nowhere")


def check_query(spec: CollectionSpec, queries: Sequence[Floats], k: int, where: Filter) -> None:
    """Raise LookupRefused for a search that cannot be."""
    if not 1 <= len(queries) <= MAX_QUERIES:
        raise LookupRefused("QUERY_COUNT", f"a request looks up 1 to {MAX_QUERIES} descriptors")
    if not 1 <= k <= MAX_K:
        raise LookupRefused("K", f"k is 1 to {MAX_K}; this is {k}")
    check_vectors(spec, queries, "query")
    for condition in where:
        kind = "string" if condition.field == LABEL else spec.fields.get(condition.field)
        if kind is None:
            known = ", ".join([LABEL, *spec.fields])
            raise LookupRefused("FILTER_FIELD", f"there is no field {condition.field[:64]!r}; there is {known}")
        _check_condition(condition.field, kind, condition.values, (condition.low, condition.high))


def _check_condition(name: str, kind: str, values: Sequence[Value], bounds: tuple[float | None, ...]) -> None:
    is_range = any(bound is not None for bound in bounds)
    if bool(values) == is_range:
        raise LookupRefused("FILTER", f"the filter on {name} gives either values or a range")
    if is_range and kind != "number":
        raise LookupRefused("FILTER", f"{name} is a {kind}, and has no range")
    if len(values) > _MAX_VALUES:
        raise LookupRefused("FILTER", f"the filter on {name} gives more than {_MAX_VALUES} values")
    for value in [*values, *(bound for bound in bounds if bound is not None)]:
        _check_value(name, kind, value)


def _check_metadata(spec: CollectionSpec, place: int, metadata: Mapping[str, Value]) -> None:
    for name, value in metadata.items():
        kind = spec.fields.get(name)
        if kind is None:
            known = ", ".join(spec.fields) or "none"
            raise LookupRefused(
                "METADATA_FIELD",
                f"item {place}: {name[:64]!r} is not declared; collection {spec.name} declares {known}",
            )
        _check_value(name, kind, value)
    if len(json.dumps(dict(metadata))) > _METADATA_BYTES:
        raise LookupRefused("METADATA_SIZE", f"item {place}: metadata have {_METADATA_BYTES >> 10} KiB at most")


def _check_value(name: str, kind: str, value: Value) -> None:
    if type(value) is not _KINDS[kind]:
        raise LookupRefused("METADATA_TYPE", f"{name} is a {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise LookupRefused("METADATA_TYPE", f"{name} must be finite")
    if isinstance(value, str):
        _check_text(value, _METADATA_BYTES, "METADATA_SIZE", name)


def _check_text(text: str, most_bytes: int, reason: str, what: str) -> None:
    # PostgreSQL's texts cannot hold a zero.
    if len(text.encode(errors="surrogatepass")) > most_bytes or "\0" in text:
        raise LookupRefused(reason, f"{what} has {most_bytes} bytes at most, none of them zero")
