"""Read files again when they change while the server runs: certificates, tokens. A broken file changes nothing."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from penult.bundle.errors import PenultError

log = logging.getLogger(__name__)

Value = TypeVar("Value")
_Stamp = tuple[tuple[int, int, int, int] | None, ...]

TAKEN, REFUSED = "taken", "refused"
EVERY_S = 1.0


class WatchedFile(Generic[Value]):
    """The value that `read` makes of some files, read again once two checks in a row find the same change."""

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], Value],
        on_read: Callable[[str], object] = lambda outcome: None,
    ) -> None:
        """Read the files; raise what `read` raises. `on_read` is called with TAKEN or REFUSED after each later read."""
        self._what = what
        self._paths = paths
        self._read = read
        self._on_read = on_read
        self._read_as = self._seen = _stamp(paths)
        self.value = read()

    def check(self, force: bool = False) -> None:
        """Read the files again if they have changed. `force` reads files that may still be being written."""
        now = _stamp(self._paths)
        if now == self._read_as:
            return
        if not force and now != self._seen:
            self._seen = now  # a certificate and its key are two files: the second may follow
            return
        self._read_as = now
        try:
            self.value = self._read()
        except PenultError as error:
            log.error("%s: what was read before stays in use; %s (%s)", self._what, error.message, error.reason)
            self._on_read(REFUSED)
        except Exception:  # a bug, or what a parser raises at garbage: the next change must still be seen
            log.exception("%s: what was read before stays in use", self._what)
            self._on_read(REFUSED)
        else:
            log.info("%s: read again", self._what)
            self._on_read(TAKEN)

    async def run(self) -> None:
        """Check for ever, every EVERY_S seconds."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.check()


def _stamp(paths: Sequence[Path]) -> _Stamp:
    """Return sizes, times and inodes of the files. Links are followed: Kubernetes swaps a link."""
    return tuple(_mark(path) for path in paths)


def _mark(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
