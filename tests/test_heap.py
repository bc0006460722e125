"""glibc is told to keep large blocks; without glibc nothing happens."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from penult import heap

RunPython = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("told", "block_bytes", "blocks"),
    [("", 1 << 19, 200), ("keep_freed_blocks(2)", 1 << 19, 200), ("", 1 << 26, 20), ("keep_all_blocks()", 1 << 26, 20)],
)
def test_large_blocks_are_reused(run_python: RunPython, told: str, block_bytes: int, blocks: int):
    """Once told, blocks of half a megabyte, or of 64, that come and go cost next to no page faults; else all theirs."""
    code = f"""
import resource
from penult.heap import keep_all_blocks, keep_freed_blocks
assert {told or True}
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({blocks}):
    pair = [bytes({block_bytes}) + b"x" for _ in range(2)]
    del pair
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
    result = run_python("-c", code, env={"GLIBC_TUNABLES": "" if told else "glibc.malloc.mmap_threshold=131072"})
    share = int(result.stdout) * 4096 / (2 * blocks * block_bytes)
    assert share < 0.2 if told else share > 0.4, result.stderr


def test_training_keeps_its_blocks(run_python: RunPython, digits: Path):
    """`penult train` tells glibc so, before it learns."""
    code = f"""
import resource
from penult import cli
assert cli.main(["train", {str(digits)!r}, "--arch", "tiny5", "--weights", "none", "--dry-run"]) == 0
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = bytes(1 << 26)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
    assert int(run_python("-c", code).stdout.splitlines()[-1]) * 4096 < 0.2 * 20 * (1 << 26)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """Where there is no mallopt, everything goes on without it."""
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    assert heap.keep_freed_blocks(2) is False
    assert heap.keep_all_blocks() is False
    assert heap.give_back() is False
