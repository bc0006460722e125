"""Service against ceiling, in one run: `make bench` (needs ../shared/data) prints the ratios that issue 4 names.

Ceiling and service take turns on the same cores, round by round, so that a slow spell of a shared machine hits both;
medians over rounds count. CPU-ms per image is the server's process alone, throughput includes what the load generator
takes of the same cores. `--only WORD` picks cases, `--long` adds 60 s of overload and 100,000 requests.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ceiling import CORES, Ceiling, Rate
from prepare import INT8, JPEGS, MODELS, OUT, jpegs, prepare

from penult.bench.load import run
from penult.bench.measure import OK, Report
from penult.bench.own_server import OwnServer
from penult.bench.settings import LoadSettings, TuneSettings
from penult.bundle.reader import read_bundle

ROUNDS, SECONDS, WARMUP_S = 5, 5.0, 0.5
# The small one for what counts requests, not images.
MOBILE, RESNET, SMALL = "mobilenet_v3_small", "resnet18", "tiny5"


@dataclass(frozen=True)
class Case:
    """One load; goals are ratios to the ceiling: at least so much throughput, at most so much CPU time."""

    model: str
    is_raw: bool
    images: int
    concurrency: int = 8
    least_throughput: float | None = None
    most_cpu: float | None = None

    @property
    def name(self) -> str:
        """Say what is sent to which model."""
        return f"{self.model} {'raw' if self.is_raw else 'JPEG'} {self.images}/request c={self.concurrency}"


CASES = (
    Case(RESNET, True, 1, least_throughput=0.95),
    Case(MOBILE, True, 1, most_cpu=1.25, least_throughput=0.90),
    Case(MOBILE, True, 16, most_cpu=1.08, least_throughput=0.90),
    Case(MOBILE, False, 1, most_cpu=1.12, least_throughput=0.90),
    Case(RESNET, False, 1, most_cpu=1.05, least_throughput=0.90),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--long", action="store_true", help="60 s of overload and 100,000 requests too")
    wanted = parser.parse_args()
    prepare()
    found: dict[str, object] = {"date": str(date.today()), "machine": platform.processor() or platform.machine(),
                                "cores": CORES, "python": platform.python_version()}  # fmt: skip
    tasks = [(case.name, lambda case=case: ratios(case, wanted.rounds)) for case in CASES]
    tasks += [(f"p99 {model}", lambda model=model: tails(model, wanted.rounds)) for model in (MOBILE, RESNET)]
    tasks += [("lone caller", lambda: lone_caller(wanted.rounds)), ("int8", lambda: int8(wanted.rounds))]
    if wanted.long or wanted.only:
        tasks += [("overload", overload), ("memory", memory)]
    for name, measure in tasks:
        if wanted.only in name:
            print(f"{name}: ", end="", flush=True)
            found[name] = measure()
    (OUT / "serving.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"written: {OUT / 'serving.json'}")


@contextmanager
def serving(**settings: object) -> Iterator[OwnServer]:
    wanted = TuneSettings(models=MODELS, device="cpu")
    with OwnServer(wanted, settings) as server:
        yield server


def load(server: OwnServer, model: str, is_raw: bool, **settings: object) -> Report:
    values: dict[str, object] = {"scorer": "dense", "duration_s": SECONDS, "warmup_s": WARMUP_S, **settings}
    return asyncio.run(run(LoadSettings(
        target=server.target, metrics=server.metrics, model=model, is_raw=is_raw, photos=None if is_raw else JPEGS,
        **values,
    )))  # fmt: skip


def ratios(case: Case, rounds: int) -> dict[str, object]:
    """Throughput and CPU time of the service, each over the ceiling's of the same round."""
    ceiling, photos, rows = Ceiling(read_bundle(MODELS / case.model)), jpegs(), []
    with serving() as server:
        for _ in range(rounds):
            top = ceiling.raw(SECONDS / 2) if case.is_raw else ceiling.jpeg(SECONDS / 2, photos)
            got = load(server, case.model, case.is_raw, images_per_request=case.images, concurrency=case.concurrency)
            rows.append((top, Rate(got.images_per_s, got.server_cpu_ms_per_image or 0.0), got))
    throughput = [service.images_per_s / top.images_per_s for top, service, _ in rows]
    cpu = [service.cpu_ms / top.cpu_ms for top, service, _ in rows]
    client = statistics.median(got.client_cpu_ms_per_image for *_, got in rows)
    top = statistics.median(top.cpu_ms for top, *_ in rows)
    print(
        f"throughput {spread(throughput)} (goal >= {case.least_throughput or '-'}), CPU-ms {spread(cpu)} (goal <= "
        f"{case.most_cpu or '-'}); ceiling {statistics.median(t.images_per_s for t, *_ in rows):.1f} img/s {top:.2f} "
        f"CPU-ms, {ceiling.plan.callers} runs of {ceiling.plan.threads} threads, batch {ceiling.batch}; client "
        f"{client:.2f} CPU-ms; batch {statistics.median(got.server_batch_images for *_, got in rows):.1f}"
    )
    return {"throughput": throughput, "cpu": cpu, "ceiling_cpu_ms": top, "client_cpu_ms": client}


