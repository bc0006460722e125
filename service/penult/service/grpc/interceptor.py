"""Around every RPC of our own services: tokens, parsing, error mapping, request ids and metrics.

By default, grpc.aio answers a broken message with INTERNAL. It answers a bug with UNKNOWN and the exception's text
(research/reliability.md, section 3). Here a broken message is INVALID_ARGUMENT, and a bug INTERNAL with an id.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn, Protocol, cast

import grpc

from penult.bundle.errors import PenultError
from penult.service.auth.tokens import Tokens, right_of
from penult.service.errors import InvalidRequest, ServiceError, Unsupported, code_of
from penult.service.observability.call import PROBES, Call, Envelope, Method, set_caller

# grpc_server_* metrics spell codes as Go does.
_GO_NAMES = {code.name: code.name.title().replace("_", "") for code in grpc.StatusCode}
_GO_NAMES |= {"OK": "OK", "CANCELLED": "Canceled"}
_REQUEST_ID, _REASON, _RETRY = "penult-request-id", "penult-reason", "grpc-retry-pushback-ms"
# The module of a method that the protocol has and this server leaves out: gRPC's generated base.
_GENERATED = "_pb2_grpc"
_HEALTH = "/grpc.health.v1.Health/"
_AUTHORIZATION = "authorization"

Context = grpc.aio.ServicerContext[bytes, bytes]


class Handler(Protocol):
    """grpc.RpcMethodHandler, whose stubs declare none of its attributes."""

    response_streaming: bool
    request_deserializer: Callable[[bytes], object]
    response_serializer: Callable[[object], bytes]
    unary_unary: Callable[[object, Context], Awaitable[object]]
    stream_stream: Callable[[AsyncIterator[object], Context], AsyncIterator[object]]


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of the given services; health and reflection pass unchanged.

    With tokens, all methods but health and probes need one, reflection too. It is checked when the headers have
    arrived, before the message is read.
    """

    def __init__(self, services: tuple[str, ...], envelope: Envelope, tokens: Tokens | None = None) -> None:
        """Wrap the methods whose path starts with /SERVICE/."""
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._envelope = envelope
        self._tokens = tokens
        self._wrapped: dict[str, Handler] = {}
        self._methods: dict[str, _Method] = {}

    async def intercept_service(  # type: ignore[override]
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],  # type: ignore[override]
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's wrapped handler, the same for every call; None if there is no such method."""
        path = handler_call_details.method
        handler = self._wrapped.get(path)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is not None and path.startswith(self._prefixes):
                handler = self._wrapped[path] = self._wrap(handler, path)
        if self._tokens and not path.startswith(_HEALTH):
            return self._known(self._tokens, handler, handler_call_details)
        return handler

    def _known(self, tokens: Tokens, handler: Handler | None, details: grpc.HandlerCallDetails) -> Handler | None:
        """Set the caller and return the handler; return one that rejects the call if its token is not enough."""
        path = details.method
        name = path.rpartition("/")[2]
        if path in self._methods and name in PROBES:
            return handler
        metadata = dict(details.invocation_metadata or ())
        try:
            set_caller(tokens.check(str(metadata.get(_AUTHORIZATION, "")), right_of(name)))
        except ServiceError as error:
            return _refusing(error, self._methods.get(path))
        return handler

    def _wrap(self, handler: Handler, path: str) -> Handler:
        _, service, name = path.split("/")
        method = self._methods[path] = _Method(self._envelope, service, name, handler)
        if (handler.stream_stream if handler.response_streaming else handler.unary_unary).__module__.endswith(
            _GENERATED
        ):
            return _refusing(Unsupported("UNIMPLEMENTED", f"this server does not offer {name}"), method)
        if handler.response_streaming:
            return _stream_handler(_streaming(handler, method))
        return cast(Handler, grpc.unary_unary_rpc_method_handler(_unary(handler, method)))


def _unary(handler: Handler, method: "_Method") -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def call(data: bytes, context: Context) -> bytes:
        method.received.inc()
        answer = b""
        with method.begin(context) as call:
            call.admit()
            response = await handler.unary_unary(_parse(handler, data), context)
            answer = method.encode(response, call)
            call.answered_by = _answered_by(response)
            context.set_trailing_metadata(((_REQUEST_ID, call.id),))
        if call.error:
            await _abort(context, call.error, call.id)
        return answer

    return call


