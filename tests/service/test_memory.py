"""glibc is told to keep large blocks; without glibc nothing happens."""

import pytest


@pytest.mark.parametrize("keep", [True, False])
def test_large_blocks_are_reused(run_python, keep):
    """Once told, half-megabyte blocks that come and go cost next to no page faults; before, each cost its pages."""
    code = f"""
import resource
from penult.service.memory import keep_freed_blocks
assert not {keep} or keep_freed_blocks(2)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    blocks = [bytes(1 << 19) + b"x" for _ in range(2)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
    result = run_python("-c", code, env={"GLIBC_TUNABLES": "" if keep else "glibc.malloc.mmap_threshold=131072"})
    faults = int(result.stdout)
    assert faults < 2000 if keep else faults > 20_000, result.stderr


def test_another_c_library_is_left_alone(monkeypatch):
    """Where there is no mallopt, the service goes on without it."""
    from penult.service import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert memory.keep_freed_blocks(2) is False
