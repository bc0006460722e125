"""Sources of images for a bulk run: a folder, a list, or a column. They stream, in a stable order."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from penult.client.tools import parquet
from penult.client.types import ItemFailure
from penult.folders.names import normalised
from penult.folders.walk import LeftOut, walk


@dataclass(frozen=True)
class Wanted:
    """One image to describe, as a path, bytes, or a failure; label "" means none."""

    id: str
    label: str
    photo: Path | bytes | ItemFailure


class Source(Protocol):
    """Images in a stable order; each method starts at the first."""

    def ids(self) -> Iterable[str]:
        """Yield all ids."""

    def items(self, start: int) -> Iterator[Wanted]:
        """Yield the images from a position on."""

    def count(self) -> int:
        """Return how many images there are."""


class _Paths(ABC):
    """What folders and lists share: their paths can be read again quickly."""

    def ids(self) -> Iterable[str]:
        return (_text(name) for name in self._names())

    def items(self, start: int) -> Iterator[Wanted]:
        return (self._item(name) for name in islice(self._names(), start, None))

    def count(self) -> int:
        return sum(1 for _ in self._names())

    @abstractmethod
    def _names(self) -> Iterator[str]: ...

    @abstractmethod
    def _item(self, name: str) -> Wanted: ...


class Folder(_Paths):
    """The images below a folder, with their paths as ids and their folders' names as labels, as photos_in().

    `left_out` is what the last walk has skipped so far.
    """

    def __init__(self, root: Path) -> None:
        """Read nothing yet. Raises NotADirectoryError."""
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is not a folder of photos")
        self.root = root
        self.left_out = LeftOut()

    def _names(self) -> Iterator[str]:
        self.left_out = LeftOut()
        return (path for path, _ in walk(self.root, left_out=self.left_out))

    def _item(self, name: str) -> Wanted:
        return Wanted(_text(name), _label(name), self.root / name)


class ListFile(_Paths):
    """The images that a file names, a path per line, relative to `root`; ids are the lines."""

    def __init__(self, path: Path, root: Path) -> None:
        """Read nothing yet."""
        self._path, self._root = path, root

    def _names(self) -> Iterator[str]:
        with self._path.open(encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                if name := line.rstrip("\r\n"):
                    yield name

    def _item(self, name: str) -> Wanted:
        return Wanted(_text(name), _label(name), self._root / name)


class Column:
    """The images in a column of a Parquet file, as bytes or as paths relative to `root`.

    Ids are another column's values; without one, the paths, or the rows' numbers.
    """

    def __init__(self, path: Path, column: str, id_column: str, root: Path) -> None:
        """Check that the columns exist. Raises RequestFailed."""
        self._path = path
        self._column = column
        self._root = root
        self._id_column = parquet.check_photo_columns(path, column, id_column)

    def ids(self) -> Iterable[str]:
        """Yield all ids, without reading images if another column has the ids."""
        is_named = self._id_column or parquet.is_text(self._path, self._column)
        columns = [self._id_column or self._column] if is_named else []
        for number, row in parquet.read_rows(self._path, columns, 0):
            yield self._id(number, row)

    def items(self, start: int) -> Iterator[Wanted]:
        """Yield the images from a row on; row groups before it are not read."""
        columns = [name for name in parquet.column_names(self._path) if name == "label"]
        columns += [self._column, *([self._id_column] if self._id_column else [])]
        for number, row in parquet.read_rows(self._path, columns, start):
            yield Wanted(self._id(number, row), str(row.get("label") or ""), self._photo(number, row[self._column]))

    def count(self) -> int:
        """Return how many rows there are."""
        return parquet.row_count(self._path)

    def _id(self, number: int, row: dict[str, object]) -> str:
        own = row.get(self._id_column or self._column)
        return str(number) if own is None or isinstance(own, bytes) else str(own)

    def _photo(self, number: int, value: object) -> Path | bytes | ItemFailure:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return self._root / value
        return ItemFailure("INVALID_ARGUMENT", "IMAGE_EMPTY", f"row {number} has no image")


def _label(name: str) -> str:
    return normalised(_text(name.rpartition("/")[0].rpartition("/")[2]))


def _text(name: str) -> str:
    """Return a path as valid text; file names may hold any bytes."""
    return os.fsencode(name).decode("utf-8", "replace")
