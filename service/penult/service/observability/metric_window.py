"""Metrics at one time, and their increase between two times: sums, shares, rates and quantiles.

Each query reads the samples of one metric once, however many classes the models have.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from penult.service.observability.metrics import Sample

_STARTED = time.time() - time.monotonic()
# No requests of clients, and too quick to count in the times of answers.
_PROBES = frozenset(("ServerLive", "ServerReady", "ModelReady"))
# Unary calls to a model or a collection; the client decides how long a stream takes.
_ASKING = frozenset(("Classify", "Describe", "Score", "Lookup", "ModelInfer", "Try"))

Labels = tuple[tuple[str, str], ...]


class MetricSnapshot:
    """Values by metric and labels."""

    def __init__(self, values: Mapping[str, Mapping[Labels, float]]) -> None:
        """Keep these values."""
        self.values = values

    def of(self, name: str, **labels: str) -> dict[Labels, float]:
        """Return the values of a metric that have some labels."""
        found, wanted = self.values.get(name, {}), labels.items()
        return {key: value for key, value in found.items() if wanted <= dict(key).items()}

    def sum(self, name: str, **labels: str) -> float:
        """Return their sum."""
        return sum(self.of(name, **labels).values())

    def share(self, name: str, of: str, **labels: str) -> float | None:
        """Return one sum as a share of another; None if that is 0."""
        whole = self.sum(of, **labels)
        return self.sum(name, **labels) / whole if whole else None

    def sums(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Return sums by the values of a label, in their order."""
        found: dict[str, float] = {}
        for key, value in self.of(name, **labels).items():
            which = dict(key)[label]
            found[which] = found.get(which, 0.0) + value
        return dict(sorted(found.items()))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Return the sums by the values of a label, without those that are 0."""
        return {which: value for which, value in self.sums(name, label, **labels).items() if value}

    def requests(self) -> dict[str, float]:
        """Return requests by code, without probes."""
        return self._among("penult_requests_total", lambda method: method not in _PROBES).by(
            "penult_requests_total", "code"
        )

    def quantiles_ms(self, *shares: float) -> list[float | None]:
        """Return quantiles of how long answers took, interpolated within a bucket as Prometheus does; or None."""
        name = "penult_request_seconds_bucket"
        counts = self._among(name, lambda method: method in _ASKING).sums(name, "le")
        by_bound = sorted((float(bound), count) for bound, count in counts.items())
        return [_quantile_ms(by_bound, share) for share in shares]

    def _among(self, name: str, is_wanted: Callable[[str], bool]) -> "MetricSnapshot":
        """Return one metric, only for some methods, over gRPC or HTTP."""
        found = self.values.get(name, {})
        return MetricSnapshot(
            {name: {key: value for key, value in found.items() if is_wanted(dict(key)["method"].removeprefix("http."))}}
        )


class MetricDelta(MetricSnapshot):
    """The increase of metrics between two snapshots."""

    def __init__(self, before: "TimedSnapshot", after: "TimedSnapshot", *names: str) -> None:
        """Compare two snapshots, of all or some metrics; a counter that restarted, as after a reload, counts from 0."""
        self.seconds = after.time - before.time
        super().__init__(
            {
                name: {key: _rise(before.metrics.values.get(name, {}).get(key, 0.0), now) for key, now in found.items()}
                for name, found in after.metrics.values.items()
                if not names or name in names
            }
        )

    def rate(self, count: float) -> float:
        """Return a count per second; 0 if half a second or less has passed."""
        return count / self.seconds if self.seconds > 0.5 else 0.0


@dataclass(frozen=True)
class TimedSnapshot:
    """All values at one time, in seconds since 1970."""

    time: float
    metrics: MetricSnapshot


def steady_time() -> float:
    """Return seconds since 1970 that never jump: the clock when this module was imported, plus monotonic time since."""
    return _STARTED + time.monotonic()


def take(samples: Iterable[Sample]) -> TimedSnapshot:
    """Return a snapshot of samples, with the time."""
    found: dict[str, dict[Labels, float]] = {}
    for name, labels, value in samples:
        found.setdefault(name, {})[tuple(sorted(labels.items()))] = value
    return TimedSnapshot(steady_time(), MetricSnapshot(found))


def _rise(before: float, now: float) -> float:
    return now - before if now >= before else max(now, 0.0)


def _quantile_ms(by_bound: list[tuple[float, float]], share: float) -> float | None:
    if not by_bound or not by_bound[-1][1]:
        return None
    wanted, low, below = share * by_bound[-1][1], 0.0, 0.0
    for bound, count in by_bound:
        if count >= wanted:
            width = 0.0 if math.isinf(bound) else bound - low
            return 1000 * (low + width * (wanted - below) / max(count - below, 1e-9))
        low, below = bound, count
    return 1000 * low
