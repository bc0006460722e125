"""Tune the threads of a model on CPUs: many runs of one thread each, or few runs of many threads.

Many narrow runs give the highest throughput, one wide run the lowest latency. How much they differ depends on model
and machine: on two cores, ResNet-18 gives 45 images/s at 44 ms a call, or 31 images/s at 33 ms (bench/RESULTS.md). So
both are timed at start, for a fraction of a second each.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

AUTO, LATENCY, THROUGHPUT = "auto", "latency", "throughput"
CPU_MODES = (AUTO, LATENCY, THROUGHPUT)
# In mode auto a lower latency must cost no throughput. Under load, wide runs lose more than on the idle machine that
# they are measured on, because each run waits for its slowest thread (bench/RESULTS.md).
_NEARLY_BEST = 0.98
_MEASURE_S = 0.2
_MAX_ALONE = 4


@dataclass(frozen=True)
class CpuPlan:
    """Threads within one run of the model, and runs that may go on at once."""

    threads: int
    callers: int


# Needs no measurement: one run at a time, on the caller's own thread.
SINGLE = CpuPlan(1, 1)


@dataclass(frozen=True)
class Speed:
    """Speed of a plan: images per second with all callers busy, and seconds of a single run of one image."""

    images_per_s: float
    run_s: float


Run = Callable[[], object]


def plans(mode: str, cores: int) -> list[CpuPlan]:
    """Return the plans to measure in a mode, narrow runs first: widths 1, 2, 4, … and all cores."""
    if mode == THROUGHPUT:
        return [CpuPlan(1, cores)]
    widths = sorted({*(2**n for n in range(cores.bit_length()) if 2**n <= cores), cores})
    return [CpuPlan(width, cores // width) for width in widths]


def measure(run: Run, plan: CpuPlan) -> Speed:
    """Time runs of one image, alone and by all callers at once; a slow model runs only twice."""
    alone = [_timed(run)]
    # The first run allocates; it counts only if there is no time for another one.
    while sum(alone) < _MEASURE_S and len(alone) < _MAX_ALONE:
        alone.append(_timed(run))
    until = time.perf_counter() + _MEASURE_S

    def keep_running(_: int) -> int:
        runs = 0
        while not runs or time.perf_counter() < until:
            run()
            runs += 1
        return runs

    started = time.perf_counter()
    with ThreadPoolExecutor(plan.callers) as threads:
        runs = sum(threads.map(keep_running, range(plan.callers)))
    return Speed(runs / (time.perf_counter() - started), min(alone))


def choose(mode: str, speeds: dict[CpuPlan, Speed]) -> CpuPlan:
    """Return the plan for a mode: lowest latency, highest throughput, or (auto) a balance."""
    best = max(speed.images_per_s for speed in speeds.values())
    floor = {LATENCY: 0.0, AUTO: _NEARLY_BEST * best, THROUGHPUT: best}[mode]
    good = [plan for plan, speed in speeds.items() if speed.images_per_s >= floor]
    return min(good, key=lambda plan: speeds[plan].run_s)


def _timed(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
