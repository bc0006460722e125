"""The metrics of several workers as those of one server.

Workers count into files of one folder, which outlive a worker that died; their supervisor adds the files up.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import PLATFORM_COLLECTOR, CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from penult.service.observability.accuracy_metrics import AccuracyCollector
from penult.service.observability.answer_window import Estimate
from penult.service.observability.gpu_metrics import gpus
from penult.service.observability.metrics import FILES, Exposition
from penult.service.observability.truths import Summary, Truths
from penult.service.observability.worker_windows import forget_windows, read_windows

_PROCESS_SUMS = ("cpu_seconds", "resident_memory_bytes", "virtual_memory_bytes", "open_fds")


class WorkersMetrics(Exposition):
    """The metrics of several workers as those of one server; what workers that have ended counted stays in."""

    def __init__(self, folder: Path, pids: Callable[[], Iterable[int]], ready: Callable[[], int]) -> None:
        """Add up the files in `folder`, and the processes that `pids` names now; `ready` counts workers that serve."""
        self.registry = CollectorRegistry()
        self._folder, self._pids, self.deaths = folder, pids, 0
        # What feedback says, and what reads it from the file that the workers write.
        self.truths = Truths()
        self.read_truths: Callable[[], None] = lambda: None
        self.registry.register(PLATFORM_COLLECTOR)
        self.registry.register(_Workers(folder))
        self.registry.register(_Processes(pids))
        self.registry.register(_Counts(lambda: (ready(), self.deaths)))
        self.registry.register(AccuracyCollector(self.accuracy))
        for collector in gpus():
            self.registry.register(collector)

    def accuracy(self) -> tuple[list[Estimate], list[Summary]]:
        """Return what all workers know together."""
        self.read_truths()
        estimates = [state.estimate() for state in read_windows(self._folder, self._pids)]
        return [estimate for estimate in estimates if estimate], self.truths.summaries()

    @property
    def worker_environment(self) -> dict[str, str]:
        """The variables that make a process count into the folder."""
        return {FILES: str(self._folder)}

    def forget(self, pid: int) -> None:
        """Leave out the gauges of a worker that has ended; its counters stay."""
        mark_process_dead(pid, str(self._folder))
        forget_windows(self._folder, pid)


class _Workers(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # A file is empty for a moment when a worker has just made it, which the merge would stumble over.
        files = [str(path) for path in self._folder.glob("*.db") if path.stat().st_size]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)
        return merged


class _Processes(Collector):
    """process_* of the supervisor and its workers together; memory that they share counts once for each."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids, self._cpu_seconds = pids, 0.0

    def collect(self) -> Iterator[Metric]:
        ended = os.times()  # before the others: a worker that ends meanwhile is then missed once, not counted twice
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
        yield GaugeMetricFamily("penult_fronts_ready", "Worker processes that serve.", ready)
        yield CounterMetricFamily("penult_front_deaths", "Worker processes that ended unasked.", deaths)


def _constant(pid: int) -> Callable[[], int]:
    return lambda: pid
