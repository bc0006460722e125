"""Items in Parquet files: in, to be stored; out, for whatever else wants them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from penult.client.types import NewItem, RequestFailed, StoredItem

_OWN = ("id", "label", "descriptor", "image", "source", "thumbnail")
_ROWS = 500
_ARROW = {"string": pa.string(), "number": pa.float64(), "boolean": pa.bool_()}


def row_count(path: Path) -> int:
    """Return how many rows a file has; raise RequestFailed where it is no Parquet file."""
    return int(_open(path).metadata.num_rows)


def field_types(path: Path) -> dict[str, str]:
    """Return the metadata fields that a file's further columns make. Raises RequestFailed."""
    schema = _open(path).schema_arrow
    missing = "id" not in schema.names or not {"descriptor", "image"} & set(schema.names)
    if missing:
        raise _wrong(path, "needs a column id, and descriptor (lists of numbers) or image (files' bytes)")
    found = {}
    for column in schema:
        if column.name not in _OWN:
            found[column.name] = _kind(path, column)
    return found


def read_items(path: Path) -> Iterator[NewItem]:
    """Yield the items of a file, a row each; raise RequestFailed."""
    types = field_types(path)
    for batch in _open(path).iter_batches(_ROWS):
        for row in batch.to_pylist():
            yield _item(path, row, types)


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


def _item(path: Path, row: dict[str, Any], types: Mapping[str, str]) -> NewItem:
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
        row.get("source") or "", row.get("thumbnail") or b"",
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
