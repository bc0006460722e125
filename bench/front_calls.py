"""Calls of Python and C functions that a request costs, against the numbers in bench/front_calls.json.

    python bench/front_calls.py --models DIR [--numbers FILE] [--write]

A guard against costs that creep in: calls are counted, no time is measured. DIR holds one model; the numbers in the
file are of the model of tests/fixtures/trained.py. Exits with 1 if a count is out of bounds.
"""

import argparse
import io
import json
import sys
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Self

import grpc
import numpy as np
import payloads
from PIL import Image
from processes import Processes

from penult.bundle.reader import read_bundle

NUMBERS = Path(__file__).with_suffix(".json")
KINDS = ("crop", "16 crops", "JPEG", "OIP crop")
MOST, LEAST = 1.25, 0.5  # bounds of a count, as shares of the number in the file
REQUESTS, WARM = 150, 10
RENEW = "PENULT_WRITE_CALLS=1 .venv/bin/python -m pytest tests/bench/test_front_calls.py"
_OPTIONS = ("--port", "0", "--metrics-port", "0", "--device", "cpu", "--cpu-mode", "throughput", "--lookup", "off",
            "--watch-s", "0", "--drain-lead", "0", "--log-level", "error", "--threads", "2")  # fmt: skip


class Counts(Counter[str]):
    """Calls a request, by "library, function"."""

    def by_library(self) -> Counter[str]:
        """Return calls a request, by library; a C function belongs to its caller's."""
        found: Counter[str] = Counter()
        for name, calls in self.items():
            found[name.partition(",")[0]] += calls
        return found


class Counted:
    """A server without a model that counts calls, for the duration of a `with` block."""

    def __init__(self, models: Path) -> None:
        """Remember which model is served."""
        (self._folder,) = (path for path in models.iterdir() if path.is_dir() and not path.name.startswith("."))

    def __enter__(self) -> Self:
        """Start it and wait until it is ready."""
        self._scratch = tempfile.TemporaryDirectory()
        command = [sys.executable, str(Path(__file__).with_name("counting.py")), "serve", "--models"]
        log = Path(self._scratch.name) / "log"
        self._processes = Processes([*command, str(self._folder.parent), *_OPTIONS], log, is_asked=True)
        words = dict(word.split("=", 1) for word in self._processes.read().split()[1:])
        self._channel, self._metrics = grpc.insecure_channel(words["grpc"]), words["metrics"]
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._channel.close()
        self._processes.stop()
        self._scratch.cleanup()

    def count(self, kind: str) -> Counts:
        """Send requests one after the other; return the calls of each."""
        call = self._channel.unary_unary(payloads.INFER if kind == "OIP crop" else payloads.CLASSIFY)
        request = self._request(kind)
        for _ in range(WARM):
            call(request)
        self._ask()
        scrape = self._ask()
        for _ in range(REQUESTS):
            call(request)
        found = self._ask()
        found.subtract(scrape)
        return Counts({name: calls / REQUESTS for name, calls in found.items()})

    def _ask(self) -> Counter[str]:
        """Return the calls since the last time, after a scrape: what requests left for later is done then."""
        urllib.request.urlopen(self._metrics).read()
        return Counter(json.loads(self._processes.ask("")))

    def _request(self, kind: str) -> bytes:
        name, side = self._folder.name, read_bundle(self._folder).manifest.preprocess.crop
        if kind == "JPEG":
            return payloads.classify_jpegs(name, 1, [gradient()])[0]
        make = payloads.infer_crops if kind == "OIP crop" else payloads.classify_crops
        return make(name, 16 if kind == "16 crops" else 1, side)[0]


def gradient() -> bytes:
    """Return a JPEG of 500 x 375 pixels."""
    down, across = np.mgrid[0:375, 0:500]
    pixels = np.stack([down % 256, across % 256, (down + across) % 256], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with one model")
    parser.add_argument("--numbers", type=Path, default=NUMBERS, help="file to compare with")
    parser.add_argument("--write", action="store_true", help="write the file")
    wanted = parser.parse_args()
    with Counted(wanted.models) as server:
        found = {kind: server.count(kind) for kind in KINDS}
    totals = {kind: round(sum(counts.values()), 1) for kind, counts in found.items()}
    if wanted.write:
        wanted.numbers.write_text(json.dumps(totals, indent=2) + "\n")
    numbers, code = json.loads(wanted.numbers.read_text()), 0
    for kind, calls in totals.items():
        is_within = LEAST * numbers[kind] <= calls <= MOST * numbers[kind]
        print(f"{kind}: {calls:.1f} calls a request, {calls / numbers[kind]:.2f} of the {numbers[kind]} in the file")
        if not is_within:
            code = 1
            print(f"out of bounds, {LEAST} to {MOST}; if this is meant, renew the file: {RENEW}")
            print("\n".join(f"  {count:6.1f} {name}" for name, count in found[kind].most_common(10)))
    return code


if __name__ == "__main__":
    sys.exit(main())
