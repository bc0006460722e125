"""What a shadow costs those who ask: latency and CPU time with and without one, in turns.

    python bench/shadow.py MODELS PHOTOS [--rounds 5] [--seconds 6]

MODELS holds one model with versions 1 and 2, which may be copies. Clients of each server get version 1. The load is one
caller, four callers, and an open loop at half of what four callers reach. The CPU time of a server is without that of
its shadow. A second server without a shadow shows how far two equal ones are apart. At the end comes an open loop of
twice the capacity, without a shadow and with one that sees every request.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from statistics import median

from served import Served

from penult.bench import load
from penult.bench.measure import Report
from penult.bench.settings import LoadSettings

_BASE, _SETTLED_S = "none", 0.5


class Server(Served):
    """One server, and what its shadow has done."""

    def value(self, name: str, *labels: str) -> float:
        """Return the sum of the series of a metric that have some labels."""
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [line for line in lines if line.startswith(name) and all(label in line for label in labels)]
        return sum(float(line.rpartition(" ")[2]) for line in wanted)

    def images(self, outcome: str) -> float:
        """Return the images of the shadow with an outcome."""
        return self.value("penult_shadow_images_total", f'outcome="{outcome}"')

    def shadow_s(self) -> float:
        """Return the CPU seconds that the shadow has used."""
        return self.images("compared") * self.value("penult_shadow_seconds", 'of="shadow"')

    def _settle(self, compared: float) -> None:
        """Wait until the shadow has nothing to do, so that the next server is alone."""
        before = -1.0
        while compared != before:
            time.sleep(_SETTLED_S)
            before, compared = compared, self.images("compared")

    def measured(self, photos: Path, seconds: float, **wanted: object) -> tuple[Report, dict[str, float]]:
        """Put load on it; return the report, and its figures."""
        before = self.cpu_s(), self.shadow_s(), self.images("compared"), self.images("shed")
        settings = LoadSettings(target=self.target, photos=photos, duration_s=seconds, warmup_s=0.0, **wanted)
        report = asyncio.run(load.run(settings))
        after = self.cpu_s(), self.shadow_s(), self.images("compared"), self.images("shed")
        self._settle(after[2])
        cpu, shadow, compared, shed = (later - sooner for later, sooner in zip(after, before, strict=True))
        good = [row for row in report.rows if row.code == "OK"]
        return report, {
            "p50": report.latency.p50_ms, "p99": report.latency.p99_ms,
            "cpu": 1000 * (cpu - shadow) / max(len(good), 1),
            "failed": len(report.rows) - len(good), "asked": len(report.rows), "compared": compared, "shed": shed,
        }  # fmt: skip


def main() -> None:
    """Print medians, and ratios to the server without a shadow within each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rate", type=float, help="only an open loop of so many photos a second")
    wanted = parser.parse_args()
    (name,) = [folder.name for folder in wanted.models.iterdir() if folder.is_dir() and folder.name[0] != "."]
    shadow = ("--shadow", f"{name}=2", "--shadow-share")
    options = {_BASE: ("--pin", f"{name}=1"), "none again": ("--pin", f"{name}=1"), "0.1": (*shadow, "0.1"),
               "1.0": (*shadow, "1")}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "penult.cli", "serve"]
        servers = {
            key: Server(command, wanted.models, Path(folder) / f"{number}.log", *each)
            for number, (key, each) in enumerate(options.items())
        }
        try:
            measure(servers, wanted.photos, wanted.rounds, wanted.seconds, wanted.rate)
        finally:
            for server in servers.values():
                server.stop()


def measure(servers: dict[str, Server], photos: Path, rounds: int, seconds: float, rate: float | None) -> None:
    """Measure the servers in turns."""
    for server in servers.values():
        server.measured(photos, 2.0, concurrency=2)
    report, _ = servers[_BASE].measured(photos, seconds, concurrency=4)
    capacity = report.good_images_per_s
    loads = {"one caller": {"concurrency": 1}, "four callers": {"concurrency": 4}, "half": {"rate": capacity / 2}}
    if rate:
        loads = {f"{rate:g} photos/s": {"rate": rate}}
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    order, shuffled = list(servers), random.Random(0)
    for number in range(rounds):
        for what, options in loads.items():
            shuffled.shuffle(order)
            for key in order:
                _, figures = servers[key].measured(photos, seconds, **options)
                found[what, key].append(figures)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    print(f"capacity {capacity:.1f} photos/s; ratios are medians of those within a round, with the quartiles")
    for (what, key), rows in found.items():
        base = found[what, _BASE]
        ratios = {
            each: sorted(row[each] / other[each] for row, other in zip(rows, base, strict=True))
            for each in ("p50", "p99", "cpu")
        }
        text = ", ".join(
            f"{each} {median(row[each] for row in rows):.2f} ms x {median(ratios[each]):.3f} "
            f"({ratios[each][len(rows) // 4]:.2f} to {ratios[each][3 * len(rows) // 4]:.2f})"
            for each in ratios
        )
        sums = {each: sum(row[each] for row in rows) for each in ("asked", "failed", "compared", "shed")}
        print(f"{what}, shadow {key}: {text}; {sums}")
    for key in () if rate else (_BASE, "1.0"):
        report, figures = servers[key].measured(photos, 2 * seconds, rate=2 * capacity, timeout_s=3.0)
        print(f"twice the capacity, shadow {key}: {report.good_images_per_s:.1f} photos/s, {figures}")


if __name__ == "__main__":
    main()
