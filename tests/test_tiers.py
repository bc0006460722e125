"""Every test has one tier, and none can leave it unnoticed."""

import subprocess
import sys

import pytest
from tests.tiers import TIERS, ranks_of, refusal, tier_of


@pytest.mark.parametrize(
    ("folders", "fixtures", "marks", "tier"),
    [
        (("bundle", "test_npz.py"), {"tmp_path"}, set(), "unit"),
        (("bundle", "test_npz.py"), {"models", "trained"}, set(), "server"),
        (("service", "http", "test_server.py"), {"start_server"}, set(), "server"),
        (("cli", "test_index.py"), set(), {"server"}, "server"),
        (("cli", "test_index.py"), {"start_server"}, {"system"}, "system"),
        (("lookup", "test_copying.py"), {"postgresql", "environment"}, set(), "system"),
        (("attacks", "test_http.py"), set(), set(), "system"),
        (("service", "scale", "test_x.py"), set(), set(), "unit"),
    ],
)
def test_the_tier_is_the_highest_that_anything_asks_for(folders, fixtures, marks, tier):
    """Folders, fixtures and marks raise a test's tier; none lowers it."""
    assert tier_of(folders, fixtures, marks) == tier


def test_files_come_in_an_order_that_keeps_two_processes_busy():
    """One file that needs the trained model, then other servers and trainings, then the rest, unit tests last."""
    tests = [
        ("unit.py", "unit", False), ("drift.py", "unit", False), ("drift.py", "server", True),
        ("sweep.py", "server", False), ("status.py", "server", True), ("system.py", "system", True),
    ]  # fmt: skip
    ranks = ranks_of(tests)
    assert sorted(ranks, key=ranks.__getitem__) == ["drift.py", "sweep.py", "status.py", "unit.py", "system.py"]


def test_every_test_has_one_tier(request):
    """Collection gives each test exactly one of the three marks."""
    for item in request.session.items:
        assert sum(item.get_closest_marker(tier) is not None for tier in TIERS) == 1, item.nodeid


@pytest.mark.parametrize(
    ("tier", "words", "part"),
    [
        ("unit", [sys.executable, "-c", "pass"], ""),
        ("unit", [sys.executable, "-m", "penult.cli", "serve"], "pytest.mark.server"),
        ("unit", [sys.executable, "-m", "penult.cli", "train"], "pytest.mark.server"),
        ("server", [sys.executable, "-m", "penult.cli", "serve"], ""),
        ("server", ["curl", "-s"], "pytest.mark.system"),
        ("system", ["curl", "-s"], ""),
    ],
)
def test_a_tier_allows_its_own_programs_only(tier, words, part):
    """The reason names the mark that the test needs."""
    assert part in refusal(tier, words)
    assert bool(refusal(tier, words)) == bool(part)


def test_a_unit_test_cannot_start_a_server_unnoticed():
    """The guard runs inside subprocess.Popen, whichever fixture or helper calls it."""
    with pytest.raises(AssertionError, match=r"mark it pytest\.mark\.server"):
        subprocess.Popen([sys.executable, "-m", "penult.cli", "serve"])
