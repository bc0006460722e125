"""Send spans of requests to an OpenTelemetry collector.

Each RPC has a span, with a child span per phase, and each run is linked to its batch. Only this module uses
OpenTelemetry, an extra that it imports only with --trace. Without --trace, and for requests that are not sampled,
current() is None and callers record no spans. A request with a W3C `traceparent` continues its caller's trace.
"""

import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from penult.extras import how_to_install
from penult.proxies import channel_options
from penult.service.errors import ConfigError

_EPOCH_NS = time.time_ns() - time.perf_counter_ns()
_FLUSH_MS = 2000


@dataclass(frozen=True, eq=False)
class Trace:
    """A request that is traced, and the parent of its phases."""

    tracer: Any
    span: Any
    context: Any
    batch_tracer: Any

    def phase(self, name: str, started: float, ended: float, **attributes: Any) -> None:
        """Add a phase that has ended, from any thread; times are by time.perf_counter()."""
        span = self.tracer.start_span(name, context=self.context, start_time=_ns(started), attributes=attributes)
        span.end(_ns(ended))

    def ran(self, started: float, ended: float, batch: Any) -> None:
        """Add the run of the model for an image, linked to the batch's span (see batch())."""
        from opentelemetry.trace import Link

        links = [Link(batch.get_span_context())]
        span = self.tracer.start_span("inference", context=self.context, start_time=_ns(started), links=links)
        span.end(_ns(ended))

    def end(self, code: str, model: str, version: str) -> None:
        """End the request's span."""
        from opentelemetry.trace import StatusCode

        self.span.set_attributes({"rpc.grpc.status": code, "penult.model": model, "penult.version": version})
        if code not in ("OK", "CANCELLED"):
            self.span.set_status(StatusCode.ERROR, code)
        self.span.end()


# Of the request that the current task works for.
_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace | None:
    """Return the trace of the request that the current task works for; None if it is not traced."""
    return _current.get()


def batch(traces: Iterable[Trace | None], started: float, ended: float, images: int) -> Any:
    """Record a run of the model as a span linked to its traced requests; None without them."""
    traced = [trace for trace in traces if trace]
    if not traced:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import Link

    span = traced[0].batch_tracer.start_span(
        "batch", context=Context(), start_time=_ns(started), attributes={"penult.images": images},
        links=[Link(trace.span.get_span_context()) for trace in dict.fromkeys(traced)],
    )  # fmt: skip
    span.end(_ns(ended))
    return span


class Tracing:
    """Begins the spans of requests, and sends ended spans to a collector."""

    def __init__(self, endpoint: str, share: float) -> None:
        """Send to an OTLP/gRPC collector; sample this share of requests without `traceparent`. Raises ConfigError."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise ConfigError("TRACE", f"--trace needs {error.name}: {how_to_install('tracing')}") from error
        resource = Resource.create({"service.name": "penult"})
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=not endpoint.startswith("https://"),
            channel_options=self._way(endpoint),
        )  # fmt: skip
        self._processor = BatchSpanProcessor(exporter)
        # A batch is recorded only for sampled requests, so it needs no sampling.
        self._tracer, self._batch_tracer = (
            self._tracer_of(TracerProvider(resource=resource, sampler=sampler))
            for sampler in (ParentBased(TraceIdRatioBased(share)), ALWAYS_ON)
        )
        self._propagator = TraceContextTextMapPropagator()

    @staticmethod
    def _way(endpoint: str) -> Any:  # the exporter's own annotation knows texts only; gRPC takes numbers too
        where = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        return tuple(channel_options(where.hostname or "", str(where.port or "")))

    def _tracer_of(self, provider: Any) -> Any:
        provider.add_span_processor(self._processor)
        return provider.get_tracer("penult")

    def begin(self, name: str, metadata: Mapping[str, str], request_id: str) -> Trace | None:
        """Begin the span of a request in its task; return None if it is not sampled."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = self._propagator.extract(metadata) if "traceparent" in metadata else None
        span = self._tracer.start_span(
            name, context=parent, kind=SpanKind.SERVER, attributes={"penult.request_id": request_id}
        )
        trace = (
            Trace(self._tracer, span, set_span_in_context(span), self._batch_tracer) if span.is_recording() else None
        )
        _current.set(trace)
        return trace

    def close(self) -> None:
        """Send the remaining spans; this blocks for long if the collector does not answer."""
        self._processor.force_flush(_FLUSH_MS)


def _ns(seconds: float) -> int:
    return _EPOCH_NS + int(1e9 * seconds)
