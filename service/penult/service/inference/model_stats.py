"""What a model has answered since it was loaded, as Triton's statistics extension reports it."""

import threading
import time
from dataclasses import dataclass, field

from penult.service.inference.results import Timings

PHASES = ("queue", "decode", "inference", "score")


@dataclass
class Duration:
    """How often something happened, and the seconds it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count once more."""
        self.count += 1
        self.seconds += seconds


@dataclass
class Statistics:
    """Counts of requests, from any thread; `images` were answered, the last at `last_ms` (Unix time)."""

    images: int = 0
    last_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    phases: dict[str, Duration] = field(default_factory=lambda: {phase: Duration() for phase in PHASES})

    _lock: threading.Lock = field(default_factory=threading.Lock)

    def succeeded(self, images: int, timings: Timings) -> None:
        """Count a request that was answered."""
        with self._lock:
            self.images += images
            self.last_ms = time.time_ns() // 1_000_000
            self.success.add(timings.total)
            found = timings.queue, timings.decode, timings.inference, timings.score
            for duration, seconds in zip(self.phases.values(), found, strict=True):
                duration.count += 1
                duration.seconds += seconds

    def failed(self, seconds: float) -> None:
        """Count a request that was not."""
        with self._lock:
            self.fail.add(seconds)
