"""Around every RPC of our own services: tokens, parsing, error mapping, request ids and metrics.

By default, gRPC servers answer a broken message with INTERNAL. They answer a bug with UNKNOWN and the exception's text
(research/reliability.md, section 3). Here a broken message is INVALID_ARGUMENT, and a bug INTERNAL with an id.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, NoReturn, cast

import grpc

from penult.bundle.errors import PenultError
from penult.service.auth.tokens import Tokens, right_of
from penult.service.errors import InvalidRequest, ModelReplaced, ServiceError, Unsupported, code_of
from penult.service.grpc.rpc import Aborted, Handler, Rpc
from penult.service.grpc.streaming import expires
from penult.service.observability.call import PROBES, Call, Envelope, Method, ensure_caller, set_caller
from penult.service.observability.metrics import Counting

# grpc_server_* metrics spell codes as Go does.
_GO_NAMES = {code.name: code.name.title().replace("_", "") for code in grpc.StatusCode}
_GO_NAMES |= {"OK": "OK", "CANCELLED": "Canceled"}
_REQUEST_ID, _REASON, _RETRY = "penult-request-id", "penult-reason", "grpc-retry-pushback-ms"
# The module of a method that the protocol has and this server leaves out: gRPC's generated base.
_GENERATED = "_pb2_grpc"
_HEALTH = "/grpc.health.v1.Health/"
_AUTHORIZATION = "authorization"


class Interceptor:
    """Wraps the methods of the given services; health and reflection pass unchanged.

    With tokens, all methods but health and probes need one, reflection too. It is checked when the headers have
    arrived, before the message is read.
    """

    def __init__(
        self,
        services: tuple[str, ...],
        envelope: Envelope,
        tokens: Tokens | None = None,
        direct: Collection[str] = (),
        check_early: Callable[[str, float], None] = lambda client, expires: None,
    ) -> None:
        """Wrap the methods whose path starts with /SERVICE/.

        Args:
            services: full names of services.
            envelope: what all calls share.
            tokens: the tokens that callers need; None for none.
            direct: paths of the methods that need no event loop.
            check_early: raises ServiceError if a direct call of a client has no chance before it expires.

        """
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._envelope = envelope
        self._tokens = tokens
        self._direct = frozenset(direct)
        self._check_early = check_early
        self._wrapped: dict[str, Handler] = {}
        self._methods: dict[str, _Method] = {}

    def find(self, rpc: Rpc, handlers: Mapping[str, Handler]) -> tuple[Handler | None, bool]:
        """Return the method's wrapped handler, the same for every call, and whether it runs directly; raise Aborted."""
        path = rpc.path
        handler = self._wrapped.get(path)
        if handler is None:
            handler = handlers.get(path)
            if handler is not None and path.startswith(self._prefixes):
                handler = self._wrap(handler, path)
        if self._tokens and not path.startswith(_HEALTH):
            self._check_token(self._tokens, rpc)
        is_direct = path in self._direct
        if is_direct:
            self._check_queue(rpc)
        return handler, is_direct

    def _check_queue(self, rpc: Rpc) -> None:
        """Reject a call that the queue has no place for, before its message is read."""
        try:
            self._check_early(ensure_caller(rpc.peer), expires(rpc))
        except ServiceError as error:
            _refuse(error, rpc, self._methods[rpc.path])

    def _check_token(self, tokens: Tokens, rpc: Rpc) -> None:
        """Set the caller; reject the call if its token is not enough."""
        path = rpc.path
        name = path.rpartition("/")[2]
        if path in self._methods and name in PROBES:
            return
        metadata = dict(rpc.invocation_metadata())
        try:
            set_caller(tokens.check(str(metadata.get(_AUTHORIZATION, "")), right_of(name)))
        except ServiceError as error:
            _refuse(error, rpc, self._methods.get(path))

    def _wrap(self, handler: Handler, path: str) -> Handler:
        _, service, name = path.split("/")
        method = self._methods[path] = _Method(self._envelope, service, name, handler)
        act: Any = handler.stream_stream if handler.response_streaming else handler.unary_unary
        if act.__module__.endswith(_GENERATED):
            wrapped = _unsupported(name, method)
        elif handler.response_streaming:
            wrapped = _stream_handler(_streaming(handler, method))
        else:
            wrapped = cast(Handler, grpc.unary_unary_rpc_method_handler(_unary(handler, method)))
        self._wrapped[path] = wrapped
        return wrapped


