"""How many CPUs a container's limit pays for, as control groups of both versions tell it."""

import os
from pathlib import Path

import pytest

from penult.service.runtime import cpu_count as module
from penult.service.runtime.cpu_count import cores


@pytest.fixture
def machine(monkeypatch):
    """A machine of 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": "nonsense"}, 64),
        ({}, 64),
    ],
)
def test_a_quota_bounds_the_threads(machine, tmp_path: Path, files: dict[str, str], expected: int):
    """A limit of two CPUs on a machine of 64 is two; none, or one that cannot be read, is all of them."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == expected


def test_here_it_is_what_the_scheduler_gives_or_less():
    """On this machine, with its own control group, there is at least one CPU and no more than may be run on."""
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
    assert module._ROOT.is_absolute()
