"""HTTP/1.1 for untrusted clients: bounds on connections that are slow, silent or send tiny chunks.

It uses h11, which bounds a request's headers. httptools, uvicorn's other protocol, accepts any number of them.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# From a connection's start, or the last answer, to the end of the next request's headers.
_HEADERS_S = 10.0
# Bytes per read. The event loop parses a whole read before it serves another connection, and a tiny chunk costs as much
# as a large one.
_READ_BYTES = 1 << 14
# Above this number, the server ends the connection that has waited longest, if it has waited more than _FRESH_S.
_MAX_CONNECTIONS = 512
_FRESH_S = 1.0


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, with these bounds."""

    _patience: asyncio.TimerHandle | None = None
    _waits_since = 0.0

    def connection_made(self, transport: Any) -> None:
        """Wait for a request for a limited time.

        If there are too many connections, end the one that has waited longest.
        """
        super().connection_made(transport)
        transport.max_size = _READ_BYTES
        self._wait_or_not()
        if len(self.connections) > _MAX_CONNECTIONS:
            self._end_longest()

    def _end_longest(self) -> None:
        waiting = [each for each in self.connections if isinstance(each, BoundedProtocol) and each.is_waiting]
        longest = min(waiting, key=lambda each: each._waits_since)
        if self.loop.time() - longest._waits_since > _FRESH_S:
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        super().connection_lost(exc)
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once a request has begun."""
        super().data_received(data)
        self._wait_or_not()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._wait_or_not()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_or_not(self) -> None:
        if not self.is_waiting:
            self._stop_waiting()
        elif not self._patience:
            self._waits_since = self.loop.time()
            self._patience = self.loop.call_later(_HEADERS_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience:
            self._patience.cancel()
            self._patience = None
