"""The labelling page in a real Chromium, driven by keys: python bench/label_page.py --help.

Makes photos, starts `penult label` on them with a network of random weights, and labels by keys. Measures the time from
a key to the paint of the next photo, and from a key to the acknowledgement that the answer is on the disk. Exit code 1
if the first is above its limit. `--out` also takes pictures of every view, and reports what axe-core finds in them.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
from tests.fixtures import axe
from tests.fixtures.browser import SHIFT, Browser
from tests.fixtures.shapes import CLASSES, write_shapes

LIMIT_MS = 100
KEYS = dict(zip(CLASSES, "1234", strict=True))
NAME = "document.querySelector('#one:not([hidden]) #stage .name')?.textContent"
SAVED = "document.querySelector('#saved').textContent === '✓ saved'"
SCREENS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
# From the key's own time stamp to the first frame after the one that has another photo, whose picture is decoded.
MEASURE = """
window.painted = []; window.acknowledged = [];
document.addEventListener("keydown", (event) => {
  const before = document.querySelector("#stage .name")?.textContent;
  const look = () => {
    const image = document.querySelector("#stage img"), name = document.querySelector("#stage .name")?.textContent;
    if (name && name !== before && image?.complete && image.naturalWidth) {
      requestAnimationFrame(() => window.painted.push(performance.now() - event.timeStamp));
    } else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}, true);
new PerformanceObserver((list) => {
  for (const each of list.getEntries()) if (each.name.endsWith("/api/labels")) window.acknowledged.push(each.duration);
}).observe({ type: "resource" });
"""


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def started(photos: Path, labels: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start `penult label`; return the process and the page's address."""
    command = [
        sys.executable,
        "-m",
        "penult.cli",
        "label",
        str(photos),
        "--labels",
        str(labels),
        "--no-browser",
        "--json",
    ]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


def label(page: Browser, answers: int, pause_s: float) -> set[str]:
    """Label photos by keys, as their names say; return those that were answered."""
    answered = set()
    for _ in range(answers):
        name = page.wait(NAME)
        page.key(KEYS[name.partition("/")[0]])
        answered.add(name)
        page.wait(f"{NAME} && {NAME} !== {json.dumps(name)}")
        time.sleep(pause_s)
    page.wait(SAVED)
    return answered


def measure(page: Browser, answers: int, pause_s: float) -> tuple[list[float], int]:
    """Label by keys, and print the times; return those to the paint, and how many photos were labelled."""
    page.run(MEASURE)
    answered = label(page, answers, pause_s)
    painted, acknowledged = page.run("window.painted"), page.run("window.acknowledged")
    for what, times in (("next photo painted", painted), ("answer on the disk", acknowledged)):
        found = [percentile(times, share) for share in (0.5, 0.95, 0.99)]
        shown = ", ".join(f"{name} {each:.0f}" for name, each in zip(("p50", "p95", "p99"), found, strict=True))
        print(f"{what}: {shown} ms, at most {max(times):.0f} ms ({len(times)} times)")
    return painted, len(answered)


def shoot(page: Browser, out: Path, view: str, script: Path) -> list[str]:
    """Take pictures of a view on each screen; return the faults that axe-core finds."""
    found = []
    for width, scheme in SCREENS:
        page.size(width, 900 if width > 600 else 844, scheme, is_phone=width < 600)
        page.wait("[...document.querySelectorAll('main img')].every((image) => image.complete)")
        page.screenshot(out / f"{view}-{width}-{scheme}.png")
        found += [f"{view} {width} {scheme}: {fault}" for fault in axe.faults(page, script)]
        if page.run("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            found.append(f"{view} {width} {scheme}: wider than the screen")
    page.size(1280, 900)
    return found


def views(page: Browser, out: Path) -> list[str]:
    """Take pictures of every view of a page with some labels; return all faults."""
    out.mkdir(parents=True, exist_ok=True)
    script = axe.install()
    found = shoot(page, out, "one", script)
    page.key("g")
    page.wait("document.querySelectorAll('#tiles[aria-busy=false] .shot').length > 4")
    page.click(".shot:nth-child(2)")
    page.click(".shot:nth-child(4)", SHIFT)
    found += shoot(page, out, "grid", script)
    page.key("Escape")
    for view, key in (("keys", "?"), ("new-class", "n"), ("find-class", "/")):
        page.key(key)
        page.wait("document.querySelector('dialog[open]')")
        found += shoot(page, out, view, script)
        page.key("Escape")
        page.wait("!document.querySelector('dialog[open]')")
    return found


def main() -> int:
    """Measure; return 0 if the limit is kept and no fault is found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, default=5000, help="photos to make")
    parser.add_argument("--answers", type=int, default=200, help="answers to measure")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between an answer and the next key")
    parser.add_argument("--limit", type=float, default=LIMIT_MS, help="milliseconds from key to paint at p95")
    parser.add_argument("--out", type=Path, help="folder for pictures of every view")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shapes(folder / "photos", asked.photos)
        begun = time.perf_counter()
        options = ["--classes", ",".join(CLASSES), "--arch", "squeezenet1_1", "--weights", "none"]
        process, url = started(folder / "photos", folder / "labels.csv", *options)
        print(f"load of the machine: {os.getloadavg()[0]:.1f}")
        print(f"{asked.photos} photos are described after {time.perf_counter() - begun:.0f} s")
        try:
            with Browser(folder) as page:
                page.size(1280, 900)
                page.open(url)
                page.wait(NAME)
                painted, answered = measure(page, asked.answers, asked.pause)
                rows = (folder / "labels.csv").read_text().count("\n") - 1
                faults = views(page, asked.out) if asked.out else []
                faults += page.errors + ([] if rows == answered else [f"{rows} rows for {answered} photos"])
        finally:
            process.send_signal(signal.SIGINT)
            begun = time.perf_counter()
            process.wait(30)
            print(f"Ctrl-C: ended after {time.perf_counter() - begun:.2f} s")
    print("\n".join(faults) or "no faults")
    return int(percentile(painted, 0.95) > asked.limit or bool(faults))


if __name__ == "__main__":
    sys.exit(main())
