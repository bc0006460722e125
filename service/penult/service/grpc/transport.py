"""A gRPC server on the core library below grpc.aio, at half of its CPU time (bench/front.py).

One thread polls the core's completion queue. It begins each call, and runs the coroutines of direct methods until they
wait; see penult.service.suspension. All other methods are tasks of the event loop, with the context of grpc.aio.
Messages are read after a call's handler is known, so that a refused call costs no message. A body that arrives slowly
holds no thread.

The core is used through `grpc._cython.cygrpc`. It is no public interface, but grpc's own two servers use it, and it is
the same in versions 1.60 to 1.85. tests/service/grpc/test_transport.py runs every operation that this server needs.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from penult.service.grpc.rpc import Handler, Rpc

log = logging.getLogger(__name__)

# Calls that the core may hand over before the poller asks again.
_REQUESTED = 2


class Router(Protocol):
    """Decides, when the headers of a call have arrived, what answers it."""

    def find(self, rpc: "Rpc", handlers: Mapping[str, Handler]) -> tuple[Handler | None, bool]:
        """Return the call's handler, None if there is no such method, and whether it runs directly; raise Aborted."""
        ...


class _All:
    def find(self, rpc: "Rpc", handlers: Mapping[str, Handler]) -> tuple[Handler | None, bool]:
        return handlers.get(rpc.path), False


class GrpcServer:
    """Serves the methods that add_…Servicer_to_server() adds. Start and stop it on the event loop."""

    def __init__(self, router: Router | None = None, options: Sequence[tuple[str, int]] = ()) -> None:
        """Make a server that listens nowhere yet."""
        self._router = router or _All()
        self._handlers: dict[str, Handler] = {}
        self._queue = cygrpc.CompletionQueue()
        self._core = cygrpc.Server(tuple(options), False)
        self._core.register_completion_queue(self._queue)
        self._poller = threading.Thread(target=self._poll, name="grpc", daemon=True)
        # Guards the core's queue: operations that began after its shutdown would end the process.
        self._lock = threading.Lock()
        self._is_open = self._has_queue = False
        self._no_calls = threading.Event()
        self._rpcs: set[Rpc] = set()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Accept what generated code adds for servers that know no registered methods."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Serve the methods of a service."""
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_insecure_port(self, address: str) -> int:
        """Bind an address and return its port; raise RuntimeError if it cannot be bound."""
        return _bound(self._core.add_http2_port(address.encode()), address)

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Bind an address with TLS and return its port; raise RuntimeError if it cannot be bound."""
        return _bound(self._core.add_http2_port(address.encode(), credentials._credentials), address)  # type: ignore[attr-defined]

    async def start(self) -> None:
        """Answer from now on."""
        self.loop = asyncio.get_running_loop()
        self._core.start()
        self._is_open = self._has_queue = True
        for _ in range(_REQUESTED):
            self._core.request_call(self._queue, self._queue, self._requested)
        self._poller.start()

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls, cancel those that are left after `grace` seconds, and close the ports."""
        if not self._is_open:
            return
        self._is_open = False
        self._core.shutdown(self._queue, self._shut_down)
        deadline = time.monotonic() + (grace or 0)
        while self._rpcs and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self._core.cancel_all_calls()
        await asyncio.to_thread(self._no_calls.wait)
        with self._lock:
            self._has_queue = False
        self._core.destroy()
        self._queue.shutdown()
        await asyncio.to_thread(self._poller.join)

    def call_on_loop(self, act: Callable[..., object], *values: object) -> None:
        """Call on the event loop; a loop that has ended calls nothing."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(act, *values)

    def start_batch(self, call: Any, operations: tuple[Any, ...], over: Callable[[Any], object]) -> None:
        """Start operations of a call; `over` gets their event, on the poller. After stop(), nothing starts."""
        with self._lock:
            if self._has_queue:
                call.start_server_batch(operations, over)

    def find(self, rpc: "Rpc") -> tuple[Handler | None, bool]:
        """Return what answers a call, and whether it runs directly."""
        return self._router.find(rpc, self._handlers)

    def forget(self, rpc: "Rpc") -> None:
        """Count a call as over."""
        self._rpcs.discard(rpc)

    def _poll(self) -> None:
        while True:
            event = self._queue.poll(None)
            if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                return
            try:
                event.tag(event)
            except Exception:  # a bug here must end one call, not the server
                log.exception("an event of gRPC failed")
            # A reference to the last call would keep it until the next event.
            event = None

    def _requested(self, event: Any) -> None:
        if not event.success or not self._is_open:
            return
        self._core.request_call(self._queue, self._queue, self._requested)
        rpc = Rpc(self, event)
        self._rpcs.add(rpc)
        rpc.begin()

    def _shut_down(self, event: Any) -> None:
        self._no_calls.set()


def _bound(port: int, address: str) -> int:
    if not port:
        raise RuntimeError(f"cannot bind {address}")
    return port
