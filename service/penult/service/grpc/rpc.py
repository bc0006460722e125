"""One call on gRPC's core, from its headers to its status, and the context that its servicer sees."""

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from penult.service.suspension import Park, Steps, move_to_event_loop

if TYPE_CHECKING:
    from penult.service.grpc.transport import GrpcServer

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str]]

_NO_FLAGS = 0
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


class Aborted(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


class Rpc:
    """One call, and the context that its servicer sees, with the methods of grpc.aio.ServicerContext that are needed.

    The poller calls begin(), and the callbacks of the core. A direct call's coroutine runs on the poller first, then
    on the threads that resume it, one step at a time.
    """

    def __init__(self, server: "GrpcServer", event: Any) -> None:
        """Take a call from the core; nothing of it is read yet but the headers."""
        self.path: str = event.call_details.method.decode()
        self._server = server
        self._call = event.call
        # The core gives the deadline by the time of day, which may be set; from here on that decides nothing.
        left_s = event.call_details.deadline - time.time()
        self._expires = math.inf if left_s > _NEVER_S else time.perf_counter() + left_s
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
        left_s = self._expires - time.perf_counter()
        return None if math.isinf(left_s) else max(left_s, 0.0)

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
        except Exception as error:
            self._failed(error)
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
