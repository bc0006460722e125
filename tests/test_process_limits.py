"""glibc is told to keep large blocks; without glibc nothing happens."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from penult import process_limits

RunPython = Callable[..., "CompletedProcess[str]"]
# Makes and drops blocks, and prints which share of their pages was faulted in, after a first round that has to.
_FAULTS = """
import resource
def rounds(count, block_bytes):
    for _ in range(count):
        pair = [bytes(block_bytes) + b"x" for _ in range(2)]
        del pair
def share(count, block_bytes):
    rounds(1, block_bytes)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rounds(count, block_bytes)
    pages = 2 * count * block_bytes / resource.getpagesize()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / pages)
"""
_MAX_KEPT, _MIN_ELSE = 0.039, 0.39


@pytest.mark.parametrize(
    ("told", "block_bytes", "count"),
    [("", 1 << 19, 60), ("keep_freed_blocks(2)", 1 << 19, 60), ("", 1 << 26, 5), ("keep_all_blocks()", 1 << 26, 5)],
)
def test_large_blocks_are_reused(run_python: RunPython, told: str, block_bytes: int, count: int):
    """Once told, blocks of half a megabyte, or of 64, that come and go cost next to no page faults; else all theirs."""
    code = f"""{_FAULTS}
from penult.process_limits import keep_all_blocks, keep_freed_blocks
assert {told or True}
share({count}, {block_bytes})
"""
    result = run_python("-c", code, env={"GLIBC_TUNABLES": "" if told else "glibc.malloc.mmap_threshold=131072"})
    share = float(result.stdout)
    assert share < _MAX_KEPT if told else share > _MIN_ELSE, result.stderr


@pytest.mark.server
def test_training_keeps_its_blocks(run_python: RunPython, digits: Path):
    """`penult train` tells glibc so, before it learns."""
    code = f"""{_FAULTS}
from penult import cli
assert cli.main(["train", {str(digits)!r}, "--arch", "tiny5", "--weights", "none", "--dry-run"]) == 0
share(20, {1 << 26})
"""
    assert float(run_python("-c", code).stdout.splitlines()[-1]) < _MAX_KEPT


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """Where there is no mallopt, everything goes on without it."""
    monkeypatch.setattr(process_limits.ctypes, "CDLL", lambda _: object())
    assert process_limits.keep_freed_blocks(2) is False
    assert process_limits.keep_all_blocks() is False
    assert process_limits.give_back() is False
