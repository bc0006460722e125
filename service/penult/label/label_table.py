"""A label file as text: its encoding, delimiter and columns, and each row as it is spelt.

What may be in the file is what penult.export.data.tables reads.
"""

import codecs
import csv
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from penult.export.data import tables
from penult.export.data.layout import is_printable_name
from penult.export.errors import DataError
from penult.folders.names import printable
from penult.label.errors import LabelFileError

PICKED, GUESS = "picked", "guess"
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_SHOWN = 60


class Cells(NamedTuple):
    """What a row says: the image as it is spelt, the label in NFC."""

    number: int
    image: str
    label: str
    picked: str
    guess: str


@dataclass
class Table:
    """The text of a label file.

    Attributes:
        codec: The encoding of what follows the byte order mark.
        mark: The byte order mark, empty if there is none.
        delimiter: What separates values.
        line_end: What ends a row.
        columns: Names of the columns, in lower case.
        header: The row of column names, with its line end.
        rows: The other rows with their line ends, blank rows too; "" is a row that was removed.
        needs_end: Whether the last row has no line end in the file; in memory it has one.
        torn: A last row that was cut off, as a power failure leaves it; it is not among `rows`.
    """

    codec: str
    mark: bytes
    delimiter: str
    line_end: str
    columns: list[str]
    header: str
    rows: list[str] = field(default_factory=list)
    needs_end: bool = False
    torn: str = ""

    def data(self, edits: Mapping[int, str], added: Sequence[str]) -> bytes:
        """Return the bytes of the whole file, with some rows replaced and others added."""
        rows = list(self.rows)
        for place, row in edits.items():
            rows[place] = row
        return self.mark + "".join([self.header, *rows, *added]).encode(self.codec)

    def appended(self, added: Sequence[str]) -> bytes:
        """Return the bytes that add rows to the end of the file."""
        return "".join([self.line_end if self.needs_end else "", *added]).encode(self.codec)

    def row(self, values: Mapping[str, str], old: str = "") -> str:
        """Return a row with the values of some columns; the others are those of an old row, or empty."""
        cells = self.values(old) if old else [""] * len(self.columns)
        cells = [values.get(name, cell) for name, cell in zip(self.columns, cells, strict=True)]
        return self.delimiter.join(self._quoted(cell) for cell in cells) + self.line_end

    def _quoted(self, cell: str) -> str:
        """Return a value as CSV; csv.writer of Python 3.11 leaves a carriage return unquoted."""
        return '"{}"'.format(cell.replace('"', '""')) if set(cell) & {self.delimiter, '"', "\r", "\n"} else cell

    def values(self, row: str) -> list[str]:
        """Return the values of a row."""
        return next(csv.reader(_lines(row), delimiter=self.delimiter, strict=True))

    def others(self, row: str) -> dict[str, str]:
        """Return the values that a row has in columns that are not penult's, empty ones left out."""
        own = (tables.IMAGE, tables.LABEL, PICKED, GUESS)
        cells = zip(self.columns, self.values(row), strict=True)
        return {name: value for name, value in cells if value and name not in own}


