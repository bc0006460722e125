"""A server that is asked everything for a long time, a fifth of it bad: nothing grows, nothing ends as it may not.

Some hundred requests as a test; `make soak` asks for SOAK_MINUTES. Run with -s to see the figures.
"""

import asyncio
import os
import time
from collections import Counter
from typing import NamedTuple

import httpx
import numpy as np
from tests.attacks.bystander import cpu_s, health, vitals, wait_for
from tests.attacks.mix import Mix, grey

MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "600"))
IS_LONG = MINUTES > 0 or REQUESTS >= 100_000
LOOKS = 60
# The promise, for 100,000 requests. A short run's memory is still finding its level.
MAX_MIB = 20 if IS_LONG else 60
WORKERS = 8


class Look(NamedTuple):
    """The server's memory, threads and descriptors after so many requests."""

    asked: int
    rss_mib: float
    threads: int
    descriptors: int


async def soak(mix: Mix, pid: int) -> list[Look]:
    """Ask as often as wanted, or until the minutes are over; look at the server every now and then."""
    looks, begun = [], time.monotonic()

    def share() -> float:
        return (time.monotonic() - begun) / (60 * MINUTES) if MINUTES else mix.asked / REQUESTS

    async def work() -> None:
        while share() < 1:
            await mix.one()
            if share() * LOOKS > len(looks):
                looks.append(Look(mix.asked, *vitals(pid)))

    async with mix:
        await asyncio.gather(*(work() for _ in range(WORKERS)))
    return looks


def growth_mib(looks: list[Look]) -> float:
    """Return what the line through memory over requests rises by, from the middle to the end."""
    half = looks[len(looks) // 2 :]
    asked = np.array([look.asked for look in half], dtype=float)
    slope = np.polyfit(asked, [look.rss_mib for look in half], 1)[0]
    return float(slope * (asked[-1] - asked[0]))


def test_nothing_grows(light, start_server, tmp_path):
    """Memory, threads and descriptors stay level, every request ends as its kind may, none as UNKNOWN or INTERNAL."""
    server = start_server(light, "--lookup", str(tmp_path / "lookup"))
    pid = server.process.pid
    photos = tuple(grey(level, side) for level in (10, 240) for side in (8, 64, 300))
    before, cpu = vitals(pid), cpu_s(pid)
    mix = Mix(server.target, server.http, photos)
    looks = asyncio.run(soak(mix, pid))
    codes: Counter[str] = Counter()
    for (_, code), count in mix.counts.items():
        codes[code] += count
    bad = sum(count for (name, _), count in mix.counts.items() if name in mix.bad) / mix.asked
    middle = looks[len(looks) // 2]
    print(f"{mix.asked} requests, {bad:.0%} bad: {dict(codes)}; RSS {before.rss_mib:.0f} -> "
          f"{middle.rss_mib:.0f} (half) -> {looks[-1].rss_mib:.0f} MiB, slope {growth_mib(looks):+.1f} MiB from half; "
          f"threads {before.threads} -> {middle.threads} -> {looks[-1].threads}, descriptors {before.descriptors} -> "
          f"{middle.descriptors} -> {looks[-1].descriptors}; server CPU {cpu_s(pid) - cpu:.0f} s")  # fmt: skip
    assert mix.wrong() == {}
    assert {name for name, _ in mix.counts} == set(mix.kinds) or not IS_LONG
    assert 0.15 < bad < 0.25
    assert growth_mib(looks) <= MAX_MIB
    wait_for(lambda: vitals(pid).descriptors <= middle.descriptors + 3)
    assert vitals(pid).threads <= middle.threads + 3
    assert health(server.target) == 1
    assert _counted(server.http, "UNKNOWN") == _counted(server.http, "INTERNAL") == 0


def _counted(http: str, code: str) -> float:
    """Return how many requests the server says it ended with a code."""
    lines = httpx.get(f"{http}/metrics", timeout=30).text.splitlines()
    found = [line for line in lines if line.startswith("penult_requests_total{") and f'code="{code}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)
