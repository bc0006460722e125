"""Choose the threads of a model on CPUs: many runs of one thread each, or one run of many threads.

Many narrow runs give the highest throughput: 1.2 to 1.4 times the images of one wide run (research/speed.md). So they
are the default, without a measurement, which other work on the machine could turn. Wide runs serve a lone caller
sooner. How wide depends on the model, so mode latency times the plans in turns, and compares their fastest runs: load
of other programs delays some runs of each plan, and hardly all of one.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

AUTO, LATENCY, THROUGHPUT = "auto", "latency", "throughput"
CPU_MODES = (AUTO, LATENCY, THROUGHPUT)
_ROUNDS = 5
# A slow model is timed in fewer rounds.
_MEASURE_S = 2.0
# A wider plan must be faster by so much, for it costs throughput.
_FASTER = 0.95


@dataclass(frozen=True)
class CpuPlan:
    """Threads within one run of the model, and runs that may go on at once."""

    threads: int
    callers: int


# Needs no measurement: one run at a time, on the caller's own thread.
SINGLE = CpuPlan(1, 1)


Run = Callable[[], object]


def plans(mode: str, cores: int) -> list[CpuPlan]:
    """Return the plans that a mode chooses from, narrow runs first: widths 1, 2, 4, … and all cores."""
    if mode != LATENCY:
        return [CpuPlan(1, cores)]
    widths = sorted({*(2**n for n in range(cores.bit_length()) if 2**n <= cores), cores})
    return [CpuPlan(width, cores // width) for width in widths]


def fastest_runs_s(runs: Mapping[CpuPlan, Run]) -> dict[CpuPlan, float]:
    """Return the seconds of the fastest run of each plan; the plans take turns."""
    for run in runs.values():
        run()  # allocates
    found = {plan: float("inf") for plan in runs}
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        for plan, run in runs.items():
            found[plan] = min(found[plan], _timed(run))
        if time.perf_counter() - started > _MEASURE_S:
            break
    return found


def choose(fastest_s: Mapping[CpuPlan, float]) -> CpuPlan:
    """Return the plan whose fastest run is the shortest; of nearly equal ones, the narrowest."""
    best = min(fastest_s.values())
    return next(plan for plan, seconds in fastest_s.items() if seconds * _FASTER <= best)


def _timed(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
