"""Around every RPC of our own services: parsing, error mapping, request ids and metrics.

Left alone, grpc.aio answers a broken message with INTERNAL and a bug with UNKNOWN and the exception's text
(research/reliability.md, section 3). Here a broken message is INVALID_ARGUMENT, and a bug INTERNAL with an id.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import grpc

from penult.service.errors import InvalidRequest, ServiceError, Unsupported, code_of, presentable
from penult.service.gate import Gate
from penult.service.metrics import Metrics

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, which is not generic at run time
_REQUEST_ID, _REASON, _RETRY = "penult-request-id", "penult-reason", "grpc-retry-pushback-ms"
# A server that leaves is alive until it has left, and says so.
_PROBES = ("ServerLive", "ServerReady", "ModelReady")


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of the services named; health and reflection pass untouched."""

    def __init__(self, services: tuple[str, ...], metrics: Metrics, gate: Gate) -> None:
        """Wrap methods whose path starts with /SERVICE/; they come in by the gate."""
        self._prefixes, self._metrics, self._gate = tuple(f"/{service}/" for service in services), metrics, gate
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped; made once per method, for it is the same for every call."""
        path = handler_call_details.method
        if path in self._wrapped:
            return self._wrapped[path]
        handler = await continuation(handler_call_details)
        if handler is not None and path.startswith(self._prefixes):
            handler = self._wrapped[path] = self._wrap(handler, path.rpartition("/")[2])
        return handler

    def _wrap(self, handler: Handler, method: str) -> Handler:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler, method), response_serializer=handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler, method), response_serializer=handler.response_serializer
        )

    def _let_in(self, method: str) -> AbstractContextManager[None]:
        return nullcontext() if method in _PROBES else self._gate.accepted()

    def _unary(self, handler: Handler, method: str) -> Callable[[bytes, Context], Awaitable[Any]]:
        async def call(data: bytes, context: Context) -> Any:
            rpc = _Rpc(method, context, self._metrics)
            try:
                with self._let_in(method):
                    response = await handler.unary_unary(_parse(handler, data), context)
            except BaseException as error:
                await rpc.fail(error)
            rpc.succeed(response)
            return response

        return call

    def _streaming(self, handler: Handler, method: str) -> Callable[..., AsyncIterator[Any]]:
        async def call(parts: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            rpc = _Rpc(method, context, self._metrics)
            response = None
            try:
                with self._let_in(method):
                    async for response in handler.stream_stream(_parse_all(handler, parts), context):
                        yield response
            except BaseException as error:
                await rpc.fail(error)
            rpc.succeed(response)

        return call


class _Rpc:
    """One call, from its first byte to its status."""

    def __init__(self, method: str, context: Context, metrics: Metrics) -> None:
        self._method, self._context, self._metrics = method, context, metrics
        self._id = uuid.uuid4().hex[:16]
        self._started = time.perf_counter()

    def succeed(self, response: Any) -> None:
        """Count an answer under the model that gave it."""
        self._context.set_trailing_metadata(((_REQUEST_ID, self._id),))
        self._count(*_answered_by(response), "OK")

    async def fail(self, error: BaseException) -> NoReturn:
        """Count and answer an error; cancellation and the server's own exits pass through."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            remaining = self._context.time_remaining()  # seconds; None without a deadline
            expired = remaining is not None and remaining <= 0
            self._count("", "", "DEADLINE_EXCEEDED" if expired else "CANCELLED")
            raise error
        if isinstance(error, NotImplementedError):  # what generated code raises for a method that we leave out
            error = Unsupported("UNIMPLEMENTED", f"this server does not offer {self._method}")
        error = presentable(error, self._id, self._method)
        code = code_of(error)
        self._count("", "", code.name)
        trailing = [(_REQUEST_ID, self._id), (_REASON, error.reason)]
        if isinstance(error, ServiceError) and error.retry_after_ms is not None:
            trailing.append((_RETRY, str(error.retry_after_ms)))
        await self._context.abort(code, error.message, tuple(trailing))

    def _count(self, model: str, version: str, code: str) -> None:
        self._metrics.requests.labels(model, version, self._method, code).inc()
        self._metrics.request_seconds.labels(self._method).observe(time.perf_counter() - self._started)


def _answered_by(response: Any) -> tuple[str, str]:
    """Return the name and version of the model that gave a response, "" where none did."""
    if hasattr(response, "model_name"):  # the Open Inference Protocol's answers
        return response.model_name, response.model_version
    model: Any = getattr(response, "model", None)
    # Answers name a ModelVersion there; GetModel's `model` is a description and counts under no model.
    return (model.name, str(model.version)) if hasattr(model, "fingerprint") else ("", "")


def _parse(handler: Handler, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except Exception as error:  # protobuf's DecodeError, and UnicodeDecodeError from some of its backends
        raise InvalidRequest("MESSAGE_MALFORMED", "the message is not a valid protobuf of this method") from error


async def _parse_all(handler: Handler, parts: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for data in parts:
        yield _parse(handler, data)
