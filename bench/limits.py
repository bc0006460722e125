"""Times that penult keeps on an idle machine, measured: python bench/limits.py; exit code 1 if one is over its limit.

Tests measure no time, since machines are busy. Run this before a release.
"""

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from penult.bundle.goldens import choose
from penult.export.config.train import TrainSettings
from penult.export.data import file_index
from penult.export.jobs.demo import write_digits
from penult.export.jobs.train import train

sys.path.append(str(Path(__file__).parent.parent))
from tests.fixtures.statuses import status_of_a_thousand_classes

_FILES = 20_000


def seconds(act: Callable[[], object]) -> float:
    """Return how long the fastest of three calls takes."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return min(taken)


def choice_of_goldens() -> float:
    scores = np.random.default_rng(0).normal(size=(10_000, 10)).astype(np.float32)
    return seconds(lambda: choose(scores, [row % 10 for row in range(10_000)], 8))


def numbers_of_the_status_page() -> float:
    return seconds(status_of_a_thousand_classes().as_json)


def index_of_files(folder: Path) -> list[float]:
    """Return milliseconds of CPU time per file: the first time, and again."""
    (folder / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "one.png")
    data = (folder / "one.png").read_bytes()
    for number in range(_FILES):  # after its last chunk a PNG may hold anything
        (folder / "cat" / f"{number:06d}.png").write_bytes(data + number.to_bytes(4))
    time.sleep(0.2)  # files that have just changed are read again
    took = []
    for _ in range(2):
        started = time.process_time()
        file_index.check(file_index.find(folder, {"cat": 0}))
        took.append((time.process_time() - started) * 1000 / _FILES)
    return took


def serving(folder: Path) -> list[float]:
    """Return the seconds from start to ready, and of an HTTP answer on a connection that stays open."""
    train(
        TrainSettings(
            data=write_digits(folder / "digits", "0123"),
            out=folder / "models" / "digits",
            arch="tiny5",
            weights="none",
            freeze=0,
            augment="none",
            epochs=1,
            report_photos=False,
        )
    )
    command = [sys.executable, "-m", "penult.cli", "serve", "--models", str(folder / "models")]
    command += ["--port", "0", "--metrics-port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    started = time.perf_counter()
    with subprocess.Popen(command, text=True, **pipes) as server:
        line = server.stdout.readline()
        ready = time.perf_counter() - started
        page = line.split("metrics=")[1].split()[0]
        with httpx.Client() as client:
            answer = seconds(lambda: [client.get(page) for _ in range(50)]) / 50
        server.terminate()
    return [ready, answer]


def main() -> int:
    """Measure all, print a table, and return 1 if anything is over its limit."""
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        first, again = index_of_files(Path(scratch) / "files")
        ready, answer = serving(Path(scratch))
    rows = [
        ("start of penult serve to ready, s", ready, 5.0),
        ("HTTP answer on an open connection, s", answer, 0.03),
        ("status page's numbers with 1,000 classes, s", numbers_of_the_status_page(), 0.1),
        ("choice of goldens among 10,000 photos, s", choice_of_goldens(), 1.5),
        ("photo index, ms of CPU time per file, first time", first, 0.5),
        ("photo index, ms of CPU time per file, again", again, 0.1),
    ]
    for name, value, limit in rows:
        print(f"{name:50} {value:8.3f}  limit {limit}{'' if value < limit else '  OVER'}")
    return int(any(value >= limit for _, value, limit in rows))


if __name__ == "__main__":
    sys.exit(main())
