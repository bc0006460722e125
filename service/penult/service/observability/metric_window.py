"""What metrics said at one time, and what they gained between two: sums, shares, rates and quantiles of it.

Each question goes over the samples of one metric once, however many classes models have.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from penult.service.observability.metrics import Sample

# Nobody's question, and too quick to say anything of how long an answer takes.
_STARTED = time.time() - time.monotonic()
_PROBES = frozenset(("ServerLive", "ServerReady", "ModelReady"))
# Calls that ask a model or a collection once; a stream takes as long as its caller likes.
_ASKING = frozenset(("Classify", "Describe", "Score", "Lookup", "ModelInfer", "Try"))

Labels = tuple[tuple[str, str], ...]


class MetricSnapshot:
    """Values by metric and labels."""

    def __init__(self, values: Mapping[str, Mapping[Labels, float]]) -> None:
        """Tell of these."""
        self.values = values

    def of(self, name: str, **labels: str) -> dict[Labels, float]:
        """Return the values of a metric that have some labels."""
        found, wanted = self.values.get(name, {}), labels.items()
        return {key: value for key, value in found.items() if wanted <= dict(key).items()}

    def sum(self, name: str, **labels: str) -> float:
        """Return their sum."""
        return sum(self.of(name, **labels).values())

    def share(self, name: str, of: str, **labels: str) -> float | None:
        """Return one sum as a share of another; None where that is 0."""
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
        """Return sums by the values of a label, those that are not 0."""
        return {which: value for which, value in self.sums(name, label, **labels).items() if value}

    def requests(self) -> dict[str, float]:
        """Return requests by code, probes left out."""
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
        """Return one metric, and of it only some methods, over gRPC or HTTP."""
        found = self.values.get(name, {})
        return MetricSnapshot(
            {name: {key: value for key, value in found.items() if is_wanted(dict(key)["method"].removeprefix("http."))}}
        )


class MetricDelta(MetricSnapshot):
    """What was gained within some seconds."""

    def __init__(self, before: "TimedSnapshot", after: "TimedSnapshot", *names: str) -> None:
        """Compare two, all or some metrics; what began anew, as a model that was loaded again, counts from 0."""
        self.seconds = after.time - before.time
        super().__init__(
            {
                name: {key: _rise(before.metrics.values.get(name, {}).get(key, 0.0), now) for key, now in found.items()}
                for name, found in after.metrics.values.items()
                if not names or name in names
            }
        )

    def rate(self, count: float) -> float:
        """Return a count per second; 0 where the time is too short to tell."""
        return count / self.seconds if self.seconds > 0.5 else 0.0


@dataclass(frozen=True)
class TimedSnapshot:
    """All values at one time, in seconds since 1970."""

    time: float
    metrics: MetricSnapshot


def steady_time() -> float:
    """Return seconds since 1970 that never jump: by the clock of this process's start, and what went by since."""
    return _STARTED + time.monotonic()


def take(samples: Iterable[Sample]) -> TimedSnapshot:
    """Note samples, and when that was."""
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