def _streaming(handler: Handler, method: "_Method") -> Callable[..., AsyncIterator[bytes]]:
    async def call(parts: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        response = None
        with method.begin(context) as call:
            call.admit()
            async for response in handler.stream_stream(_parse_all(handler, parts, method), context):
                yield method.encode(response, call)
            call.answered_by = _answered_by(response)
            context.set_trailing_metadata(((_REQUEST_ID, call.id),))
        if call.error:
            await _abort(context, call.error, call.id)

    return call


def _refusing(error: ServiceError, method: "_Method | None") -> Handler:
    """Return a handler that ends any call with an error and reads no message; our own methods count it."""

    async def refuse(parts: AsyncIterator[bytes], context: Context) -> None:
        id_ = ""
        if method:
            with method.begin(context) as call:
                raise error
            id_ = call.id
        await _abort(context, error, id_)

    return _stream_handler(refuse)


def _stream_handler(behaviour: Callable[..., object]) -> Handler:
    return cast(Handler, grpc.stream_stream_rpc_method_handler(behaviour))


async def _abort(context: Context, error: PenultError, id_: str) -> NoReturn:
    trailing = [(_REQUEST_ID, id_)] if id_ else []
    trailing.append((_REASON, error.reason))
    if isinstance(error, ServiceError) and error.retry_after_ms is not None:
        trailing.append((_RETRY, str(error.retry_after_ms)))
    await context.abort(grpc.StatusCode[code_of(error)], error.message, tuple(trailing))


class _Method(Method):
    """A method over gRPC, with the metrics that gRPC servers of other makes have."""

    def __init__(self, envelope: Envelope, service: str, name: str, handler: Handler) -> None:
        super().__init__(envelope, name, name, f"{service}/{name}")
        metrics = envelope.metrics
        self._labels = "bidi_stream" if handler.response_streaming else "unary", service, name
        self._started = metrics.rpcs_started.labels(*self._labels)
        self.received = metrics.rpc_received.labels(*self._labels)
        self._sent = metrics.rpc_sent.labels(*self._labels)
        self._rpc_seconds = metrics.rpc_seconds.labels(*self._labels)
        self._handled = metrics.rpcs_handled
        self._encode_phase = metrics.phase_seconds.labels("encode")
        self._serialize = handler.response_serializer

    def begin(self, context: Context) -> Call:
        """Begin one call."""
        self._started.inc()
        return Call(self, context.peer, lambda: _metadata(context), context.time_remaining)

    def encode(self, response: object, call: Call) -> bytes:
        """Return a response's bytes, and record the time."""
        started = time.perf_counter()
        data = self._serialize(response)
        ended = time.perf_counter()
        self._encode_phase.observe(ended - started)
        if call.trace:
            call.trace.phase("encode", started, ended)
        self._sent.inc()
        return data

    def record_transport(self, code: str, seconds: float) -> None:
        """Count one call in grpc_server_*."""
        self._handled.labels(*self._labels, _GO_NAMES[code]).inc()
        self._rpc_seconds.observe(seconds)


def _metadata(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _answered_by(response: object) -> tuple[str, str]:
    """Return the name and version of the model that gave a response, "" if none did."""
    if hasattr(response, "model_name") and hasattr(response, "model_version"):  # of the Open Inference Protocol
        return str(response.model_name), str(response.model_version)
    model = getattr(response, "model", None)
    # Answers hold a ModelVersion there; the `model` of GetModel is a description and counts under no model.
    return (model.name, str(model.version)) if model is not None and hasattr(model, "fingerprint") else ("", "")


def _parse(handler: Handler, data: bytes) -> object:
    try:
        return handler.request_deserializer(data)
    except Exception as error:  # protobuf's DecodeError, and UnicodeDecodeError from some of its backends
        raise InvalidRequest("MESSAGE_MALFORMED", "the message is not a valid protobuf of this method") from error


async def _parse_all(handler: Handler, parts: AsyncIterator[bytes], method: _Method) -> AsyncIterator[object]:
    async for data in parts:
        method.received.inc()
        yield _parse(handler, data)
