"""Parquet files of items, images and descriptors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from penult.client.types import NewItem, RequestFailed, StoredItem

_OWN = ("id", "label", "descriptor", "image", "source", "thumbnail")
# Columns that `penult describe` adds, which are not metadata.
_DESCRIBED = ("model", "version", "fingerprint", "error")
_ROWS, _PHOTO_ROWS, _GROUP_ROWS = 500, 32, 8192
_ARROW = {"string": pa.string(), "number": pa.float64(), "boolean": pa.bool_()}


@dataclass(frozen=True)
class Described:
    """Which model made the descriptors of a file, and how many numbers each has."""

    model: str
    version: int
    fingerprint: str
    length: int


@dataclass(frozen=True)
class Row:
    """An image with its descriptor, float32 [length], or the error."""

    id: str
    label: str
    descriptor: Any
    error: str | None


def row_count(path: Path) -> int:
    """Return how many rows a file has; raise RequestFailed if it is no Parquet file."""
    return int(_open(path).metadata.num_rows)


def field_types(path: Path) -> dict[str, str]:
    """Return the metadata fields of a file, which are its other columns. Raises RequestFailed."""
    schema = _open(path).schema_arrow
    missing = "id" not in schema.names or not {"descriptor", "image"} & set(schema.names)
    if missing:
        raise _wrong(path, "needs a column id, and descriptor (lists of numbers) or image (files' bytes)")
    found = {}
    own = _OWN if described_in(path) is None else (*_OWN, *_DESCRIBED)
    for column in schema:
        if column.name not in own:
            found[column.name] = _kind(path, column)
    return found


def read_items(path: Path) -> Iterator[NewItem]:
    """Yield the items of a file, a row each; of `penult describe`'s, those without an error. Raises RequestFailed."""
    types, described = field_types(path), described_in(path)
    for batch in _open(path).iter_batches(_ROWS):
        for row in batch.to_pylist():
            if described is None:
                yield _item(path, row, types)
            elif row["error"] is None:
                yield _item(path, row, types, described.fingerprint)


