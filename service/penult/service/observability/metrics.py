"""Every metric of the service, and the Prometheus client behind them. Names are fixed by DESIGN.md.

A client cannot choose the value of a label. `model` and `version` are those that answered, and are empty if none did.
`label` is one of the model's classes, or OTHERS.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

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
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from penult.bundle.baseline import Baseline
from penult.service.observability.accuracy_metrics import AccuracyCollector
from penult.service.observability.answer_window import Estimate, Windows
from penult.service.observability.comparisons import Compared, Comparisons
from penult.service.observability.gpu_metrics import gpus
from penult.service.observability.notes import DirectHistogram, FoldFirst, NotedCounter, NotedHistogram, Notes
from penult.service.observability.shadow_metrics import ShadowCollector
from penult.service.observability.truths import Summary, Truths

# A timestamp series beside every counter doubles the output and no query here uses them.
disable_created_metrics()

FILES = "PROMETHEUS_MULTIPROC_DIR"  # read by the Prometheus client when it is imported

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
_NEIGHBOURS = (0, 1, 2, 5, 10, 20, 50, 100, 1000)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_RATIOS = (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5)
_DISTANCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 2)
_MODEL = ("model", "version")
# The label that stands for the classes without series of their own, and the default limit of those that have.
OTHERS, MAX_CLASSES = "(other)", 1000
_RPC = ("grpc_type", "grpc_service", "grpc_method")


# What the names of samples add to that of their family.
_SAMPLE_ENDS = ("", "_total", "_bucket", "_count", "_sum")

# Name, labels and value.
Sample = tuple[str, Mapping[str, str], float]


Counting = Counter | NotedCounter
Observing = DirectHistogram | NotedHistogram


class Exposition:
    """Metrics that Prometheus can scrape."""

    registry: CollectorRegistry

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text that Prometheus scrapes, and its content type, for an Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def samples(self, families: Iterable[str]) -> Iterator[Sample]:
        """Yield the samples of families, which are named without _total."""
        wanted = set(families)
        for family in self._collect(wanted):
            if family.name in wanted:
                yield from ((sample.name, sample.labels, sample.value) for sample in family.samples)

    def accuracy(self) -> tuple[list[Estimate], list[Summary]]:
        """Return the estimate of each version with answers, and the counts of each with feedback; raise OSError."""
        return [], []

    def compared(self) -> list[Compared]:
        """Return what is known of each shadow."""
        return []

    def _collect(self, families: set[str]) -> Iterable[Metric]:
        """Return families, these among them."""
        return self.registry.collect()


class Metrics(Exposition):
    """The metrics of one server, in a registry of its own, so that tests can have several."""

    def __init__(self, registry: CollectorRegistry | None = None, max_classes: int = MAX_CLASSES) -> None:
        """Register everything; process and GPU metrics join a fresh registry only.

        Each version gets series for at most `max_classes` labels. Each series costs the server, each scrape and
        Prometheus, and ten thousand of one version would slow all three.
        """
        self.registry, self._max_classes = registry or CollectorRegistry(), max_classes
        self.notes, self.windows, self.truths = Notes(), Windows(), Truths()
        self.comparisons = Comparisons()
        self.registry.register(FoldFirst(self.notes))
        if registry is None:
            for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR, *gpus()):
                self.registry.register(collector)
        self._add_requests()
        self._add_models()
        self._add_answers()
        self._add_lookups()
        self._add_customary()
        self.registry.register(AccuracyCollector(self.accuracy))
        self.registry.register(ShadowCollector(self.compared))

    def accuracy(self) -> tuple[list[Estimate], list[Summary]]:
        """Return what this process knows."""
        estimates = [state.estimate() for state in self.windows.states()]
        return [estimate for estimate in estimates if estimate], self.truths.summaries()

    def compared(self) -> list[Compared]:
        """Return what this process has compared."""
        return self.comparisons.now()

    def _add_requests(self) -> None:
        self.requests = self._counter("penult_requests_total", "Requests answered.", *_MODEL, "method", "code")
        self.request_seconds = self._histogram(
            "penult_request_seconds", "Time from the whole request read to the answer.", _SECONDS, "method"
        )
        self.phase_seconds = self._histogram(
            "penult_phase_seconds",
            "Time in a phase: of one image (decode, queue), of one run (inference), of one request (others).",
            _SECONDS, "phase",
        )  # fmt: skip
        self.batch_size = self._histogram("penult_batch_size", "Images per run of the model.", _IMAGES)
        self.batches = self._counter(
            "penult_batches_total", "Runs of the model, by trigger: full batch, idle model, delay over.",
            "trigger",
        )  # fmt: skip
        self.device_events = self._counter(
            "penult_device_events_total", "Batches that failed on the device, and models rebuilt after that.", "event"
        )
        for event in ("batch_retried", "batch_failed", "rebuilt", "rebuild_failed"):
            self.device_events.labels(event)
        self.queue_depth = self._gauge(
            "penult_queue_depth", "Images accepted that wait to be decoded or run.", mode="livesum"
        )
        self.dropped = self._counter("penult_dropped_total", "Images not answered.", "reason")
        for reason in ("bad_image", "queue_full", "too_late", "deadline", "cancelled"):
            self.dropped.labels(reason)  # at 0 before the first, so that a rise is seen
        self.kept_images = self._counter(
            "penult_kept_images_total", "Images of callers stored by --keep-unsure.", "model", "reason"
        )
        self.kept_images_dropped = self._counter(
            "penult_kept_images_dropped_total", "Images that --keep-unsure could not store.", "reason"
        )
        self.images = self._counter("penult_images_total", "Images accepted, by format.", "format")
        self.shadow_images = self._counter(
            "penult_shadow_images_total", "Images for shadows: compared, shed, failed.", *_MODEL, "outcome"
        )

    def _add_models(self) -> None:
        self.model_info = self._gauge(
            "penult_model_info", "1 for each model being served.",
            *_MODEL, "fingerprint", "architecture", "provider", "signed",
        )  # fmt: skip
        self.reloads = self._counter("penult_reloads_total", "Versions loaded, refused, and retired.", "outcome")
        for outcome in ("loaded", "refused", "retired"):
            self.reloads.labels(outcome)
        self.credentials = self._counter(
            "penult_credentials_reloads_total", "Certificates and tokens read again.", "kind", "outcome"
        )
        self.certificate_expiry = self._gauge(
            "penult_certificate_expiry_timestamp_seconds",
            "When the certificate ends, Unix time; 0: no TLS.",
            mode="livemin",
        )

    def _add_answers(self) -> None:
        self.answers = self._counter("penult_answers_total", "Images by predicted class.", *_MODEL, "label")
        self.confidence = self._histogram(
            "penult_confidence", "Probability of the predicted class.", _SHARES, *_MODEL, "scorer"
        )
        self.novelty_ratio = self._histogram(
            "penult_novelty_ratio", "Novelty of images, in units of the model's threshold.", _RATIOS, *_MODEL
        )
        self.novel = self._counter("penult_novel_total", "Images above the model's novelty threshold.", *_MODEL)
        self.abstained = self._counter(
            "penult_abstained_total", "Answers withheld by an operating point.", *_MODEL, "reason"
        )
        self.neighbour_distance = self._histogram(
            "penult_neighbour_distance", "1 - cosine of images to their nearest stored item.", _DISTANCES, *_MODEL
        )
        self.baseline_class_share = self._gauge(
            "penult_baseline_class_share", "Share of validation images by predicted class.", *_MODEL, "label"
        )
        self.baseline_confidence = self._gauge(
            "penult_baseline_confidence", "Mean probability of the predicted class, on validation images.",
            *_MODEL, "scorer",
        )  # fmt: skip
        self.baseline_novel_share = self._gauge(
            "penult_baseline_novel_share",
            "Share of held-out images with a novelty above the threshold.",
            *_MODEL,
        )
        self.baseline_photos = self._gauge(
            "penult_baseline_photos", "Validation images that the baseline was measured on.", *_MODEL
        )
        self.baseline_distance = self._gauge(
            "penult_baseline_neighbour_distance",
            "Mean 1 - cosine of validation images to their nearest training image.", *_MODEL,
        )  # fmt: skip

    def _add_lookups(self) -> None:
        self.lookup_seconds = self._histogram(
            "penult_lookup_seconds",
            "Time in the store of collections.",
            _SECONDS,
            "operation",
        )
        self.lookup_results = self._histogram("penult_lookup_results", "Neighbours found per query.", _NEIGHBOURS)
        self.lookup_collections = self._gauge("penult_lookup_collections", "Collections, as last counted.")
        self.lookup_items = self._gauge("penult_lookup_items", "Items of all collections, as last counted.")

    def _add_customary(self) -> None:
        """Add the usual counts of gRPC servers, under the names of go-grpc-prometheus."""
        self.rpcs_started = self._counter("grpc_server_started_total", "RPCs begun.", *_RPC)
        self.rpcs_handled = self._counter("grpc_server_handled_total", "RPCs ended.", *_RPC, "grpc_code")
        self.rpc_seconds = self._histogram("grpc_server_handling_seconds", "Time of RPCs.", _SECONDS, *_RPC)
        self.rpc_received = self._counter("grpc_server_msg_received_total", "Messages received.", *_RPC)
        self.rpc_sent = self._counter("grpc_server_msg_sent_total", "Messages sent.", *_RPC)

    def _collect(self, families: set[str]) -> Iterable[Metric]:
        """Read only these families; do not query the process or the GPUs."""
        self.notes.fold()
        return self.registry.restricted_registry([f + end for f in families for end in _SAMPLE_ENDS]).collect()

    def counting(self, child: Counter) -> Counting:
        """Return what counts into one series: through notes, or at once if other processes read the metrics."""
        return child if FILES in os.environ else self.notes.counter(child)

    def gauging(self, child: Gauge) -> Gauge | NotedCounter:
        """Return what adds to and subtracts from one series, as counting()."""
        return child if FILES in os.environ else self.notes.counter(child)

    def observing(self, child: Histogram) -> Observing:
        """Return what observes into one series, as counting()."""
        return DirectHistogram(child) if FILES in os.environ else self.notes.histogram(child)

    def loaded(self, *model: str) -> None:
        """Count a loaded model and show it as served; `model` has the labels of penult_model_info."""
        self.reloads.labels("loaded").inc()
        self.model_info.labels(*model).set(1)

    def retired(self, *model: str) -> None:
        """Count a retired model and show it as no longer served."""
        self.reloads.labels("retired").inc()
        self.model_info.labels(*model).set(0)
        if FILES not in os.environ:  # a file of several workers cannot lose a series; it says 0
            self.model_info.remove(*model)

    def series_of(self, classes: Sequence[str], baseline: Baseline | None) -> dict[str, str]:
        """Return the label that stands for each class: its own, or OTHERS.

        The classes most often predicted on validation images have their own; without a baseline, the first classes.
        """
        if len(classes) <= self._max_classes:
            return dict(zip(classes, classes, strict=True))
        shares = baseline.class_share.tolist() if baseline else [0.0] * len(classes)
        by_share = sorted(range(len(classes)), key=lambda place: -shares[place])
        own = set(by_share[: self._max_classes - 1])
        return {name: name if place in own else OTHERS for place, name in enumerate(classes)}

    def state_baseline(self, model: tuple[str, str], classes: Sequence[str], baseline: Baseline) -> None:
        """Set the baseline gauges from a model's answers on its validation images; `model` is name and version."""
        of_label: dict[str, float] = {}
        series = self.series_of(classes, baseline)
        for name, share in zip(classes, baseline.class_share.tolist(), strict=True):
            of_label[series[name]] = of_label.get(series[name], 0.0) + share
        for label, share in of_label.items():
            self.baseline_class_share.labels(*model, label).set(share)
        for scorer, confidence in baseline.confidence.items():
            self.baseline_confidence.labels(*model, scorer).set(confidence)
        self.baseline_novel_share.labels(*model).set(baseline.limit.share)
        self.baseline_distance.labels(*model).set(baseline.distance)
        if baseline.photos:
            self.baseline_photos.labels(*model).set(baseline.photos)

    def forget_answers(self, model: tuple[str, str], classes: Iterable[str], scorers: Iterable[str]) -> None:
        """Remove a model's series, so that reloads do not accumulate them; files of several workers keep them."""
        if FILES in os.environ:
            return
        more: dict[MetricWrapperBase, Iterable[str]] = {self.answers: classes, self.baseline_class_share: classes}
        more |= {self.confidence: scorers, self.baseline_confidence: scorers}
        more |= {self.abstained: ("unsure", "novel")}
        for family, labels in more.items():
            for label in labels:
                _forget(family, *model, label)
        for family in (self.novelty_ratio, self.novel, self.neighbour_distance, self.baseline_novel_share,
                       self.baseline_distance, self.baseline_photos):  # fmt: skip
            _forget(family, *model)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(name, help_, labels, registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str, mode: Any = "livemax") -> Gauge:
        return Gauge(name, help_, labels, registry=self.registry, multiprocess_mode=mode)

    def _histogram(self, name: str, help_: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, help_, labels, buckets=buckets, registry=self.registry)


def _forget(family: MetricWrapperBase, *labels: str) -> None:
    try:
        family.remove(*labels)
    except KeyError:  # it has no such series
        return
