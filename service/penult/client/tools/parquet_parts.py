"""A Parquet file written in numbered parts, which are merged at the end.

A Parquet file cannot be appended to, and a truncated one cannot be read. Parts are written to a temporary name, synced
and renamed, so that a run that is killed loses only the rows after its last part.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from penult.client.tools import parquet
from penult.client.tools.parquet import Described, Row

# A part ends at whichever comes first: a kill loses little, and a million images do not make too many parts.
_PART_ROWS, _PART_S = 1000, 10.0


class PartsError(Exception):
    """The files on the disk do not match the command; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Parts:
    """The parts of one file; open() locks their folder."""

    def __init__(self, out: Path, folder: Path) -> None:
        """Find the parts that exist."""
        self._out, self._folder = out, folder
        self.paths = sorted(folder.glob("*.parquet"))
        self.rows = sum(map(parquet.row_count, self.paths))
        self.described = parquet.described_in(self.paths[0]) if self.paths else None
        self._waiting: list[Row] = []
        self._since_s = time.monotonic()

    @classmethod
    @contextmanager
    def open(cls, out: Path, restart: bool) -> Iterator["Parts"]:
        """Lock the parts of a file, and keep those of an earlier run unless `restart`. Raises PartsError."""
        folder = out.with_name(out.name + ".parts")
        _remove(_done(folder))
        if out.exists() and not restart and not folder.is_dir():
            raise PartsError(f"{out} is complete; --restart writes it again, another --out writes another file")
        with _alone(folder):
            if restart:
                for path in folder.iterdir():
                    path.unlink()
            for path in folder.glob("*.tmp"):
                path.unlink()
            yield cls(out, folder)

    def ids(self) -> Iterator[str]:
        """Yield the ids of the rows on the disk, in order."""
        for path in self.paths:
            yield from parquet.ids_in(path)

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows, which the next part writes. `described` must be set."""
        self._waiting += rows
        if len(self._waiting) >= _PART_ROWS or time.monotonic() - self._since_s > _PART_S:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows as a part."""
        if self._waiting:
            assert self.described is not None
            path = self._folder / f"{len(self.paths):08d}.parquet"
            being_written = path.with_suffix(".tmp")
            parquet.write_part(being_written, self.described, self._waiting)
            _settle(being_written, path)
            now = [*self.paths, path], self.rows + len(self._waiting), list[Row]()
            self.paths, self.rows, self._waiting = now  # in one assignment, as Ctrl-C in between would write them twice
        self._since_s = time.monotonic()

    def finish(self) -> int:
        """Merge the parts into the file, atomically, and remove them; return how many rows have an error."""
        self.flush()
        whole = self._folder / "whole.tmp"
        failed = parquet.merge(self.paths, whole)
        _settle(whole, self._out)
        # Renamed first, so that a half-removed folder is never read as the parts of a run.
        self._folder.rename(_done(self._folder))
        _remove(_done(self._folder))
        return failed


def described_by(described: Described) -> str:
    """Return which model made descriptors, as text."""
    return f"{described.model} version {described.version} ({described.fingerprint[:12]})"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PartsError(f"{folder} cannot be made: {error.strerror}") from error
    held = os.open(folder, os.O_RDONLY)
    try:
        _lock(held, folder)
        try:
            yield
        finally:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        os.close(held)


def _lock(held: int, folder: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PartsError(f"another penult describe is writing {folder}; wait for it, or name another --out") from error


def _settle(being_written: Path, path: Path) -> None:
    """Sync a file, give it its name, and sync the folder."""
    with being_written.open("rb") as file:
        os.fsync(file.fileno())
    being_written.replace(path)
    held = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


def _done(folder: Path) -> Path:
    return folder.with_name(folder.name + ".done")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
