"""The spine in numbers: start to ready, and the service against the same model and decoder in one process.

`make bench` (needs ../shared/data) trains a MobileNetV2 bundle on TrashNet with all conv stages frozen, unless
bench-out/ holds one already, then prints one table. Ratios are within this run; CPU-ms per image is what the server's
process used (its client's work left out), which a busy machine disturbs least.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from penult.bundle.preprocess import crop_encoded
from penult.bundle.reader import read_bundle
from penult.client import AsyncClient
from penult.service.session import Session

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
OUT = ROOT / "bench-out"
MODEL = OUT / "models" / "trashnet"
CORES = len(os.sched_getaffinity(0))
IN_FLIGHT = 16
ROUNDS = 5
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    prepare()
    photos = [path.read_bytes() for path in sorted((OUT / "trashnet" / "test").glob("*/*.jpg"))]
    print(f"{len(photos)} JPEGs, {CORES} cores, {IN_FLIGHT} in flight, {ROUNDS} rounds, interleaved")
    with serving() as (process, target, seconds):
        print(f"start to ready: {seconds:.2f} s")
        rounds = []
        for number in range(ROUNDS):
            ceiling, service = in_process(photos), over_grpc(process, target, photos)
            rounds.append((ceiling, service))
            print(f"round {number + 1}: ceiling {show(ceiling)}   service {show(service)}", flush=True)
    for name, column in (("img/s", 0), ("CPU-ms/img", 1)):
        ratios = [service[column] / ceiling[column] for ceiling, service in rounds]
        print(
            f"service / ceiling, {name}: median {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        )


def prepare() -> None:
    if not SHARED.is_dir():
        sys.exit("make bench needs ../shared/data (real weights and photos)")
    if not (OUT / "trashnet").is_dir():
        with zipfile.ZipFile(SHARED / "trashnet.zip") as archive:
            archive.extractall(OUT)
    if not MODEL.is_dir():
        weights = str(SHARED / "mobilenet_v2.pth")
        penult("train", str(OUT / "trashnet"), "--out", str(MODEL), "--arch", "mobilenet_v2", "--weights", weights,
               "--freeze", "all")  # fmt: skip


def in_process(photos: list[bytes]) -> tuple[float, float]:
    """Decode and run on CORES threads, one photo a call: img/s and CPU-ms per image."""
    bundle = read_bundle(MODEL)
    session = Session(bundle.onnx, bundle.manifest, "cpu")

    def one(photo: bytes) -> np.ndarray:
        return session.run(crop_encoded(photo, bundle.manifest.preprocess)[None])[0]

    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(one, photos[:IN_FLIGHT]))
        started, cpu = time.perf_counter(), time.process_time()
        list(threads.map(one, photos))
        return rates(len(photos), time.perf_counter() - started, time.process_time() - cpu)


def over_grpc(process: "subprocess.Popen[str]", target: str, photos: list[bytes]) -> tuple[float, float]:
    """Send one photo a request, IN_FLIGHT at a time: img/s and the server's CPU-ms per image."""

    async def send() -> tuple[float, float]:
        async with AsyncClient(target) as client:
            gate = asyncio.Semaphore(IN_FLIGHT)

            async def one(photo: bytes) -> None:
                async with gate:
                    await client.classify([photo], scorer="svm")

            await asyncio.gather(*(one(photo) for photo in photos[:IN_FLIGHT]))
            started, cpu = time.perf_counter(), cpu_seconds(process.pid)
            await asyncio.gather(*(one(photo) for photo in photos))
            return rates(len(photos), time.perf_counter() - started, cpu_seconds(process.pid) - cpu)

    return asyncio.run(send())


@contextmanager
def serving() -> Iterator[tuple["subprocess.Popen[str]", str, float]]:
    started = time.perf_counter()
    command = [
        *(sys.executable, "-m", "penult.cli", "serve", "--models", str(MODEL.parent), "--device", "cpu"),
        *("--port", "0", "--metrics-port", "0", "--drain-lead", "0", "--log-level", "error"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        words = dict(word.split("=", 1) for word in process.stdout.readline().split()[1:])
        yield process, words["grpc"], time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def penult(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "penult.cli", *arguments], check=True)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rates(images: int, seconds: float, cpu: float) -> tuple[float, float]:
    return images / seconds, 1000 * cpu / images


def show(rate: tuple[float, float]) -> str:
    return f"{rate[0]:6.1f} img/s {rate[1]:5.1f} CPU-ms"


if __name__ == "__main__":
    main()