def _unary(handler: Handler, method: "_Method") -> Callable[[bytes, Rpc], Awaitable[bytes]]:
    async def call(data: bytes, context: Rpc) -> bytes:
        method.received.inc()
        answer = b""
        with method.begin(context) as call:
            call.admit()
            request = _parse(handler, data)
            try:
                response = await handler.unary_unary(request, context)
            except ModelReplaced:  # once more, with the model that replaced it
                response = await handler.unary_unary(request, context)
            answer = method.encode(response, call)
            call.answered_by = _answered_by(response)
            context.set_trailing_metadata(((_REQUEST_ID, call.id),))
        if call.error:
            _abort(context, call.error, call.id)
        return answer

    return call


def _streaming(handler: Handler, method: "_Method") -> Callable[..., AsyncIterator[bytes]]:
    async def call(parts: AsyncIterator[bytes], context: Rpc) -> AsyncIterator[bytes]:
        response = None
        with method.begin(context) as call:
            call.admit()
            async for response in handler.stream_stream(_parse_all(handler, parts, method), context):
                yield method.encode(response, call)
            call.answered_by = _answered_by(response)
            context.set_trailing_metadata(((_REQUEST_ID, call.id),))
        if call.error:
            _abort(context, call.error, call.id)

    return call


def _unsupported(name: str, method: "_Method") -> Handler:
    """Return a handler for a method that this server leaves out; it reads no message."""

    async def refuse(parts: AsyncIterator[bytes], rpc: Rpc) -> None:
        _refuse(Unsupported("UNIMPLEMENTED", f"this server does not offer {name}"), rpc, method)

    return _stream_handler(refuse)


def _refuse(error: ServiceError, rpc: Rpc, method: "_Method | None") -> NoReturn:
    """End a call with an error before its message is read; our own methods count it."""
    id_ = ""
    if method:
        with method.begin(rpc) as call:
            raise error
        id_ = call.id
    _abort(rpc, error, id_)


def _stream_handler(behaviour: Callable[..., object]) -> Handler:
    return cast(Handler, grpc.stream_stream_rpc_method_handler(behaviour))


def _abort(context: Rpc, error: PenultError, id_: str) -> NoReturn:
    trailing = [(_REQUEST_ID, id_)] if id_ else []
    trailing.append((_REASON, error.reason))
    if isinstance(error, ServiceError) and error.retry_after_ms is not None:
        trailing.append((_RETRY, str(error.retry_after_ms)))
    context.set_trailing_metadata(tuple(trailing))
    raise Aborted(grpc.StatusCode[code_of(error)], error.message)


class _Method(Method):
    """A method over gRPC, with the metrics that gRPC servers of other makes have."""

    def __init__(self, envelope: Envelope, service: str, name: str, handler: Handler) -> None:
        super().__init__(envelope, name, name, f"{service}/{name}")
        metrics = envelope.metrics
        self._labels = "bidi_stream" if handler.response_streaming else "unary", service, name
        self._started = metrics.counting(metrics.rpcs_started.labels(*self._labels))
        self.received = metrics.counting(metrics.rpc_received.labels(*self._labels))
        self._sent = metrics.counting(metrics.rpc_sent.labels(*self._labels))
        self._rpc_seconds = metrics.observing(metrics.rpc_seconds.labels(*self._labels))
        self._handled: dict[str, Counting] = {}
        self._encode_phase = metrics.observing(metrics.phase_seconds.labels("encode"))
        self._serialize = cast(Callable[[object], bytes], handler.response_serializer)

    def begin(self, context: Rpc) -> Call:
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
        handled = self._handled.get(code)
        if handled is None:
            metrics = self.envelope.metrics
            handled = metrics.counting(metrics.rpcs_handled.labels(*self._labels, _GO_NAMES[code]))
            self._handled[code] = handled
        handled.inc()
        self._rpc_seconds.observe(seconds)


def _metadata(context: Rpc) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}


def _answered_by(response: object) -> tuple[str, str]:
    """Return the name and version of the model that gave a response, "" if none did."""
    if hasattr(response, "model_name") and hasattr(response, "model_version"):  # of the Open Inference Protocol
        return str(response.model_name), str(response.model_version)
    model = getattr(response, "model", None)
    # Answers hold a ModelVersion there; the `model` of GetModel is a description and counts under no model.
    return (model.name, str(model.version)) if model is not None and hasattr(model, "fingerprint") else ("", "")


def _parse(handler: Handler, data: bytes) -> object:
    try:
        return cast(Callable[[bytes], object], handler.request_deserializer)(data)
    except Exception as error:  # protobuf's DecodeError, and UnicodeDecodeError from some of its backends
        raise InvalidRequest("MESSAGE_MALFORMED", "the message is not a valid protobuf of this method") from error


async def _parse_all(handler: Handler, parts: AsyncIterator[bytes], method: _Method) -> AsyncIterator[object]:
    async for data in parts:
        method.received.inc()
        yield _parse(handler, data)