def new_table(path: Path) -> Table:
    """Return the table of a file that does not exist yet."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    columns = [tables.IMAGE, tables.LABEL, PICKED, GUESS]
    return Table("utf-8", b"", delimiter, "\n", columns, delimiter.join(columns) + "\n")


def parse(path: Path, data: bytes, is_cut: Callable[[Cells], bool]) -> tuple[Table, list[Cells | None]]:
    """Read a label file.

    Args:
        path: The file, for messages.
        data: Its bytes.
        is_cut: Returns True if the last row, which has no line end, is only a part of what was written.

    Returns:
        The table, and what each of its rows says; None for a blank row.

    Raises:
        LabelFileError: The file cannot be read; the message names the row.
    """
    mark, codec = next(((mark, codec) for mark, codec in _BOMS if data.startswith(mark)), (b"", "utf-8"))
    whole, tail = _decoded(path, data[len(mark) :], codec)
    lines = _lines(whole)
    header = next(lines, "") or tail
    try:
        delimiter, columns, _ = tables.header_of(path, header)
    except DataError as error:
        raise LabelFileError("LABEL_FILE", error.message) from error
    for name in (PICKED, GUESS):
        if columns.count(name) > 1:
            raise _failed(path, 1, f"the column {name} is there twice", "remove one")
    table = Table(codec, mark, delimiter, "\r\n" if header.endswith("\r\n") else "\n", columns, header)
    if header is tail:
        table.header, table.needs_end = header + table.line_end, True
        return table, []
    return table, _read_rows(path, table, [*lines, *([tail] if tail else [])], bool(tail), is_cut)


def _read_rows(
    path: Path, table: Table, lines: list[str], is_open: bool, is_cut: Callable[[Cells], bool]
) -> list[Cells | None]:
    reader = csv.reader(lines, delimiter=table.delimiter, strict=True)
    places = [table.columns.index(n) if n in table.columns else -1 for n in (tables.IMAGE, tables.LABEL, PICKED, GUESS)]
    found: list[Cells | None] = []
    labels: dict[str, str] = {}
    start = 0
    while start < len(lines):
        number = len(found) + 2
        is_last_line = is_open and start == len(lines) - 1
        try:
            values = next(reader)
            cells = _cells(path, number, table, values, places, labels)
        except (csv.Error, LabelFileError) as error:
            if is_last_line:
                table.torn = lines[start]
                break
            if isinstance(error, LabelFileError):
                raise
            raise _failed(path, number, f"not readable as CSV ({error})", "check its quotes") from error
        is_part = is_cut(cells) if cells else bool(lines[start].strip())
        if is_last_line and ("\ufffd" in lines[start] or is_part):
            table.torn = lines[start]
            break
        table.rows.append(lines[start] if reader.line_num == start + 1 else "".join(lines[start : reader.line_num]))
        found.append(cells)
        start = reader.line_num
    if is_open and not table.torn:
        table.rows[-1] += table.line_end
        table.needs_end = True
    return found


def _cells(
    path: Path, number: int, table: Table, values: list[str], places: list[int], labels: dict[str, str]
) -> Cells | None:
    if not any(map(str.strip, values)):
        return None
    if len(values) != len(table.columns):
        count = f"{len(values)} values for {len(table.columns)} columns"
        raise _failed(path, number, count, "check its delimiter and quotes")
    image, label, picked, guess = (values[place].strip() if place >= 0 else "" for place in places)
    if not image:
        raise _failed(path, number, "no image", "add its path, or remove the row")
    if label not in labels:
        labels[label] = unicodedata.normalize("NFC", label)
        if not is_printable_name(label):
            raise _failed(path, number, f"the label {label!r} is unprintable", "correct it")
    return Cells(number, image, labels[label], picked, guess)


def _decoded(path: Path, data: bytes, codec: str) -> tuple[str, str]:
    """Return the lines that have an end, and the rest. A character that is cut off is U+FFFD."""
    end = "\n".encode(codec)
    at = data.rfind(end)
    while at >= 0 and at % len(end):
        at = data.rfind(end, 0, at + len(end) - 1)
    at = at + len(end) if at >= 0 else 0
    try:
        whole = data[:at].decode(codec)
    except UnicodeDecodeError as error:
        number = data.count(end, 0, error.start) + 1
        raise _failed(path, number, f"not {codec[:6].upper().rstrip('-')}", "save the file as UTF-8") from error
    if "\0" in whole:
        raise _failed(path, whole.count("\n", 0, whole.index("\0")) + 1, "a zero byte", "save the file as UTF-8 text")
    return whole, data[at:].decode(codec, "replace").replace("\0", "\ufffd")


def _lines(text: str) -> Iterator[str]:
    """Yield lines with their ends, line feeds only: str.splitlines() would also part rows at other characters."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _failed(path: Path, number: int, what: str, advice: str) -> LabelFileError:
    return LabelFileError("LABEL_FILE", f"{printable(str(path))}, row {number}: {what}; {advice}")


def shown(text: str) -> str:
    """Return the beginning of a text as one printable line."""
    return printable(text.strip()[:_SHOWN])
