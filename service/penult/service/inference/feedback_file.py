"""The file of feedback: a line of JSON for each verdict, on the disk before it is acknowledged.

Several processes may write, one at a time. Each reads what the others have written before it writes, so that all know
the same verdicts. A line that a killed process has left unfinished was never acknowledged, and is removed.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from penult.bundle.refusals import why
from penult.service.errors import ConfigError, Overloaded
from penult.service.observability.truths import Truth, Truths

log = logging.getLogger(__name__)

NAME = "feedback.jsonl"
_PIECE_BYTES = 1 << 20
_FULL_RETRY_MS = 60_000


class FeedbackFile:
    """One file of feedback, and the counts of what is in it. One thread at a time."""

    def __init__(self, path: Path | None, truths: Truths, max_bytes: int = 0, is_durable: bool = True) -> None:
        """Count into `truths`; without a path nothing is written.

        Args:
            path: The file; open() creates it.
            truths: Gets every verdict of the file, in order.
            max_bytes: With so many, no more feedback is accepted; 0: no limit.
            is_durable: Wait for the disk before a verdict counts as written.

        """
        self.path, self.truths = path, truths
        self._max_bytes, self._is_durable = max_bytes, is_durable
        self._file = -1
        self._read_bytes = self._bad_lines = 0

    def open(self) -> None:
        """Create the file or read it, and remove an unfinished last line; raise ConfigError if that fails."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                return
        except OSError as error:
            raise ConfigError("FEEDBACK", f"--feedback {self.path.parent}: {why(error)}") from error

    def add(self, found: Sequence[Truth]) -> list[bool]:
        """Write verdicts and count them; all of them or none.

        Returns:
            For each, whether it was known already: it is neither written nor counted again.

        Raises:
            Overloaded: The file has reached its limit.
            OSError: It cannot be written.

        """
        if self.path is None:
            return [self._count(truth) for truth in found]
        with self._locked():
            fresh, are_known = self._fresh(found)
            data = b"".join(_line(truth) for truth in fresh)
            if self._max_bytes and data and self._read_bytes + len(data) > self._max_bytes:
                raise Overloaded(
                    "FEEDBACK_FULL", "the server's file of feedback is full; its operator can move it away",
                    retry_after_ms=_FULL_RETRY_MS,
                )  # fmt: skip
            self._append(data)
            for truth in fresh:
                self.truths.add(truth)
        return are_known

    def read(self) -> None:
        """Count what was written since the last call, without a lock; an unfinished line stays for the next call."""
        if self.path is None:
            return
        try:
            self._reopen(os.O_RDONLY)
            self._catch_up()
        except FileNotFoundError:
            return

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _count(self, truth: Truth) -> bool:
        is_known = _is_same(self.truths.known(truth), truth)
        if not is_known:
            self.truths.add(truth)
        return is_known

    def _fresh(self, found: Sequence[Truth]) -> tuple[list[Truth], list[bool]]:
        """Return the verdicts that are new, and for each whether it is known; of one answer's, the last counts."""
        fresh: list[Truth] = []
        latest: dict[str, Truth] = {}
        are_known = []
        for truth in found:
            key = truth.keys[0]
            is_known = _is_same(latest.get(key) or self.truths.known(truth), truth)
            are_known.append(is_known)
            if not is_known:
                fresh.append(truth)
                latest[key] = truth
        return fresh, are_known

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the file, read what others have written, and remove what one of them left unfinished."""
        assert self.path is not None
        while True:
            self._reopen(os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if _is_at(self._file, self.path):
                break
            self.close()  # the operator moved it away meanwhile
        try:
            self._catch_up()
            size = os.fstat(self._file).st_size
            if size > self._read_bytes:
                log.warning("the last line of %s was cut off and is removed; it was not acknowledged", self.path)
                self._cut(self._read_bytes)
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _reopen(self, flags: int) -> None:
        """Open the file. If another one has its name now, open that and count from its start."""
        assert self.path is not None
        if self._file >= 0 and _is_at(self._file, self.path):
            return
        self.close()
        is_new = not self.path.exists()
        self._file = os.open(self.path, flags | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if is_new and self._is_durable:
            _sync_folder(self.path.parent)
        self._start_over()

    def _start_over(self) -> None:
        self._read_bytes = self._bad_lines = 0
        self.truths.clear()

    def _catch_up(self) -> None:
        """Count the complete lines that have not been read."""
        if os.fstat(self._file).st_size < self._read_bytes:  # it was emptied
            self._start_over()
        rest = b""
        while data := os.pread(self._file, _PIECE_BYTES, self._read_bytes + len(rest)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._read_line(line)
                self._read_bytes += len(line) + 1

    def _read_line(self, line: bytes) -> None:
        try:
            self.truths.add(Truth.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            if not self._bad_lines:
                log.warning("a line of %s is no feedback and is left out: %.80r", self.path, line)
            self._bad_lines += 1

    def _append(self, data: bytes) -> None:
        if not data:
            return
        size = self._read_bytes
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            if self._is_durable:
                os.fsync(self._file)
        except OSError:
            self._cut(size)
            raise
        self._read_bytes = size + len(data)

    def _cut(self, size: int) -> None:
        os.ftruncate(self._file, size)
        os.fsync(self._file)


def _line(truth: Truth) -> bytes:
    return json.dumps(truth.to_dict(), ensure_ascii=False).encode() + b"\n"


def _is_same(before: Truth | None, truth: Truth) -> bool:
    return before is not None and before.says == truth.says


def _is_at(file: int, path: Path) -> bool:
    """Return whether an open file has this path."""
    try:
        found, own = path.stat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
