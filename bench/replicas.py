"""Throughput against replicas: one, two and three of them, asked in turn by the client, through HAProxy, through nginx.

    python bench/replicas.py [--model mobilenet_v3_small] [--rounds 5] [--seconds 3]

Closed loop, one JPEG a request, the proxies' files as in deploy/proxy. Each replica has one thread to decode and
one for the model; generator, proxy and replicas share this machine's cores, so throughput stops growing where those are
used up, and CPU time per image is the steadier figure. Ways take turns, round by round; medians count.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import prepare

from penult.client import AsyncClient

sys.path.append(str(Path(__file__).parent.parent))

# The replicas and the shipped files with our addresses in them: the same as in the tests.
from tests.scale.fleet import Fleet
from tests.scale.ways import Addresses, Haproxy, Nginx

WORKERS, WARMUP_S = 12, 0.7
# What leaves a replica out, in each proxy's words.
_LEFT_OUT = {
    Haproxy: ("{target} check-proto h1 port {port}", "{target} check-proto h1 port {port} disabled"),
    Nginx: ("{target} max_fails=1 fail_timeout=2s;", "{target} down;"),
}


class Rate(NamedTuple):
    """What a load came to; CPU-ms per image of the replicas together, of the proxy, of the generator."""

    images_per_s: float
    replicas: float
    proxy: float
    generator: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    wanted = parser.parse_args()
    prepare.prepare_one(wanted.model)
    photos, found = prepare.jpegs(), defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as start:
        (Path(folder) / wanted.model).symlink_to(prepare.MODELS / wanted.model)
        fleet = Fleet(start, Path(folder), "--lookup", "off")
        for round_ in range(wanted.rounds):
            for count in (1, 2, 3):
                for kind in (Addresses, Haproxy, Nginx):
                    rate = measure(fleet, kind, count, photos, wanted.seconds)
                    found[kind.__name__, count].append(rate)
                    print(f"round {round_ + 1} {kind.__name__} {count}: {rate.images_per_s:.0f}/s", flush=True)
    show(found)


@contextmanager
def servers(folder: Path) -> Iterator[object]:
    """Give what starts servers, as the tests' fixture does; they are ended."""
    started: list[subprocess.Popen[str]] = []

    def start(models: Path, *options: str) -> object:
        command = [sys.executable, "-m", "penult.cli", "serve", "--models", str(models), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        if not process.stdout.readline().startswith("ready "):
            sys.exit("a replica did not start")
        return SimpleNamespace(process=process)

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(fleet: Fleet, kind: type, count: int, photos: list[bytes], seconds: float) -> Rate:
    """Put a load on the first `count` replicas, one way."""
    with tempfile.TemporaryDirectory() as folder:
        way = (
            Addresses(fleet, Path(folder))
            if kind is Addresses
            else kind(fleet, Path(folder), left_out(fleet, kind, count))
        )
        target = fleet.targets[:count] if kind is Addresses else way.target
        replicas = [process.pid for process in fleet.processes]
        proxy = [] if kind is Addresses else family(way.process.pid)
        try:
            return asyncio.run(load(target, photos, seconds, replicas, proxy))
        finally:
            way.close()


def left_out(fleet: Fleet, kind: type, count: int) -> dict[str, str]:
    """Return what to change in a proxy's file so that only `count` replicas are asked."""
    old, new = _LEFT_OUT[kind]
    named = [{"target": target, "port": fleet.metrics_port} for target in fleet.targets[count:]]
    return {old.format(**one): new.format(**one) for one in named}


async def load(
    target: str | list[str], photos: list[bytes], seconds: float, replicas: list[int], proxy: list[int]
) -> Rate:
    """Ask from several workers for a time; count what was answered within it."""
    done, end = 0, time.monotonic() + WARMUP_S + seconds

    async def work(client: AsyncClient, first: int) -> None:
        nonlocal done
        at = first
        while time.monotonic() < end:
            await client.classify([photos[at % len(photos)]])
            done, at = done + 1, at + 1

    async with AsyncClient(target) as client:
        workers = [asyncio.create_task(work(client, n * 5)) for n in range(WORKERS)]
        await asyncio.sleep(WARMUP_S)
        began, before, count = time.monotonic(), clocks(replicas, proxy), done
        await asyncio.gather(*workers)
        images, took, after = done - count, time.monotonic() - began, clocks(replicas, proxy)
    return Rate(images / took, *(1000 * (new - old) / images for old, new in zip(before, after, strict=True)))


def clocks(replicas: list[int], proxy: list[int]) -> tuple[float, float, float]:
    """Return the CPU seconds so far of replicas, proxy and this process."""
    return sum(map(cpu_s, replicas)), sum(map(cpu_s, proxy)), time.process_time()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def show(found: dict[tuple[str, int], list[Rate]]) -> None:
    """Print medians, and each against one replica asked directly in the same round."""
    base = found["Addresses", 1]
    print("way, replicas: images/s (÷ one replica direct); CPU-ms per image: replicas, proxy, generator")
    for (way, count), rates in found.items():
        median = Rate(*(statistics.median(values) for values in zip(*rates, strict=True)))
        ratio = statistics.median(one.images_per_s / of.images_per_s for one, of in zip(rates, base, strict=True))
        print(f"{way}, {count}: {median.images_per_s:.1f} ({ratio:.2f}); {median.replicas:.2f}, {median.proxy:.3f}, "
              f"{median.generator:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
