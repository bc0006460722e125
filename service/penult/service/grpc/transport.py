"""A gRPC server on the core library below grpc.aio, at half of grpc.aio's CPU time (bench/RESULTS.md, bench/front.py).

One thread polls the core's completion queue. It begins each call, and runs the coroutines of direct methods until they
wait; see penult.service.suspension. All other methods are tasks of the event loop, with the context of grpc.aio.
Messages are read after a call's handler is known, so that a refused call costs no message. A body that arrives slowly
holds no thread.

The core is used through `grpc._cython.cygrpc`, which grpc's own two servers use and which is no public interface.
tests/service/grpc/test_transport.py runs the operations that matter, and pyproject.toml bounds the version.
"""

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from penult.service.suspension import Park, Steps, move_to_event_loop

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str]]

_NO_FLAGS = 0
# Calls that the core may hand over before the poller asks again.
_REQUESTED = 2
# More headers are an attack: of repeated ones, 16 KB on the wire can be 16 MB here.
_MAX_HEADERS = 128
# The core's deadline of a call without one lies centuries ahead.
_NEVER_S = 1e9


class Handler(Protocol):
    """grpc.RpcMethodHandler, whose stubs declare none of its attributes."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Callable[[bytes], Any] | None
    response_serializer: Callable[[Any], bytes] | None
    unary_unary: Callable[..., Coroutine[Any, Any, Any]]
    unary_stream: Callable[..., Any]
    stream_stream: Callable[..., Any]


class Router(Protocol):
    """Decides, when the headers of a call have arrived, what answers it."""

    def find(self, rpc: "Rpc", handlers: Mapping[str, Handler]) -> tuple[Handler | None, bool]:
        """Return the call's handler, None if there is no such method, and whether it runs directly; raise Aborted."""
        ...


class _All:
    def find(self, rpc: "Rpc", handlers: Mapping[str, Handler]) -> tuple[Handler | None, bool]:
        return handlers.get(rpc.path), False


