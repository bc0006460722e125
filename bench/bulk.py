"""Bulk against what the server can do: `penult describe FOLDER --out` over `penult bench --rpc describe`.

The same JPEGs and server, in turns: a closed loop before and after every bulk run, and a run's throughput over the
mean of its two neighbours, so that a slow spell of a shared machine hits both. A bulk run counts from its start as a
command to its end: Python's start, reading files, writing parts and merging them included. Its peak memory with few
photos and with many says whether that stays level. Needs ../shared/data; server and client share the cores.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
from prepare import JPEGS, OUT, jpegs, prepare_one
from serving import load, serving, spread

BATCH, CONCURRENCY = 16, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny5", choices=("tiny5", "mobilenet_v3_small", "resnet18"))
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each closed loop (%(default)s)")
    wanted = parser.parse_args()
    jpegs()
    prepare_one(wanted.model)
    folder, few = named(wanted.photos, "bulk"), named(wanted.photos // 10, "bulk-few")
    with serving() as server:
        few_mb = describe(few, wanted.model, server.target)[2]
        around = [closed_loop(server, wanted)]
        runs = []
        for _ in range(wanted.rounds):
            runs.append(describe(folder, wanted.model, server.target))
            around.append(closed_loop(server, wanted))
    rates = [wanted.photos / seconds for seconds, *_ in runs]
    ratios = [rate / statistics.mean(around[n : n + 2]) for n, rate in enumerate(rates)]
    client_ms = [1000 * cpu_s / wanted.photos for _, cpu_s, _ in runs]
    print(
        f"{wanted.model}, {wanted.photos} photos, {os.cpu_count()} cores: bulk {spread(rates)} images/s, server "
        f"{spread(around)}; ratio {spread(ratios)} (goal >= 0.95); client {spread(client_ms)} CPU-ms per image; peak "
        f"{runs[-1][2]:.0f} MB, with a tenth of the photos {few_mb:.0f} MB"
    )
    found = {
        "date": str(date.today()),
        "machine": platform.machine(),
        "bulk": rates,
        "server": around,
        "ratios": ratios,
    }
    (OUT / f"bulk-{wanted.model}.json").write_text(json.dumps(found, indent=2) + "\n")


def named(count: int, name: str) -> Path:
    """Make a folder in which the same few photos have so many names."""
    folder, photos = OUT / name, sorted(JPEGS.iterdir())
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(count):
        path = folder / f"{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(photos[number % len(photos)])
    return folder


def closed_loop(server: object, wanted: argparse.Namespace) -> float:
    """Return the images per second that the server gives a load that knows nothing of files."""
    report = load(
        server, wanted.model, False, scorer=None, rpc="describe", images_per_request=BATCH, concurrency=CONCURRENCY,
        duration_s=wanted.seconds,
    )  # fmt: skip
    return report.images_per_s


def describe(folder: Path, model: str, target: str) -> tuple[float, float, float]:
    """Run the command; return its seconds, CPU seconds and peak megabytes."""
    out = OUT / "bulk.parquet"
    command = [sys.executable, "-m", "penult.cli", "describe", str(folder), "--out", str(out), "--restart"]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--model", model, "--target", target], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    assert status == 0
    assert pq.ParquetFile(out).metadata.num_rows == sum(1 for _ in folder.rglob("*.jpg"))
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


if __name__ == "__main__":
    main()
