"""What changing models costs: resident memory over many reloads, with photos being asked for all the while.

    python bench/reloading.py [--model resnet18] [--reloads 200]

Publishes version after version of a bench bundle (bench/prepare.py) by renaming a copy, waits until each answers, and
removes the one before. Prints the server's resident memory every twenty reloads.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import prepare

from penult.bench.own_server import OwnServer
from penult.bench.settings import TuneSettings
from penult.client import Client

_GOAL_MB = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--reloads", type=int, default=200)
    wanted = parser.parse_args()
    prepare.prepare_one(wanted.model)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(prepare.MODELS / wanted.model / "1", root / wanted.model / "1")
        settings = TuneSettings(models=root, device="cpu")
        with OwnServer(settings, {"watch_s": 0.1}) as server:
            rows = reload(server.target, server.pid, root / wanted.model, wanted.reloads)
    base = dict(rows)[min(20, wanted.reloads)]
    worst = max(mb - base for count, mb in rows if count >= 20)
    print(f"after {wanted.reloads} reloads: {rows[-1][1] - base:+.1f} MB against 20, at most {worst:+.1f} MB")
    sys.exit(worst > _GOAL_MB)


def reload(target: str, pid: int, folder: Path, reloads: int) -> list[tuple[int, float]]:
    """Publish `reloads` versions under load; return (reloads so far, resident MB), every twenty."""
    stop, failures, rows = threading.Event(), [], []
    asker = threading.Thread(target=ask, args=(target, stop, failures))
    asker.start()
    with Client(target) as client:
        for count in range(1, reloads + 1):
            publish(folder, count + 1)
            started = time.monotonic()
            while client.get_model().version.version != count + 1:
                if time.monotonic() - started > 60:
                    sys.exit(f"version {count + 1} is not taken up")
                time.sleep(0.02)
            shutil.rmtree(folder / str(count))
            if count % 20 == 0 or count in (1, 10):
                time.sleep(1)
                rows.append((count, resident_mb(pid)))
                print(f"{count:4d} reloads: {rows[-1][1]:.1f} MB, {len(failures)} failures", flush=True)
    stop.set()
    asker.join()
    if failures:
        sys.exit(f"{len(failures)} requests failed: {failures[0]}")
    return rows


def ask(target: str, stop: threading.Event, failures: list[Exception]) -> None:
    photos = prepare.jpegs()[:4]
    with Client(target) as client:
        while not stop.is_set():
            try:
                client.classify(photos)
            except Exception as error:
                failures.append(error)
            time.sleep(0.05)


def publish(folder: Path, version: int) -> None:
    scratch = folder / f".writing-{version}"
    shutil.copytree(folder / str(version - 1), scratch)
    scratch.rename(folder / str(version))


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


if __name__ == "__main__":
    main()