def write_items(path: Path, items: Iterable[Sequence[StoredItem]], types: Mapping[str, str]) -> int:
    """Write pages of stored items, with descriptors, to a file that read_items() takes; return how many."""
    own = {"id": pa.string(), "label": pa.string(), "descriptor": pa.list_(pa.float32()), "source": pa.string()}
    schema = pa.schema([*own.items(), ("thumbnail", pa.binary()), *((n, _ARROW[kind]) for n, kind in types.items())])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for page in items:
            rows = [
                {"id": i.id, "label": i.label, "descriptor": i.descriptor, "source": i.source, "thumbnail": i.thumbnail}
                | {name: i.metadata.get(name) for name in types}
                for i in page
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


# -- photos in, descriptors out ----------------------------------------------------------------------------------------


def column_names(path: Path) -> list[str]:
    """Return the names of a file's columns. Raises RequestFailed."""
    return list(_open(path).schema_arrow.names)


def check_photo_columns(path: Path, column: str, id_column: str) -> str:
    """Return which column has ids, "" for none ("id" need not be there); raise RequestFailed."""
    schema = _open(path).schema_arrow
    for name in (column, id_column or column):
        if name not in schema.names:
            raise _wrong(path, f"has no column {name!r}; it has {', '.join(schema.names)}")
    if not (_is_bytes(schema.field(column).type) or is_text(path, column)):
        raise _wrong(path, f"has {schema.field(column).type} in column {column!r}; photos are bytes or paths")
    return id_column or ("id" if "id" in schema.names and column != "id" else "")


def is_text(path: Path, column: str) -> bool:
    """Return True if a column holds texts, such as paths."""
    kind = _open(path).schema_arrow.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def read_rows(path: Path, columns: Sequence[str], start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows with their numbers, from `start` on; row groups before it are not read."""
    file, first = _open(path), 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows > start and columns:
            at = first
            for batch in file.iter_batches(_PHOTO_ROWS, [group], list(columns), use_threads=False):
                if at + len(batch) > start:
                    yield from ((at + n, row) for n, row in enumerate(batch.to_pylist()) if at + n >= start)
                at += len(batch)
        elif first + rows > start:
            yield from ((number, {}) for number in range(max(first, start), first + rows))
        first += rows


def described_in(path: Path) -> Described | None:
    """Return what made the descriptors of a file or a part of `penult describe`; None for any other file."""
    recorded = _open(path).schema_arrow.metadata or {}
    if b"penult.fingerprint" not in recorded:
        return None
    model, version, fingerprint, length = (
        recorded[f"penult.{name}".encode()].decode()
        for name in ("model", "version", "fingerprint", "descriptor_length")
    )
    return Described(model, int(version), fingerprint, int(length))


def ids_in(path: Path) -> list[str]:
    """Return the ids of a part."""
    return list(pq.read_table(path, columns=["id"]).column("id").to_pylist())


def write_part(path: Path, described: Described, rows: Sequence[Row]) -> None:
    """Write rows of photos, in order."""
    numbers = np.zeros((len(rows), described.length), dtype=np.float32)
    is_lost = np.array([row.descriptor is None for row in rows])
    for place, row in enumerate(rows):
        if row.descriptor is not None:
            numbers[place] = row.descriptor
    columns = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "label": pa.array([row.label or None for row in rows], pa.string()),
        "descriptor": pa.FixedSizeListArray.from_arrays(
            pa.array(numbers.ravel()), described.length, mask=pa.array(is_lost)
        ),
        "model": pa.repeat(described.model, len(rows)),
        "version": pa.repeat(pa.scalar(described.version, pa.int64()), len(rows)),
        "fingerprint": pa.repeat(described.fingerprint, len(rows)),
        "error": pa.array([row.error for row in rows], pa.string()),
    }
    schema = _described_schema(described)
    with _described_writer(path, schema) as writer:
        writer.write_table(pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema))


def merge(parts: Sequence[Path], path: Path) -> int:
    """Merge parts into one file, with one row group in memory; return how many rows have an error."""
    failed, waiting, rows = 0, [], 0
    schema = pq.read_schema(parts[0])
    with _described_writer(path, schema) as writer:
        for part in parts:
            waiting.append(pq.read_table(part, schema=schema))
            failed += len(waiting[-1]) - waiting[-1].column("error").null_count
            rows += len(waiting[-1])
            if rows >= _GROUP_ROWS or part == parts[-1]:
                writer.write_table(pa.concat_tables(waiting))
                waiting, rows = [], 0
    return failed


def _described_schema(described: Described) -> Any:
    numbers = pa.list_(pa.float32(), described.length)
    types = {"id": pa.string(), "label": pa.string(), "descriptor": numbers, "model": pa.string()}
    types |= {"version": pa.int64(), "fingerprint": pa.string(), "error": pa.string()}
    recorded = {"model": described.model, "version": described.version, "fingerprint": described.fingerprint}
    recorded |= {"descriptor_length": described.length}
    return pa.schema(list(types.items()), {f"penult.{name}": str(value) for name, value in recorded.items()})


def _described_writer(path: Path, schema: Any) -> Any:
    # Descriptors hardly compress: trying would take time from a server on the same cores.
    texts = [name for name in schema.names if name not in ("descriptor", "id")]
    return pq.ParquetWriter(path, schema, use_dictionary=texts, write_statistics=texts, compression="snappy")


# -- rows --------------------------------------------------------------------------------------------------------------


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _item(path: Path, row: dict[str, Any], types: Mapping[str, str], fingerprint: str = "") -> NewItem:
    metadata = {
        name: float(row[name]) if kind == "number" else row[name]
        for name, kind in types.items()
        if row[name] is not None
    }
    numbers, image = row.get("descriptor"), row.get("image")
    if not isinstance(row["id"], str) or (numbers is None and not isinstance(image, bytes)):
        raise _wrong(path, f"has a row without id, or without descriptor and image: {str(row['id'])[:64]!r}")
    return NewItem(
        row["id"], None if numbers is not None else image,
        np.array(numbers, dtype=np.float32) if numbers is not None else None, row.get("label") or "", metadata,
        row.get("source") or "", row.get("thumbnail") or b"", fingerprint,
    )  # fmt: skip


def _kind(path: Path, column: Any) -> str:
    if pa.types.is_boolean(column.type):
        return "boolean"
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return "number"
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return "string"
    raise _wrong(path, f"has a column {column.name!r} of {column.type}; metadata are texts, numbers or booleans")


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _wrong(path, f"cannot be read: {str(error).splitlines()[0]}") from error


def _wrong(path: Path, what: str) -> RequestFailed:
    return RequestFailed("INVALID_ARGUMENT", "PARQUET", f"{path} {what}")
