"""The door that every request comes in by, over gRPC or HTTP: shut when the server leaves, until all are out."""

import asyncio
import contextlib
from collections.abc import Iterator

from penult.service.errors import NotReady

_RETRY_MS = 100


class DrainGate:
    """Counts the requests that are under way. Runs on the event loop."""

    def __init__(self) -> None:
        """Open."""
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False

    @contextlib.contextmanager
    def accepted(self) -> Iterator[None]:
        """Count a request in and out; raise NotReady where the gate is closed."""
        if self._is_closed:
            raise NotReady("DRAINING", "the server is stopping; ask another, or again soon", retry_after_ms=_RETRY_MS)
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def close(self, most_seconds: float) -> None:
        """Answer new requests with UNAVAILABLE, and wait for those under way, `most_seconds` at most.

        grpc.aio itself would cancel a call that it had read and not yet handed over when it stops.
        """
        self._is_closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), most_seconds)
