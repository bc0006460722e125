"""Around every RPC of our own services: tokens, parsing, error mapping, request ids and metrics.

By default grpc.aio answers an invalid message with INTERNAL. It answers a bug with UNKNOWN and the exception's text
(research/reliability.md, section 3). Here an invalid message is INVALID_ARGUMENT, and a bug is INTERNAL with an id.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from penult.service.auth import identity
from penult.service.auth.tokens import Tokens, right_of
from penult.service.errors import InvalidRequest, ServiceError, Unsupported, code_of, presentable
from penult.service.inference.drain import DrainGate
from penult.service.observability.logs import NO_ACCESS_LOG, AccessLog, request_id
from penult.service.observability.metrics import Metrics
from penult.service.observability.tracing import Tracing, current

# grpc_server_* metrics spell codes as Go does.
_GO_NAMES = {code.name: code.name.title().replace("_", "") for code in grpc.StatusCode}
_GO_NAMES |= {"OK": "OK", "CANCELLED": "Canceled"}
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, which is not generic at run time
# The client ends its call by its own clock, and its reset may come before the deadline has passed here.
_OVERTAKEN_S = 0.05
_REQUEST_ID, _REASON, _RETRY = "penult-request-id", "penult-reason", "grpc-retry-pushback-ms"
# A server that leaves is alive until it has left, and says so.
_PROBES = ("ServerLive", "ServerReady", "ModelReady")
# Where a method's code is gRPC's generated base: one that the protocol knows and this server leaves out.
_GENERATED = "_pb2_grpc"
_HEALTH = "/grpc.health.v1.Health/"
_AUTHORIZATION = "authorization"


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of the services named; health and reflection pass untouched.

    If tokens are required, every call but health and probes needs one, also reflection. The token is checked when the
    headers arrive, before the message is read.
    """

    def __init__(
        self,
        services: tuple[str, ...],
        metrics: Metrics,
        gate: DrainGate,
        access: AccessLog = NO_ACCESS_LOG,
        tracing: Tracing | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        """Wrap methods whose path starts with /SERVICE/; they come in by the gate."""
        self._tokens = tokens
        self._prefixes, self._gate = tuple(f"/{service}/" for service in services), gate
        self._watch = _Watch(metrics, access, tracing)
        self._wrapped: dict[str, Handler] = {}
        self._methods: dict[str, _Method] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped; made once per method, for it is the same for every call."""
        path = handler_call_details.method
        handler = self._wrapped.get(path)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is not None and path.startswith(self._prefixes):
                handler = self._wrapped[path] = self._wrap(handler, path)
        if self._tokens and not path.startswith(_HEALTH):
            return self._known(self._tokens, handler, handler_call_details)
        return handler

    def _known(self, tokens: Tokens, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        """Note who asks and return the handler; or one that refuses, where the token does not do."""
        path = details.method
        name = path.rpartition("/")[2]
        if path in self._methods and name in _PROBES:
            return handler
        metadata = dict(details.invocation_metadata or ())
        try:
            identity.set_caller(tokens.check(str(metadata.get(_AUTHORIZATION, "")), right_of(name)))
        except ServiceError as error:
            return _refusing(error, self._methods.get(path))
        return handler

    def _wrap(self, handler: Handler, path: str) -> Handler:
        _, service, name = path.split("/")
        method = self._methods[path] = _Method(self._watch, service, name, handler)
        if (handler.stream_stream or handler.unary_unary).__module__.endswith(_GENERATED):
            return _refusing(Unsupported("UNIMPLEMENTED", f"this server does not offer {name}"), method)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(handler, method))
        return grpc.unary_unary_rpc_method_handler(self._unary(handler, method))

    def _let_in(self, method: str) -> AbstractContextManager[None]:
        return nullcontext() if method in _PROBES else self._gate.accepted()

    def _unary(self, handler: Handler, method: "_Method") -> Callable[[bytes, Context], Awaitable[Any]]:
        async def call(data: bytes, context: Context) -> Any:
            rpc = _Rpc(method, context)
            method.received.inc()
            try:
                with self._let_in(method.name):
                    response = await handler.unary_unary(_parse(handler, data), context)
                answer = method.encode(response)
            except BaseException as error:
                await rpc.fail(error)
            rpc.succeed(response)
            return answer

        return call

    def _streaming(self, handler: Handler, method: "_Method") -> Callable[..., AsyncIterator[Any]]:
        async def call(parts: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            rpc = _Rpc(method, context)
            response = None
            try:
                with self._let_in(method.name):
                    async for response in handler.stream_stream(_parse_all(handler, parts, method), context):
                        yield method.encode(response)
            except BaseException as error:
                await rpc.fail(error)
            rpc.succeed(response)

        return call


def _refusing(error: ServiceError, method: "_Method | None") -> Handler:
    """Return a handler that ends any call with an error, and reads no message; counted where the method is ours."""

    async def refuse(parts: AsyncIterator[bytes], context: Context) -> None:
        if method:
            await _Rpc(method, context).fail(error)
        await context.abort(grpc.StatusCode[code_of(error)], error.message, ((_REASON, error.reason),))

    return grpc.stream_stream_rpc_method_handler(refuse)


@dataclass(frozen=True)
class _Watch:
    """Who wants to know of calls."""

    metrics: Metrics
    access: AccessLog
    tracing: Tracing | None


class _Method:
    """One method's metrics, looked up once."""

    def __init__(self, watch: _Watch, service: str, name: str, handler: Handler) -> None:
        metrics = watch.metrics
        labels = "bidi_stream" if handler.response_streaming else "unary", service, name
        self.name, self.path, self.watch, self.requests = name, f"{service}/{name}", watch, metrics.requests
        self.started, self.received, self._sent = (
            family.labels(*labels) for family in (metrics.rpcs_started, metrics.rpc_received, metrics.rpc_sent)
        )
        self.seconds, self._rpc_seconds = metrics.request_seconds.labels(name), metrics.rpc_seconds.labels(*labels)
        self._handled, self._labels = metrics.rpcs_handled, labels
        self._encode_phase, self._serialize = metrics.phase_seconds.labels("encode"), handler.response_serializer

    def encode(self, response: Any) -> bytes:
        """Return a response's bytes, with its time taken."""
        started = time.perf_counter()
        data: bytes = self._serialize(response)
        ended = time.perf_counter()
        self._encode_phase.observe(ended - started)
        if trace := current():
            trace.phase("encode", started, ended)
        self._sent.inc()
        return data

    def ended(self, model: str, version: str, code: str, seconds: float) -> None:
        """Count one call."""
        self.requests.labels(model, version, self.name, code).inc()
        self.seconds.observe(seconds)
        self._handled.labels(*self._labels, _GO_NAMES[code]).inc()
        self._rpc_seconds.observe(seconds)


class _Rpc:
    """One call, from its first byte to its status."""

    def __init__(self, method: _Method, context: Context) -> None:
        self._method, self._context = method, context
        self._id = uuid.uuid4().hex[:16]
        request_id.set(self._id)
        if not identity.caller():
            identity.set_caller(identity.host_of(context.peer()))
        self._started = time.perf_counter()
        tracing = method.watch.tracing
        self._trace = tracing.begin(method.path, _metadata(context), self._id) if tracing else None
        method.started.inc()

    def succeed(self, response: Any) -> None:
        """Count an answer under the model that gave it."""
        self._context.set_trailing_metadata(((_REQUEST_ID, self._id),))
        self._end(*_answered_by(response), "OK")

    async def fail(self, error: BaseException) -> NoReturn:
        """Count and answer an error; cancellation and the server's own exits pass through."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            remaining = self._context.time_remaining()  # seconds; None without a deadline
            expired = remaining is not None and remaining <= _OVERTAKEN_S
            self._end("", "", "DEADLINE_EXCEEDED" if expired else "CANCELLED")
            raise error
        error = presentable(error, self._id, self._method.name)
        code = code_of(error)
        self._end("", "", code, error.reason)
        trailing = [(_REQUEST_ID, self._id), (_REASON, error.reason)]
        if isinstance(error, ServiceError) and error.retry_after_ms is not None:
            trailing.append((_RETRY, str(error.retry_after_ms)))
        await self._context.abort(grpc.StatusCode[code], error.message, tuple(trailing))

    def _end(self, model: str, version: str, code: str, reason: str = "") -> None:
        seconds = time.perf_counter() - self._started
        self._method.ended(model, version, code, seconds)
        if self._trace:
            self._trace.end(code, model, version)
        self._method.watch.access.note(self._method.name, code, seconds, model, version, reason, self._context.peer)


def _metadata(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _answered_by(response: Any) -> tuple[str, str]:
    """Return the name and version of the model that gave a response, "" if none did."""
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


async def _parse_all(handler: Handler, parts: AsyncIterator[bytes], method: _Method) -> AsyncIterator[Any]:
    async for data in parts:
        method.received.inc()
        yield _parse(handler, data)
