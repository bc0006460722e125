"""Count now, add to Prometheus later and in bulk.

An increment between two runs of a model takes 50 times as long as in a loop (research/speed.md). The reason is that the
processor's caches are cold. So a request only notes what it counts. The event loop adds the notes up a few times a
second, and every scrape does so first, so that it sees each request that has ended.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

_FOLD_S = 0.25
# Notes that are added at a time, in about 0.3 ms, before other threads get their turn.
_CHUNK = 400

# What adds a value, the value, and whether values may be added before: those of counters, not of histograms.
_Note = tuple[Callable[[float], object], float, bool]


class Notes:
    """Notes of what metrics count, from any thread."""

    def __init__(self) -> None:
        """Start empty."""
        self._notes: deque[_Note] = deque()
        self._lock = threading.Lock()

    def counter(self, child: Counter | Gauge) -> "NotedCounter":
        """Return what counts into one series of a counter or gauge."""
        return NotedCounter(self._notes, child)

    def histogram(self, child: Histogram) -> "NotedHistogram":
        """Return what observes into one series of a histogram."""
        return NotedHistogram(self._notes, child)

    def fold(self, most: int | None = None) -> bool:
        """Add `most` notes to their metrics, or all that there are now; return whether some are left."""
        notes, sums = self._notes, dict[Callable[[float], object], float]()
        with self._lock:
            for _ in range(len(notes) if most is None else min(most, len(notes))):
                act, value, is_sum = notes.popleft()
                if is_sum:
                    sums[act] = sums.get(act, 0.0) + value
                else:
                    act(value)
            for act, value in sums.items():
                act(value)
        return bool(notes)

    async def fold_regularly(self) -> None:
        """Add notes until cancelled."""
        while True:
            await asyncio.sleep(0 if self.fold(_CHUNK) else _FOLD_S)


class NotedCounter:
    """One series of a counter or gauge."""

    __slots__ = ("_act", "_notes")

    def __init__(self, notes: deque[_Note], child: Counter | Gauge) -> None:
        self._notes, self._act = notes, child.inc

    def inc(self, amount: float = 1) -> None:
        """Add an amount."""
        self._notes.append((self._act, amount, True))

    def dec(self, amount: float = 1) -> None:
        """Subtract an amount; for gauges."""
        self._notes.append((self._act, -amount, True))


class NotedHistogram:
    """One series of a histogram."""

    __slots__ = ("_act", "_notes")

    def __init__(self, notes: deque[_Note], child: Histogram) -> None:
        self._notes, self._act = notes, child.observe

    def observe(self, amount: float) -> None:
        """Count a value."""
        self._notes.append((self._act, amount, False))

    def observe_all(self, amounts: list[float]) -> None:
        """Count values."""
        act = self._act
        self._notes.extend([(act, amount, False) for amount in amounts])


class DirectHistogram:
    """One series of a histogram, counted at once."""

    def __init__(self, child: Histogram) -> None:
        """Count into this."""
        self.observe = child.observe

    def observe_all(self, amounts: list[float]) -> None:
        """Count values."""
        for amount in amounts:
            self.observe(amount)


class FoldFirst(Collector):
    """Adds the notes before a registry collects; it has no metrics, and must be registered first."""

    def __init__(self, notes: Notes) -> None:
        """Fold these."""
        self._notes = notes

    def describe(self) -> Iterable[Metric]:
        """Name no metric."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield nothing."""
        self._notes.fold()
        return iter(())
