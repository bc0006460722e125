"""Load for bench/gpu.py: `penult bench` in several processes at once, since one Python process cannot fill a GPU.

drive() starts the processes; each of them is this file, run with the settings of its share as JSON. They begin within
their warm-up of each other, which does not count.
"""

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

import numpy as np

from penult.bench.load import run
from penult.bench.settings import LoadSettings

WARMUP_S = 2.0


@dataclass(frozen=True)
class Load:
    """What came back: images and requests per second, errors, and latencies in ms, from when a request was due."""

    images_per_s: float
    requests_per_s: float
    errors: int
    p50_ms: float
    p99_ms: float
    requests: int


def drive(settings: LoadSettings, processes: int) -> Load:
    """Run a load in several processes; `concurrency` is each one's, `rate` is shared among them."""
    share = replace(settings, warmup_s=WARMUP_S, rate=settings.rate / processes if settings.rate else None)
    # The server is on loopback, without TLS and tokens.
    values = {name: value for name, value in asdict(share).items() if name != "security"}
    command = [sys.executable, __file__, json.dumps(values)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    try:
        answers = [worker.communicate(timeout=settings.duration_s + 120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    if any(worker.returncode for worker in workers):
        raise RuntimeError("a load process failed; its error is above")
    found = [json.loads(answer) for answer in answers]
    latencies = np.concatenate([one["latencies_ms"] for one in found])
    p50, p99 = np.percentile(latencies, [50, 99]) if len(latencies) else (float("nan"),) * 2
    images, requests, errors = (
        sum(one[name] for one in found) for name in ("images_per_s", "requests_per_s", "errors")
    )
    return Load(images, requests, errors, float(p50), float(p99), len(latencies))


def work(settings: LoadSettings) -> dict[str, object]:
    report = asyncio.run(run(settings))
    return {
        "images_per_s": report.good_images_per_s,
        "requests_per_s": report.requests_per_s,
        "errors": sum(report.errors.values()) + sum(report.item_errors.values()) + report.unfinished + report.not_sent,
        "latencies_ms": [1000 * (row.over_s - row.due_s) for row in report.rows if row.code == "OK"],
    }


if __name__ == "__main__":
    print(json.dumps(work(LoadSettings(**json.loads(sys.argv[1])))))
