"""From a folder of photos to a served, named class: the machine's time beside a person who gives 100 labels.

    python bench/label_to_served.py trashnet --arch mobilenet_v2 --weights mobilenet_v2.pth

PHOTOS has test/, and class folders below train/ (and val/), which are copied under names that say nothing. The script
starts `penult label` with an empty cache, answers what the page asks by the truth, over the page's HTTP, and presses
Publish. Then it starts `penult serve` and waits until a test photo has a name. After 20 more labels it publishes
again, and waits until the running server answers with version 2. Seconds of each part are printed, and the accuracy
of both versions on all test photos.
"""

import argparse
import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from penult.client import Client

PENULT = (sys.executable, "-m", "penult.cli")
MIN_OF_CLASS = 4


class Page:
    """The requests that the page makes."""

    def __init__(self, url: str) -> None:
        """Take the page's address with its token."""
        parts = urlsplit(url)
        self._token = parse_qs(parts.query)["token"][0]
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=120)

    def ask(self, path: str, body: Any = None) -> Any:
        """Return the JSON of an answer."""
        path += f"{'&' if '?' in path else '?'}token={quote(self._token)}"
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        self._connection.request(method, path, data, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        self._connection.close()  # idle connections are closed by the page's server
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {text[:300]!r}")
        return json.loads(text)


def flat_copy(photos: Path, target: Path) -> dict[str, str]:
    """Copy the photos of train/ and val/ under numbers; return their classes by name."""
    found = sorted(path for part in ("train", "val") for path in photos.glob(f"{part}/*/*") if path.is_file())
    random.Random(0).shuffle(found)
    target.mkdir()
    for number, path in enumerate(found):
        shutil.copy(path, target / f"{number:05}{path.suffix}")
    return {f"{number:05}{path.suffix}": path.parent.name for number, path in enumerate(found)}


def label(page: Page, truth: dict[str, str], given: Counter[str], labels: int) -> None:
    """Answer by the truth, one photo at a time, until there are enough labels, and of each class some."""
    while sum(given.values()) < labels or min(given[name] for name in set(truth.values())) < MIN_OF_CLASS:
        (item,) = page.ask("/api/next?count=1")["items"]
        name = truth[item["id"]]
        page.ask("/api/labels", {"id": item["id"], "label": name, "kind": item["kind"], "guess": item["guess"]})
        given[name] += item["kind"] != "check"


def publish(page: Page) -> None:
    """Press Publish, and wait until a version is published."""
    page.ask("/api/publish", {})
    while (state := page.ask("/api/state")["publish"])["is_running"]:
        time.sleep(0.2)
    if state["version"] is None:
        raise RuntimeError(state["message"])


def serve(models: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a server; return it, and its address."""
    command = [*PENULT, "serve", "--models", models, "--port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = next(line for line in process.stdout or () if line.startswith("ready "))
    return process, line.split()[1].removeprefix("grpc=")


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Return the CPU seconds of a process and of those of its children that have ended."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class Parts:
    """Seconds and CPU seconds of each part, as they pass."""

    def __init__(self) -> None:
        """Begin the first part."""
        self._sum_s = 0.0
        self._started, self._used = time.monotonic(), 0.0

    def end(self, what: str, *processes: subprocess.Popen[str]) -> None:
        """End a part that these processes have worked for, and print it."""
        now, used = time.monotonic(), sum(map(cpu_seconds, processes))
        self._sum_s += now - self._started
        print(f"{now - self._started:7.1f} s {used - self._used:7.1f} CPU-s  {what}", flush=True)
        self._started, self._used = time.monotonic(), used

    def print_sum(self) -> None:
        """Print what the parts so far took together."""
        print(f"{self._sum_s:7.1f} s {self._used:7.1f} CPU-s  together", flush=True)


def accuracy(client: Client, tests: list[Path]) -> str:
    """Return how many test photos are right."""
    answer = client.classify(tests, model="named")
    right = sum(found.label == path.parent.name for found, path in zip(answer.results, tests, strict=True))
    return f"version {answer.version}: {right} of {len(tests)} test photos are right ({right / len(tests):.1%})"


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    """Label, publish, serve, classify, and print the seconds of each part."""
    truth, given = flat_copy(options.photos, folder / "photos"), Counter[str]()
    tests = sorted(path for path in options.photos.glob("test/*/*") if path.is_file())
    parts, processes = Parts(), []
    labelling = subprocess.Popen(
        [*PENULT, "label", folder / "photos", "--labels", folder / "labels.csv", "--no-browser", "--json",
         "--classes", ",".join(sorted(set(truth.values()))), "--arch", options.arch, "--weights", options.weights,
         "--publish", folder / "models" / "named"],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    processes.append(labelling)
    try:
        page = Page(json.loads(next(iter(labelling.stdout or ())))["url"])
        parts.end(f"describe {len(truth)} photos, to the page", *processes)
        label(page, truth, given, options.labels)
        parts.end(f"choose and store {sum(given.values())} labels {dict(given)}", *processes)
        publish(page)
        parts.end("publish version 1", *processes)
        serving, target = serve(folder / "models")
        processes.append(serving)
        with Client(target) as client:
            first = client.classify(tests[:1], model="named").results[0]
            parts.end(
                f"serve; a photo of {tests[0].parent.name} is {first.label} ({first.probability:.0%})", *processes
            )
            parts.print_sum()
            print(accuracy(client, tests))
            parts.end("classify all test photos", *processes)
            label(page, truth, given, sum(given.values()) + 20)
            parts.end(f"choose and store 20 more, {sum(given.values())} in all", *processes)
            publish(page)
            parts.end("publish version 2", *processes)
            while client.classify(tests[:1], model="named").version == 1:
                time.sleep(0.1)
            parts.end("until the running server answers with it", *processes)
            print(accuracy(client, tests))
    finally:
        for process in processes:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
