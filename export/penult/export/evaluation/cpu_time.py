"""Compare the CPU time of two functions that run in turns. Other work on the machine then slows both alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIN_ROUNDS, _MAX_ROUNDS, _MOST_S = 5, 31, 10.0
# The range of the ratio leaves out the lowest and the highest tenth of the rounds.
_TENTH = 0.1


@dataclass(frozen=True)
class CpuTimes:
    """CPU milliseconds per image of two functions, float64 [rounds, 2]."""

    ms: NDArray[np.float64]

    @property
    def medians(self) -> tuple[float, float]:
        """The median of each."""
        first, second = np.median(self.ms, axis=0).tolist()
        return first, second

    @property
    def texts(self) -> tuple[str, str]:
        """The medians as text."""
        first, second = (f"{ms:.{1 if ms >= 1 else 2}f}" for ms in self.medians)
        return first, second

    @property
    def ratio(self) -> float:
        """The median of the second by the first, of the same round."""
        return float(np.median(self.ms[:, 1] / self.ms[:, 0]))

    @property
    def ratio_range(self) -> tuple[float, float]:
        """The middle 80 % of the ratios."""
        low, high = np.quantile(self.ms[:, 1] / self.ms[:, 0], [_TENTH, 1 - _TENTH]).tolist()
        return low, high

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        before, after = self.medians
        return {
            "cpu_ms_before": before,
            "cpu_ms_after": after,
            "ratio": self.ratio,
            "ratio_range_80": list(self.ratio_range),
            "rounds": len(self.ms),
        }


def in_turns(first: Callable[[int], object], second: Callable[[int], object], images: int) -> CpuTimes:
    """Run two functions on images 0 to `images` - 1, one at a time, in rounds that they begin in turns.

    Only the calling thread's time is counted, so the functions must not use others.
    """
    runs = (first, second)
    for run in runs:
        run(0)  # allocates
    rows: list[list[float]] = []
    started = time.perf_counter()
    while len(rows) < _MAX_ROUNDS and (len(rows) < _MIN_ROUNDS or time.perf_counter() - started < _MOST_S):
        row = [0.0, 0.0]
        for which in (0, 1) if len(rows) % 2 == 0 else (1, 0):
            row[which] = _ms(runs[which], images)
        rows.append(row)
    return CpuTimes(np.array(rows))


def _ms(run: Callable[[int], object], images: int) -> float:
    started = time.thread_time()
    for image in range(images):
        run(image)
    return 1000 * (time.thread_time() - started) / images