def tails(model: str, rounds: int) -> dict[str, object]:
    """p99 at concurrency 8 as served, which is without batches on CPUs, over p99 with batches of up to 8."""
    found: dict[str, list[float]] = {"as served": [], "batches of 8": []}
    with serving() as plain, serving(batch_max_images=8) as batched:
        for _ in range(rounds):
            for name, server in zip(found, (plain, batched), strict=True):
                report = load(server, model, True)
                found[name].append(report.latency.p99_ms)
    parts = [f"{name} {statistics.median(values):.1f} ms" for name, values in found.items()]
    compared = [one / other for one, other in zip(*found.values(), strict=True)]
    print(f"p99 {', '.join(parts)}; ratio {spread(compared)} (goal <= 1: the default is the better one)")
    return found


def lone_caller(rounds: int) -> dict[str, object]:
    """p50 of one caller of ResNet-18, above the p50 of the same call in this process."""
    ceiling, more = Ceiling(read_bundle(MODELS / RESNET)), []
    with serving(cpu_mode="latency" if ceiling.plan.threads > 1 else "throughput") as server:
        for _ in range(rounds):
            alone = statistics.median(ceiling.single_ms())
            more.append(load(server, RESNET, True, concurrency=1).latency.p50_ms - alone)
    print(f"p50 above the call in-process: {spread(more)} ms (goal <= 1.5), in-process {alone:.1f} ms")
    return {"more_ms": more}


def int8(rounds: int) -> dict[str, object]:
    """Throughput of ResNet-18 in int8 over float32, both served."""
    gains = []
    with serving() as server:
        for _ in range(rounds):
            plain, small = (load(server, model, True).images_per_s for model in (RESNET, INT8))
            gains.append(small / plain)
    print(f"int8 / float32 served: {spread(gains)} (goal >= 2)")
    return {"gains": gains}


def overload() -> dict[str, object]:
    """60 s at twice the capacity: goodput over capacity, how soon refusals are answered, how late the accepted."""
    with serving(queue_max_images=64) as server:
        capacity = load(server, RESNET, False, concurrency=16, duration_s=20.0).good_images_per_s
        report = load(server, RESNET, False, rate=2 * capacity, duration_s=60.0, warmup_s=5.0)
    bound = 1000 * 64 / capacity
    # Due to answered is what a user waits; sent to answered leaves out how late this generator was on the same cores.
    sent = sorted(1000 * (row.over_s - row.sent_s) for row in report.rows if row.code != OK)
    print(
        f"capacity {capacity:.1f} img/s; at twice that, goodput {report.good_images_per_s / capacity:.3f} of it (goal "
        f">= 0.95), refused {report.errors} in p50 {report.rejected.p50_ms:.1f}, p99 {report.rejected.p99_ms:.1f} ms "
        f"(goal < 10; from sending {sent[int(0.99 * len(sent))]:.1f}), accepted p99 {report.latency.p99_ms:.0f} ms "
        f"(queue bound {bound:.0f} ms)"
    )
    return {"capacity": capacity, "goodput": report.good_images_per_s, "rejected": vars(report.rejected),
            "accepted": vars(report.latency), "errors": report.errors}  # fmt: skip


def memory() -> dict[str, object]:
    """Resident memory after 10,000 and after 100,000 requests; every fourth thousand JPEGs, the others ready crops."""
    with serving() as server:
        found = {}
        for total in (10_000, 100_000):
            while (sent := sum(found.get("sent", [0]))) < total:
                share = min(1_000, total - sent)
                is_raw = len(found.get("sent", [])) % 4 != 3
                load(server, SMALL, is_raw, requests=share, warmup_s=0.0, concurrency=16)
                found.setdefault("sent", []).append(share)
            found[str(total)] = resident_mb(server)
    grown = found["100000"] - found["10000"]
    print(f"{found['10000']:.0f} MB after 10,000, {found['100000']:.0f} MB after 100,000: {grown:+.1f} MB (goal <= 20)")
    return {"after_10000_mb": found["10000"], "after_100000_mb": found["100000"]}


def resident_mb(server: OwnServer) -> float:
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
