"""Values from files that may change while the server runs: certificates, tokens. A broken file changes nothing."""

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
    """The value that `read` makes of some files, read again once they have changed and held still for one check."""

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], Value],
        tell: Callable[[str], object] = lambda outcome: None,
    ) -> None:
        """Read them; raise what `read` raises. `tell` hears TAKEN or REFUSED whenever they were read again."""
        self._what, self._paths, self._read, self._tell = what, paths, read, tell
        self._read_as = self._seen = _stamp(paths)
        self.value = read()

    def check(self, force: bool = False) -> None:
        """Read the files again if they have changed; `force`: even if they may still be being written."""
        now = _stamp(self._paths)
        if now == self._read_as:
            return
        if not force and now != self._seen:
            self._seen = now  # a certificate and its key are two files: the second may come in a moment
            return
        self._read_as = now
        try:
            self.value = self._read()
        except PenultError as error:
            log.error("%s: what was read before stays in use; %s (%s)", self._what, error.message, error.reason)
            self._tell(REFUSED)
        except Exception:  # a bug, or what a parser raises at garbage: the next change must still be seen
            log.exception("%s: what was read before stays in use", self._what)
            self._tell(REFUSED)
        else:
            log.info("%s: read again", self._what)
            self._tell(TAKEN)

    async def run(self) -> None:
        """Check for ever, every EVERY_S seconds."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.check()


def _stamp(paths: Sequence[Path]) -> _Stamp:
    """Return what changes with the files, links followed: Kubernetes swaps a link."""
    return tuple(_mark(path) for path in paths)


def _mark(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
