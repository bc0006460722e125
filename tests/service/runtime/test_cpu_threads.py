"""Threads are chosen by what was measured: many narrow runs, one wide run, or the best of both."""

import threading
import time

import numpy as np
import pytest

from penult.bundle.reader import read_bundle
from penult.service.models.loader import Placement, load
from penult.service.runtime import cpu_threads
from penult.service.runtime.cpu_threads import CpuPlan, Speed, choose, measure, plans

NARROW, MIDDLE, WIDE = CpuPlan(1, 8), CpuPlan(4, 2), CpuPlan(8, 1)


@pytest.mark.parametrize(
    ("mode", "cores", "expected"),
    [
        ("throughput", 8, [(1, 8)]),
        ("auto", 1, [(1, 1)]),
        ("auto", 2, [(1, 2), (2, 1)]),
        ("latency", 6, [(1, 6), (2, 3), (4, 1), (6, 1)]),
    ],
)
def test_the_plans_of_a_mode(mode, cores, expected):
    """Widths double up to all cores, and never is there more than one thread per core."""
    assert [(plan.threads, plan.callers) for plan in plans(mode, cores)] == expected


@pytest.mark.parametrize(
    ("mode", "chosen"), [("throughput", NARROW), ("latency", WIDE), ("auto", MIDDLE)]
)  # fmt: skip
def test_each_mode_chooses_what_it_promises(mode, chosen):
    """Throughput takes the most images, latency the shortest call, auto the shortest call among nearly the most."""
    speeds = {NARROW: Speed(100, 0.08), MIDDLE: Speed(99, 0.025), WIDE: Speed(60, 0.015)}
    assert choose(mode, speeds) == chosen


@pytest.mark.parametrize("callers", [1, 2, 3])
def test_measuring_counts_all_callers(monkeypatch, callers):
    """A model that takes 10 ms gives 100 images a second for each caller, and all callers run it at once."""
    now_ms = [0]

    def advance() -> None:
        now_ms[0] += 10

    # Nobody passes before all callers have come: runs one after the other would never end.
    together, main = threading.Barrier(callers, advance, timeout=120), threading.get_ident()
    monkeypatch.setattr(cpu_threads.time, "perf_counter", lambda: now_ms[0] / 1000)
    speed = measure(lambda: advance() if threading.get_ident() == main else together.wait(), CpuPlan(1, callers))
    assert speed.images_per_s == pytest.approx(100 * callers, rel=0.06)
    assert speed.run_s == pytest.approx(0.01)


def test_a_slow_model_is_not_measured_for_long():
    """A model that takes longer than the whole measurement runs once alone and once per caller."""
    runs = []
    speed = measure(lambda: (runs.append(1), time.sleep(0.25)), CpuPlan(1, 2))
    assert len(runs) == 3
    assert 0.25 <= speed.run_s < 0.4


@pytest.mark.parametrize("mode", ["auto", "latency", "throughput"])
def test_every_mode_gives_the_same_answers(models, mode, caplog):
    """Whatever the threads, a bundle's goldens replay, and the log says what was measured and chosen."""
    caplog.set_level("DEBUG", "penult")
    model = load(read_bundle(models / "digits"), Placement("cpu", mode, cores=2))
    goldens = read_bundle(models / "digits").goldens
    logits, _ = model.session.run_images(list(goldens.crops))
    np.testing.assert_allclose(logits, goldens.logits, atol=1e-4 * np.abs(goldens.logits).max())
    assert sum("(chosen)" in message for message in caplog.messages) == 1
    assert len(caplog.messages) == (1 if mode == "throughput" else 2)
    if mode == "throughput":
        assert model.session.callers == 2
