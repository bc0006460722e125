"""`penult label` on many photos: start, memory, and the time to choose the next photo.

    python bench/label_scale.py [--photos 100000] [--answers 60] [--folder DIR]

Photos are made up, 32 pixels a side, as are their descriptors: 1,280 numbers around a hundred centers. These are put
into the cache, as if the photos had been described before. Then `penult label` runs in a process of its own, and is
asked over HTTP. Printed are

- first start: until the address is printed, which includes reading every photo once;
- start: the same again, until the first photo's picture has arrived;
- next: from a request for the next photo to its answer, with labels known, median and 95th percentile;
- answer: the same for a label, which is on the disk then;
- memory: the peak of the resident memory of all processes of the command.

The next photo is asked for twice: while the classifier learns the last label, and after it.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from penult.export.data.row_cache import RowCache
from penult.export.jobs.frozen_descriptors import of_weights
from penult.export.onnx import runtime
from penult.label.pool import find_photos

CENTERS, CLASSES = 100, 8
ARCH = "mobilenet_v2"


def make_photos(folder: Path, count: int) -> None:
    """Write the photos that are missing."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            Image.fromarray(pixels).resize((32, 32)).save(file, "JPEG")
            path.write_bytes(file.getvalue() + number.to_bytes(4, "big"))  # bytes of its own


def describe(folder: Path) -> None:
    """Put made-up descriptors of the photos into the cache."""
    _, photos = find_photos(folder)
    network, random = of_weights(ARCH, "none"), np.random.default_rng(1)
    cache = RowCache("descriptors", f"{runtime.VERSION} {network.identity}", network.length)
    centers = random.normal(size=(CENTERS, network.length)).astype(np.float32)
    rows = np.empty((len(photos), network.length), np.float32)
    for at in range(0, len(rows), 4096):
        block = rows[at : at + 4096]
        block[:] = centers[random.integers(0, CENTERS, len(block))] + random.normal(size=block.shape) * 1.5
        np.abs(block, out=block)
    cache.keep({photo.sha256: row for row, photo in enumerate(photos)}, rows)


class Memory(threading.Thread):
    """The peak of the resident memory of a process and its children, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self.peak_bytes = pid, 0
        self.start()

    def run(self) -> None:
        """Look until the process has ended."""
        while Path(f"/proc/{self._pid}").exists():
            self.peak_bytes = max(self.peak_bytes, sum(map(resident, tree(self._pid))))
            time.sleep(0.1)


def tree(pid: int) -> list[int]:
    """Return a process and those below it."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    except OSError:
        pass
    return found


def resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Page:
    """A `penult label` process, and requests to it."""

    def __init__(self, folder: Path, labels: Path) -> None:
        classes = ",".join(f"class {number}" for number in range(CLASSES))
        words = ["label", str(folder), "--labels", str(labels), "--classes", classes, "--arch", ARCH]
        command = [sys.executable, "-m", "penult.cli", *words, "--weights", "none", "--no-browser", "--json"]
        started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.memory = Memory(self.process.pid)
        assert self.process.stdout
        address = urlsplit(json.loads(self.process.stdout.readline())["url"])
        self.start_s = time.monotonic() - started
        self._base, self._token = f"{address.scheme}://{address.netloc}", address.query
        if address.query:
            self.first = self.ask("/api/next?count=1")["items"][0]
            self.bytes(self.first["image_url"])
        self.first_photo_s = time.monotonic() - started

    def bytes(self, path: str, body: object = None) -> bytes:
        """Return the answer to a request."""
        mark = "&" if "?" in path else "?"
        request = urllib.request.Request(
            f"{self._base}{path}{mark}{self._token}",
            None if body is None else json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def ask(self, path: str, body: object = None) -> dict:
        """Return the answer as JSON."""
        return dict(json.loads(self.bytes(path, body)))

    def close(self) -> None:
        """End the command."""
        self.process.terminate()
        self.process.wait(30)


def spread(times_s: list[float]) -> str:
    """Return median and 95th percentile in milliseconds."""
    return f"median {1000 * np.median(times_s):.0f} ms, p95 {1000 * np.quantile(times_s, 0.95):.0f} ms"


def main() -> None:
    """Make the photos, run the command twice, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--answers", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="label-scale-", ignore_cleanup_errors=True) as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        folder = arguments.folder or Path(scratch) / "photos"
        make_photos(folder, arguments.photos)
        describe(folder)
        labels = Path(scratch) / "labels.csv"
        page = Page(folder, labels)
        print(f"{arguments.photos} photos: first photo {page.first_photo_s:.1f} s after the start", flush=True)
        next_s, busy_s, answer_s, item = [], [], [], page.first
        random = np.random.default_rng(2)
        for _ in range(arguments.answers):
            before = time.monotonic()
            label = item["label"] or f"class {random.integers(CLASSES)}"
            state = page.ask("/api/labels", {"id": item["id"], "label": label, "was": item["label"]})
            answered = time.monotonic()
            (item,) = page.ask("/api/next?count=1")["items"]
            busy_s.append(time.monotonic() - answered)
            answer_s.append(answered - before)
            while state["is_fitting"]:
                state = page.ask(f"/api/state?after={state['revision']}")
            before = time.monotonic()
            page.ask("/api/next?count=1")
            next_s.append(time.monotonic() - before)
        print(f"next: {spread(next_s)}; while the classifier learns: {spread(busy_s)}; answer: {spread(answer_s)}")
        print(f"memory: {page.memory.peak_bytes / 1e6:.0f} MB at most")
        page.close()


if __name__ == "__main__":
    main()
