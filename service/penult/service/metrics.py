"""The one place that knows the Prometheus client: every metric of the service. Names are fixed by DESIGN.md.

Labels hold nothing that a client chose: `model` and `version` are those that answered, empty where none did.
"""

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

# A timestamp series beside every counter doubles the output and no query here uses them.
disable_created_metrics()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server, in a registry of its own, so that tests can have several."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register everything; process metrics join a fresh registry only."""
        self.registry = registry or CollectorRegistry()
        if registry is None:
            for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
                self.registry.register(collector)
        self.requests = Counter(
            "penult_requests_total",
            "Requests answered.",
            ("model", "version", "method", "code"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "penult_request_seconds", "Time from the whole request read to the answer.", ("method",),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.phase_seconds = Histogram(
            "penult_phase_seconds", "Time of one image, or of one request's scoring, in a phase.", ("phase",),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "penult_batch_size", "Images per run of the model.", buckets=_IMAGES, registry=self.registry
        )
        self.queue_depth = Gauge(
            "penult_queue_depth", "Images accepted that wait to be decoded or run.", registry=self.registry
        )
        self.dropped = Counter("penult_dropped_total", "Images not answered.", ("reason",), registry=self.registry)
        self.model_info = Gauge(
            "penult_model_info", "1 for each model being served.",
            ("model", "version", "fingerprint", "architecture", "provider", "signed"), registry=self.registry,
        )  # fmt: skip
        self.reloads = Counter(
            "penult_reloads_total", "Bundles taken up or refused.", ("outcome",), registry=self.registry
        )
        for outcome in ("loaded", "refused"):
            self.reloads.labels(outcome)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text that Prometheus scrapes, and its content type, for an Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
