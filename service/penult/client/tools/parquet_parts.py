"""A Parquet file that grows: numbered parts beside it, each whole or not there, made one file at the end.

A Parquet file cannot be appended to, and one that was cut off in writing cannot be read. Parts are written under
another name, brought to the disk and renamed: a run that is killed loses what came after its last part, and no more.
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

# Whichever comes first: what a kill costs is little, and a million photos are not too many parts.
_PART_ROWS, _PART_S = 1000, 10.0


class PartsError(Exception):
    """What is on the disk does not go with what is asked; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Parts:
    """The parts of one file; the folder is ours alone while open() lasts."""

    def __init__(self, out: Path, folder: Path) -> None:
        """Take stock of what is whole."""
        self._out, self._folder = out, folder
        self.paths = sorted(folder.glob("*.parquet"))
        self.rows = sum(map(parquet.row_count, self.paths))
        self.described = parquet.described_in(self.paths[0]) if self.paths else None
        self._waiting: list[Row] = []
        self._since_s = time.monotonic()

    @classmethod
    @contextmanager
    def open(cls, out: Path, is_anew: bool) -> Iterator["Parts"]:
        """Hold the parts of a file, those of an earlier run too unless begun anew. Raises PartsError."""
        folder = out.with_name(out.name + ".parts")
        _remove(_done(folder))
        if out.exists() and not is_anew and not folder.is_dir():
            raise PartsError(f"{out} is whole already; --restart makes it anew, another --out a further one")
        with _alone(folder):
            if is_anew:
                for path in folder.iterdir():
                    path.unlink()
            for path in folder.glob("*.tmp"):
                path.unlink()
            yield cls(out, folder)

    def ids(self) -> Iterator[str]:
        """Yield the ids of the rows that are whole, in order."""
        for path in self.paths:
            yield from parquet.ids_in(path)

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows; they are whole with the next part. `described` must be known by now."""
        self._waiting += rows
        if len(self._waiting) >= _PART_ROWS or time.monotonic() - self._since_s > _PART_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a part."""
        if self._waiting:
            assert self.described is not None
            path = self._folder / f"{len(self.paths):08d}.parquet"
            being_written = path.with_suffix(".tmp")
            parquet.write_part(being_written, self.described, self._waiting)
            _settle(being_written, path)
            now = [*self.paths, path], self.rows + len(self._waiting), list[Row]()
            self.paths, self.rows, self._waiting = now  # at once: Ctrl-C in between would have it written twice
        self._since_s = time.monotonic()

    def finish(self) -> int:
        """Make the one file of the parts, in one step, and remove them; return how many rows have an error."""
        self.flush()
        whole = self._folder / "whole.tmp"
        failed = parquet.merge(self.paths, whole)
        _settle(whole, self._out)
        # Renamed first: a folder half removed must not be taken for the parts of another run.
        self._folder.rename(_done(self._folder))
        _remove(_done(self._folder))
        return failed


def described_by(described: Described) -> str:
    """Say which model made descriptors, for people."""
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
    """Give a file its name once its bytes are on the disk, and see that the name is there too."""
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
