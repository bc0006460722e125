"""When requests are due, which of them are measured, and the progress of a run."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from penult.bench.measure import OK, Row
from penult.bench.settings import LoadSettings

_TICK_S = 0.2


@dataclass(frozen=True)
class Progress:
    """State of a run: seconds so far and in all, images answered, failed requests, recent images/s."""

    seconds: float
    of_seconds: float | None
    is_warmup: bool
    images: int
    failed: int
    images_per_s: float


Watch = Callable[[Progress], None]


class Window:
    """The time that is measured, after a warm-up. Times are seconds of time.perf_counter()."""

    def __init__(self, settings: LoadSettings) -> None:
        """Begin now; `end_s` is None if requests are counted."""
        self.stopped = asyncio.Event()
        self.begun_s = time.perf_counter()
        self.start_s = self.begun_s + settings.warmup_s
        self.end_s = None if settings.requests else self.start_s + settings.duration_s
        self.closed_s = self.start_s
        self.due = 0
        self._left = settings.requests

    def may_send(self, due_s: float) -> bool:
        """Return True if a request due at this time belongs to the run, and count it if it is measured."""
        if self.stopped.is_set() or (self.end_s is not None and due_s >= self.end_s):
            return False
        if self.counts(due_s):
            if self._left == 0:
                return False
            if self._left is not None:
                self._left -= 1
            self.due += 1
        return True

    def counts(self, due_s: float) -> bool:
        """Return True if a request due at this time is measured, and not part of the warm-up."""
        return due_s >= self.start_s

    def close(self) -> None:
        """End now, or when it was planned to."""
        now = time.perf_counter()
        self.closed_s = now if self.end_s is None else min(now, self.end_s)


async def tick(window: Window, rows: Sequence[Row], watch: Watch) -> None:
    """Call `watch` with the progress, several times a second."""
    seen = images = failed = 0
    lately: deque[tuple[float, int]] = deque(maxlen=10)
    length_s = None if window.end_s is None else window.end_s - window.begun_s
    while True:
        await asyncio.sleep(_TICK_S)
        for row in rows[seen:]:
            images += row.images
            failed += row.code != OK
        seen = len(rows)
        now = time.perf_counter()
        lately.append((now, images))
        (then, had), span_s = lately[0], max(now - lately[0][0], 1e-9)
        rate = (images - had) / span_s if now > then else 0.0
        watch(Progress(now - window.begun_s, length_s, now < window.start_s, images, failed, rate))


async def sleep_until(due_s: float) -> None:
    """Sleep until this time on the clock, up to 1 ms longer; if it is past, let other tasks run."""
    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))


def gaps(settings: LoadSettings, rate: float) -> Iterator[float]:
    """Yield the seconds from one request to the next, endlessly, for `rate` images per second."""
    mean_s = settings.images_per_request / rate
    # Seeded, so that two runs have the same load.
    generator = random.Random(settings.seed)
    while True:
        yield mean_s if settings.arrivals == "uniform" else generator.expovariate(1 / mean_s)
