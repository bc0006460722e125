"""Rows of a CSV, TSV or Parquet file with the columns image and label, and optionally split and group."""

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from penult.export.errors import DataError
from penult.folders.names import printable

IMAGE, LABEL, SPLIT, GROUP = COLUMNS = ("image", "label", "split", "group")
_DELIMITERS = ",;\t"
# What other tools call these columns.
_ALIASES = {
    **dict.fromkeys(("filename", "file_name", "file", "path", "filepath", "file_path", "image_path", "img"), IMAGE),
    **dict.fromkeys(("class", "category", "target", "choice", "tag", "class_name", "labels"), LABEL),
}
_SHOWN = 60


class Row(NamedTuple):
    """A row of a label file; `number` counts from 1, the row of column names included.

    `elsewhere` are further paths at which the image may be.
    """

    number: int
    image: str
    label: str
    split: str = ""
    group: str = ""
    elsewhere: tuple[str, ...] = ()


def failed(path: Path, what: str, advice: str, number: int | None = None) -> DataError:
    """Return the error of a label file: the file and the row, what is wrong, what to do."""
    row = f", row {number}:" if number else ""
    return DataError("DATA_FILE", f"{printable(str(path))}{row} {what}; {advice}")


def read_csv(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file, row by row; raise DataError."""
    lines = _lines(path)
    delimiter, columns, places = header_of(path, next(lines, ""))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 1
    while True:
        number += 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise failed(path, f"not readable as CSV ({error})", "check its quotes", number) from error
        if not any(map(str.strip, values)):
            continue
        if len(values) != len(columns):
            count = f"{len(values)} values for {len(columns)} columns"
            raise failed(path, count, "check its delimiter and quotes", number)
        yield _row(number, {name: values[place].strip() for name, place in places.items()})


def header_of(path: Path, line: str) -> tuple[str, list[str], dict[str, int]]:
    """Return the delimiter of a first row, its columns in lower case, and the places of those that are read.

    Raises:
        DataError: The row does not name the columns image and label, or names one twice.
    """
    delimiter = next((each for each in _DELIMITERS if {IMAGE, LABEL} <= set(_columns(line, each))), None)
    if delimiter is None:
        raise _wrong_columns(path, line)
    columns = _columns(line, delimiter)
    return delimiter, columns, _places(path, columns)


def read_images(path: Path) -> list[str]:
    """Return the column image of a CSV file, or each line of another file; raise DataError."""
    if not path.is_file():
        raise DataError("DATA_EXCLUDE", f"--exclude {printable(str(path))} does not exist; give a file of image paths")
    lines = _lines(path)
    first = next(lines, "")
    delimiter = next((each for each in _DELIMITERS if IMAGE in _columns(first, each)), None)
    if delimiter is None:
        return [line.strip() for line in (first, *lines) if line.strip()]
    place = _columns(first, delimiter).index(IMAGE)
    try:
        return [row[place].strip() for row in csv.reader(lines, delimiter=delimiter) if len(row) > place]
    except csv.Error as error:
        raise failed(path, f"is not readable as CSV ({error})", "check its quotes") from error


def _row(number: int, values: Mapping[str, str]) -> Row:
    return Row(number, values[IMAGE], values[LABEL], values.get(SPLIT, ""), values.get(GROUP, ""))


def _columns(line: str, delimiter: str) -> list[str]:
    try:
        (values,) = csv.reader([line], delimiter=delimiter)
    except (csv.Error, ValueError):
        return []
    return [value.strip().casefold() for value in values]


def _places(path: Path, columns: Sequence[str]) -> dict[str, int]:
    """Return the place of each column that is read."""
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise failed(path, f"the column {name} is there twice", "remove one", 1)
    return {name: columns.index(name) for name in COLUMNS if name in columns}


def _wrong_columns(path: Path, line: str) -> DataError:
    """Return the error of a first row that does not name the columns image and label."""
    if not line.strip():
        return failed(path, "is empty", "list one image per row, below a row image,label")
    found = max((_columns(line, each) for each in _DELIMITERS), key=len)
    renames = [f"{name} to {_ALIASES[name]}" for name in found if name in _ALIASES and _ALIASES[name] not in found]
    advice = f"rename {' and '.join(renames)}" if renames else "begin with a row image,label (or with ; or tabs)"
    shown = printable(line.strip()[:_SHOWN])
    return failed(path, f"{shown!r} does not name the columns image and label", advice, 1)


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, or in UTF-16 with a byte order mark; raise DataError."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            with path.open(encoding="utf-16", newline="") as lines:
                yield from _utf16_lines(path, lines)
            return
        if b"\0" in start:
            raise failed(path, "UTF-16 without a byte order mark, or no text", "save the file as UTF-8", 1)
        file.seek(3 if start.startswith(codecs.BOM_UTF8) else 0)
        for number, line in enumerate(file, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise failed(
                    path, "not UTF-8", "save the file as UTF-8, as with iconv -f WINDOWS-1252 -t UTF-8", number
                ) from error
            yield _without_nul(path, text, number)


def _utf16_lines(path: Path, lines: Iterator[str]) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        try:
            yield _without_nul(path, next(lines), number)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise failed(path, "no longer UTF-16, as the file begins", "save the file as UTF-8", number) from error


def _without_nul(path: Path, line: str, number: int) -> str:
    if "\0" in line:
        raise failed(path, "a zero byte", "save the file as UTF-8 text", number)
    return line


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file, a batch at a time; raise DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        columns = [name for name in COLUMNS if name in table.schema_arrow.names]
        if not {IMAGE, LABEL} <= set(columns):
            raise _wrong_columns(path, ",".join(table.schema_arrow.names))
        number = 0
        for batch in table.iter_batches(columns=columns):
            for values in batch.to_pylist():
                number += 1
                yield _row(number, {name: _text(path, number, name, value) for name, value in values.items()})
    except (pa.ArrowException, OSError) as error:
        line = str(error).splitlines()[0][:_SHOWN]
        raise failed(path, f"cannot be read as Parquet ({line})", "write the file again") from error


def _text(path: Path, number: int, name: str, value: object) -> str:
    if isinstance(value, (dict, list, bytes)):
        raise failed(path, f"the column {name} holds {type(value).__name__}", "store text there", number)
    return "" if value is None else str(value).strip()