class Aborted(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


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


class Rpc:
    """One call, and the context that its servicer sees, with the methods of grpc.aio.ServicerContext that are needed.

    The poller calls begin(), and the callbacks of the core. A direct call's coroutine runs on the poller first, then
    on the threads that resume it, one step at a time.
    """

    def __init__(self, server: GrpcServer, event: Any) -> None:
        """Take a call from the core; nothing of it is read yet but the headers."""
        self.path: str = event.call_details.method.decode()
        self._server = server
        self._call = event.call
        self._deadline: float = event.call_details.deadline
        self._metadata: Metadata = event.invocation_metadata or ()
        self._trailing: Metadata = ()
        self._context = contextvars.Context()
        self._task: asyncio.Task[Any] | None = None
        self._parked: list[Steps] = []
        self._is_cancelled = self._is_ended = self._has_begun_answer = False

    # -- what servicers use ------------------------------------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        """Return the call's headers."""
        return self._metadata

    def peer(self) -> str:
        """Return the client's address, as ipv4:192.0.2.1:5000."""
        return str(self._call.peer().decode())

    def time_remaining(self) -> float | None:
        """Return the seconds to the client's deadline, never below 0; None without a deadline."""
        left = self._deadline - time.time()
        return None if left > _NEVER_S else max(left, 0.0)

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Send this behind the answer."""
        self._trailing = metadata

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status; raises."""
        self._trailing = trailing_metadata or self._trailing
        raise Aborted(code, details)

    async def write(self, message: object) -> None:
        """Send one message of a stream; return when gRPC has sent it. On the event loop."""
        serialize = self._handler.response_serializer
        sent = await self._batch(
            *self._initial(), cygrpc.SendMessageOperation(serialize(message) if serialize else message, _NO_FLAGS)
        )
        if not sent.success:
            raise asyncio.CancelledError

    # -- a call's way ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Find what answers the call, and read its message or start its task."""
        self._start((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)
        if len(self._metadata) > _MAX_HEADERS:
            self._metadata = ()
            self._end(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {_MAX_HEADERS} headers")
            return
        try:
            handler, is_direct = self._context.run(self._server.find, self)
        except Aborted as refused:
            self._end(refused.code, refused.details)
            return
        if handler is None:
            self._end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        self._handler, self._is_direct = handler, is_direct
        if handler.request_streaming:
            self._run_on_loop(self._stream(handler.stream_stream(self._messages(), self)), self._end_stream)
        else:
            self._start((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._received)

    def _received(self, event: Any) -> None:
        """Answer a unary request; a client that left, or sent too much, has sent none."""
        data, handler = event.batch_operations[0].message(), self._handler
        if data is None or self._is_cancelled:
            self._end(grpc.StatusCode.UNIMPLEMENTED, "the method needs one message")
            return
        try:
            request = handler.request_deserializer(data) if handler.request_deserializer else data
        except Exception:
            self._end(grpc.StatusCode.INVALID_ARGUMENT, "the message is not a valid protobuf of this method")
            return
        if handler.response_streaming:
            self._run_on_loop(self._stream(handler.unary_stream(request, self)), self._end_stream)
        elif self._is_direct:
            steps = handler.unary_unary(request, self)
            self._step(steps, steps.send, None)
        else:
            self._run_on_loop(handler.unary_unary(request, self), self._answer)

    def _step(self, steps: Steps, advance: Callable[[Any], Park], value: object) -> None:
        """Run a direct coroutine until it waits or ends."""
        try:
            park = self._context.run(advance, value)
        except StopIteration as ended:
            self._answer(ended.value)
        except BaseException as error:
            self._failed(error)
        else:
            if park is move_to_event_loop:
                self._run_on_loop(steps, self._answer)
                return
            parked = self._parked = [steps]
            if self._is_cancelled:
                self._resume(parked, None, asyncio.CancelledError())
            else:
                park(lambda result, error: self._resume(parked, result, error))

    def _resume(self, parked: list[Steps], result: object, error: BaseException | None) -> None:
        try:
            steps = parked.pop()  # by one thread only: a result and a cancellation may come at the same time
        except IndexError:
            return
        if error is None:
            self._step(steps, steps.send, result)
        else:
            self._step(steps, steps.throw, error)

    def _closed(self, event: Any) -> None:
        """Stop the work for a client that has left."""
        self._server.forget(self)
        if not event.batch_operations[0].cancelled():
            return
        self._is_cancelled = True
        self._resume(self._parked, None, asyncio.CancelledError())
        self._server.call_on_loop(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task:
            self._task.cancel()

    # -- on the event loop -------------------------------------------------------------------------------------------

    def _run_on_loop(self, work: Coroutine[Any, Any, Any], answer: Callable[[Any], None]) -> None:
        """Run a coroutine, or the rest of one, as a task, and answer with its result."""

        def over(task: asyncio.Task[Any]) -> None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                answer(task.result())
            else:
                self._failed(error)

        def run() -> None:
            self._task = self._server.loop.create_task(work, context=self._context)
            self._task.add_done_callback(over)
            if self._is_cancelled:
                self._task.cancel()

        self._server.call_on_loop(run)

    async def _stream(self, answering: Any) -> None:
        if hasattr(answering, "__aiter__"):
            async with contextlib.aclosing(answering):
                async for response in answering:
                    await self.write(response)
        else:
            await answering

    def _end_stream(self, result: None) -> None:
        self._end(grpc.StatusCode.OK, "")

    async def _messages(self) -> AsyncIterator[Any]:
        """Yield the requests of a stream."""
        deserialize = self._handler.request_deserializer
        while True:
            event = await self._batch(cygrpc.ReceiveMessageOperation(_NO_FLAGS))
            data = event.batch_operations[0].message()
            if data is None:
                return
            yield deserialize(data) if deserialize else data

    async def _batch(self, *operations: Any) -> Any:
        """Start operations and return their event."""
        done: asyncio.Future[Any] = self._server.loop.create_future()

        def set_result(event: Any) -> None:
            if not done.done():
                done.set_result(event)

        def over(event: Any) -> None:
            self._server.call_on_loop(set_result, event)

        self._start(operations, over)
        return await done

    # -- the answer --------------------------------------------------------------------------------------------------

    def _answer(self, response: Any) -> None:
        serialize = self._handler.response_serializer
        self._end(grpc.StatusCode.OK, "", serialize(response) if serialize else response)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Aborted):
            self._end(error.code, error.details)
        elif not isinstance(error, asyncio.CancelledError):
            log.error("%s failed", self.path, exc_info=error)
            self._end(grpc.StatusCode.UNKNOWN, "the server failed")
        elif not self._is_cancelled:  # a task that the server itself ended
            self._end(grpc.StatusCode.CANCELLED, "the server has ended the call")

    def _end(self, code: grpc.StatusCode, details: str, message: bytes | None = None) -> None:
        """Send the status, with the answer of a unary call."""
        if self._is_ended:
            return
        self._is_ended = True
        status = cygrpc.SendStatusFromServerOperation(self._trailing, code.value[0], details.encode(), _NO_FLAGS)
        answer = () if message is None else (cygrpc.SendMessageOperation(message, _NO_FLAGS),)
        self._start((*self._initial(), *answer, status), _ignore)

    def _initial(self) -> tuple[Any, ...]:
        """Return the operation that every answer begins with, once."""
        if self._has_begun_answer:
            return ()
        self._has_begun_answer = True
        return (cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),)

    def _start(self, operations: tuple[Any, ...], over: Callable[[Any], object]) -> None:
        self._server.start_batch(self._call, operations, over)


def _ignore(event: object) -> None:
    """Do nothing at an event."""


def _bound(port: int, address: str) -> int:
    if not port:
        raise RuntimeError(f"cannot bind {address}")
    return port
