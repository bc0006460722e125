"""The envelope of a call, over gRPC and HTTP: request id, caller, drain gate, span, errors, metrics, access log.

A transport wraps its work in `with Call(…) as call`, and answers with what `call` says after it.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Self

from penult.bundle.errors import PenultError
from penult.service.errors import NotReady, code_of, presentable
from penult.service.observability.logs import NO_ACCESS_LOG, AccessLog, request_id
from penult.service.observability.metrics import Counting, Metrics, Observing
from penult.service.observability.tracing import Tracing
from penult.service.suspension import InFlight

# Probes are answered while the server drains, and need no token.
PROBES = ("ServerLive", "ServerReady", "ModelReady")
# A client ends its call by its own clock, and its reset may arrive before the deadline has passed on the server.
_OVERTAKEN_S = 0.05
_DRAINING_RETRY_MS = 100
_caller: ContextVar[str] = ContextVar("caller", default="")


def caller() -> str:
    """Return the name of the current request's token, else its address; "" outside of requests."""
    return _caller.get()


def set_caller(name: str) -> None:
    """Set the caller for the rest of this request; the fair queue uses it."""
    _caller.set(name)


def ensure_caller(peer: Callable[[], str]) -> str:
    """Return the current request's caller; without a token it is the address of its peer."""
    name = _caller.get()
    if not name:
        name = _host_of(peer())
        _caller.set(name)
    return name


class DrainGate:
    """Counts the requests that are in flight, from any thread."""

    def __init__(self) -> None:
        """Accept requests."""
        self._requests = InFlight()
        self.leave = self._requests.leave

    def enter(self) -> None:
        """Count a request in; raise NotReady while the server drains."""
        if not self._requests.enter():
            raise NotReady(
                "DRAINING", "the server is stopping; ask another, or again soon", retry_after_ms=_DRAINING_RETRY_MS
            )

    async def close(self, max_seconds: float) -> None:
        """Reject new requests with UNAVAILABLE, and wait at most `max_seconds` for those in flight."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._requests.close(), max_seconds)


@dataclass(frozen=True)
class Envelope:
    """What all calls of a server share: the drain gate, the metrics, the access log and the tracing."""

    metrics: Metrics
    gate: DrainGate
    access: AccessLog = NO_ACCESS_LOG
    tracing: Tracing | None = None
    # Is called at the end of each call.
    after_call: Callable[[], object] | None = None


class Method:
    """One method of an API, with its metrics looked up once."""

    def __init__(self, envelope: Envelope, name: str, label: str, span: str) -> None:
        """Count calls under `label`, trace them under `span`; `name` is the method without transport or service."""
        self.envelope = envelope
        self.name = name
        self.label = label
        self.span = span
        self.is_probe = name in PROBES
        self._counters: dict[tuple[str, str, str], Counting] = {}

    @cached_property
    def _seconds(self) -> Observing:
        metrics = self.envelope.metrics  # a series begins with its first call
        return metrics.observing(metrics.request_seconds.labels(self.label))

    def record(self, model: str, version: str, code: str, seconds: float) -> None:
        """Count one call."""
        counter = self._counters.get((model, version, code))
        if counter is None:
            metrics = self.envelope.metrics
            counter = metrics.counting(metrics.requests.labels(model, version, self.label, code))
            self._counters[model, version, code] = counter
        counter.inc()
        self._seconds.observe(seconds)
        self.record_transport(code, seconds)

    def record_transport(self, code: str, seconds: float) -> None:
        """Count one call in the metrics that only its transport has."""


def _host_of(peer: str) -> str:
    """Return the address of a peer as gRPC names it, ipv4:192.0.2.1:5000, without its port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def _no_deadline() -> float | None:
    return None


class Call:
    """One call, from its first byte to its status.

    Exceptions end at the envelope: afterwards `error` is what the client may see, None after success. Cancellation
    passes through.
    """

    def __init__(
        self,
        method: Method,
        peer: Callable[[], str],
        headers: Callable[[], Mapping[str, str]],
        remaining_s: Callable[[], float | None] = _no_deadline,
    ) -> None:
        """Begin a call in its task.

        Args:
            method: what is called.
            peer: returns the client's address.
            headers: returns the request's headers, for its trace.
            remaining_s: returns the seconds to the client's deadline, None without one.

        """
        self.id = os.urandom(8).hex()
        # The model and version that answered, "" if none did.
        self.answered_by = ("", "")
        self.error: PenultError | None = None
        self._method = method
        self._peer = peer
        self._remaining_s = remaining_s
        self._is_admitted = False
        request_id.set(self.id)
        ensure_caller(peer)
        self._started = time.perf_counter()
        tracing = method.envelope.tracing
        self.trace = tracing.begin(method.span, headers(), self.id) if tracing else None

    def admit(self) -> None:
        """Count the call as in flight; raise NotReady while the server drains, except for probes."""
        if not self._method.is_probe:
            self._method.envelope.gate.enter()
            self._is_admitted = True

    @property
    def seconds(self) -> float:
        """Seconds since the call began."""
        return time.perf_counter() - self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._is_admitted:
            self._method.envelope.gate.leave()
        if error is None:
            self._end("OK")
            return True
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            remaining = self._remaining_s()
            has_expired = remaining is not None and remaining <= _OVERTAKEN_S
            self._end("DEADLINE_EXCEEDED" if has_expired else "CANCELLED")
            return False
        self.answered_by = ("", "")
        self.error = presentable(error, self.id, self._method.name)
        self._end(code_of(self.error), self.error.reason)
        return True

    def _end(self, code: str, reason: str = "") -> None:
        seconds = self.seconds
        self._method.record(*self.answered_by, code, seconds)
        if self.trace:
            self.trace.end(code, *self.answered_by)
        self._method.envelope.access.note(self._method.label, code, seconds, *self.answered_by, reason, self._peer)
        if after_call := self._method.envelope.after_call:
            after_call()
