"""Threads on CPUs: many narrow runs without a measurement, or for latency the width whose fastest run is shortest."""

from functools import partial

import numpy as np
import pytest

from penult.bundle.reader import read_bundle
from penult.service.models.loader import Placement, load
from penult.service.runtime import cpu_threads
from penult.service.runtime.cpu_threads import CpuPlan, choose, fastest_runs_s, plans

NARROW, MIDDLE, WIDE = CpuPlan(1, 8), CpuPlan(4, 2), CpuPlan(8, 1)


@pytest.mark.parametrize(
    ("mode", "cores", "expected"),
    [
        ("throughput", 8, [(1, 8)]),
        ("auto", 2, [(1, 2)]),
        ("latency", 1, [(1, 1)]),
        ("latency", 2, [(1, 2), (2, 1)]),
        ("latency", 6, [(1, 6), (2, 3), (4, 1), (6, 1)]),
    ],
)
def test_the_plans_of_a_mode(mode, cores, expected):
    """Only latency has a choice; widths double up to all cores, and never is there more than one thread per core."""
    assert [(plan.threads, plan.callers) for plan in plans(mode, cores)] == expected


@pytest.mark.parametrize(
    ("fastest_s", "chosen"),
    [((0.08, 0.025, 0.015), WIDE), ((0.08, 0.0155, 0.015), MIDDLE), ((0.01, 0.01, 0.01), NARROW)],
)
def test_the_shortest_run_wins_and_of_equal_ones_the_narrowest(fastest_s, chosen):
    """A wider plan costs throughput, so it must be faster by more than a twentieth."""
    assert choose(dict(zip((NARROW, MIDDLE, WIDE), fastest_s, strict=True))) == chosen


def test_other_work_on_the_machine_does_not_decide(monkeypatch):
    """A load that delays all runs of a plan but one, and other runs of others, leaves the choice as it is."""
    now_ms = [0]
    true_ms = {NARROW: 40, WIDE: 25}
    delays_ms = {NARROW: iter([0, 0, 90, 90, 0, 90]), WIDE: iter([0, 90, 90, 90, 0, 90])}

    def run(plan: CpuPlan) -> None:
        now_ms[0] += true_ms[plan] + next(delays_ms[plan])

    monkeypatch.setattr(cpu_threads.time, "perf_counter", lambda: now_ms[0] / 1000)
    fastest_s = fastest_runs_s({plan: partial(run, plan) for plan in true_ms})
    assert fastest_s == {NARROW: pytest.approx(0.04), WIDE: pytest.approx(0.025)}
    assert choose(fastest_s) == WIDE


def test_a_slow_model_is_not_measured_for_long(monkeypatch):
    """A model of a second a run is timed in two rounds instead of five."""
    now_s, runs = [0.0], []

    def run() -> None:
        now_s[0] += 1.0
        runs.append(1)

    monkeypatch.setattr(cpu_threads.time, "perf_counter", lambda: now_s[0])
    assert fastest_runs_s({NARROW: run, WIDE: run}) == {NARROW: 1.0, WIDE: 1.0}
    assert len(runs) == 2 + 2 * 2


@pytest.mark.parametrize("mode", ["auto", "latency", "throughput"])
def test_every_mode_gives_the_same_answers(models, mode, caplog):
    """Whatever the threads, a bundle's goldens replay, and the log says what latency measured and chose."""
    caplog.set_level("DEBUG", "penult")
    model = load(read_bundle(models / "digits"), Placement("cpu", mode, cores=2))
    goldens = read_bundle(models / "digits").goldens
    logits, _ = model.session.run_images(list(goldens.crops))
    np.testing.assert_allclose(logits, goldens.logits, atol=1e-4 * np.abs(goldens.logits).max())
    assert sum("(chosen)" in message for message in caplog.messages) == (mode == "latency")
    if mode != "latency":
        assert model.session.callers == 2
