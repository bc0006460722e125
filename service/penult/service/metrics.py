"""The one place that knows the Prometheus client: every metric of the service. Names are fixed by DESIGN.md.

Labels hold nothing that a client chose: `model` and `version` are those that answered, empty where none did.
Several fronts count into files of one folder, which outlive a front that died; their supervisor adds the files up.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

# A timestamp series beside every counter doubles the output and no query here uses them.
disable_created_metrics()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
_FILES = "PROMETHEUS_MULTIPROC_DIR"  # read by the Prometheus client when it is imported
_PROCESS_SUMS = ("cpu_seconds", "resident_memory_bytes", "virtual_memory_bytes", "open_fds")


class Exposition:
    """What can be scraped."""

    registry: CollectorRegistry

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text that Prometheus scrapes, and its content type, for an Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class Metrics(Exposition):
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
            "penult_queue_depth", "Images accepted that wait to be decoded or run.", registry=self.registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.dropped = Counter("penult_dropped_total", "Images not answered.", ("reason",), registry=self.registry)
        self.model_info = Gauge(
            "penult_model_info", "1 for each model being served.",
            ("model", "version", "fingerprint", "architecture", "provider", "signed"), registry=self.registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.reloads = Counter(
            "penult_reloads_total", "Versions loaded, refused, and retired.", ("outcome",), registry=self.registry
        )
        for outcome in ("loaded", "refused", "retired"):
            self.reloads.labels(outcome)

    def took_up(self, *model: str) -> None:
        """Tell of a model that is served now; `model` are the labels of penult_model_info."""
        self.reloads.labels("loaded").inc()
        self.model_info.labels(*model).set(1)

    def retired(self, *model: str) -> None:
        """Tell of a model that is served no longer."""
        self.reloads.labels("retired").inc()
        self.model_info.labels(*model).set(0)
        if _FILES not in os.environ:  # a file of several fronts cannot lose a series; it says 0
            self.model_info.remove(*model)


class FrontsMetrics(Exposition):
    """The metrics of several fronts as those of one server; what fronts that have ended counted stays in."""

    def __init__(self, folder: Path, pids: Callable[[], Iterable[int]], ready: Callable[[], int]) -> None:
        """Add up the files in `folder`, and the processes that `pids` names now; `ready` counts fronts that serve."""
        self.registry = CollectorRegistry()
        self._folder, self.deaths = folder, 0
        self.registry.register(PLATFORM_COLLECTOR)
        self.registry.register(_Fronts(folder))
        self.registry.register(_Processes(pids))
        self.registry.register(_Counts(lambda: (ready(), self.deaths)))

    @property
    def front_environment(self) -> dict[str, str]:
        """The variables that make a process count into the folder."""
        return {_FILES: str(self._folder)}

    def forget(self, pid: int) -> None:
        """Leave out the gauges of a front that has ended; its counters stay."""
        mark_process_dead(pid, str(self._folder))


class _Fronts(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # A file is empty for a moment when a front has just made it, which the merge would stumble over.
        return MultiProcessCollector.merge([str(path) for path in self._folder.glob("*.db") if path.stat().st_size])


class _Processes(Collector):
    """process_* of the supervisor and its fronts together; memory that they share counts once for each."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids, self._cpu_seconds = pids, 0.0

    def collect(self) -> Iterator[Metric]:
        ended = os.times()  # before the others: a front that ends meanwhile is then missed once, not counted twice
        own = {metric.name: metric for metric in ProcessCollector(registry=None).collect()}
        sums = {name: own[name].samples[0].value for name in self._summed(own)}
        for pid in self._pids():
            for metric in ProcessCollector(pid=_constant(pid), registry=None).collect():
                if metric.name in sums:
                    sums[metric.name] += metric.samples[0].value
        for name, metric in own.items():
            value = sums.get(name, metric.samples[0].value)
            if name == "process_cpu_seconds":
                self._cpu_seconds = max(self._cpu_seconds, value + ended.children_user + ended.children_system)
                yield CounterMetricFamily(name, metric.documentation, self._cpu_seconds)
            else:
                yield GaugeMetricFamily(name, metric.documentation, value)

    @staticmethod
    def _summed(own: dict[str, Metric]) -> list[str]:
        return [name for kind in _PROCESS_SUMS if (name := f"process_{kind}") in own]


class _Counts(Collector):
    def __init__(self, read: Callable[[], tuple[int, int]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        ready, deaths = self._read()
        yield GaugeMetricFamily("penult_fronts_ready", "Front processes that serve.", ready)
        yield CounterMetricFamily("penult_front_deaths", "Front processes that ended unasked.", deaths)


def _constant(pid: int) -> Callable[[], int]:
    return lambda: pid
