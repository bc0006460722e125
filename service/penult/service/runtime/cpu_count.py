"""Count the CPUs that this process may use: its affinity, limited by the quota of its control group."""

import math
import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_V2 = "cpu.max"
_V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


def cores(root: Path = _ROOT) -> int:
    """Return the number of CPUs, at least 1. In a container with a limit of 2 it is 2."""
    quota = _quota(root)
    return max(1, min(len(os.sched_getaffinity(0)), math.ceil(quota) if quota else 1 << 16))


def _quota(root: Path) -> float | None:
    """Return the CPUs that the control group may use on average, None for no limit."""
    words = _read(root / _V2).split() or [_read(root / part).strip() for part in _V1]
    if len(words) != 2 or not all(word.isdigit() and int(word) for word in words):
        return None
    return int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
