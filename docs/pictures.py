"""Make the pictures of a report and its class maps, of the status page and of the labelling page: `make pictures`.

Runs the demo on scikit-learn's digits in a temporary folder, serves its model and sends requests. Then labels digits by
keys. Takes pictures of the pages with headless Chromium, in light and dark colours.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tests.fixtures.browser import Browser

DOCS = Path(__file__).resolve().parent
PENULT = [sys.executable, "-m", "penult.cli"]
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000",
]  # fmt: skip
SCHEMES = {"": 1, "-dark": 0}  # Chromium's preferredColorScheme
WIDTH, COLOURS, LOAD_S = 1200, 128, 90
NAMES = {"5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine"}
LABELS, LABEL_HEIGHT, MAPS_HEIGHT, MAPS_COLOURS = 130, 860, 450, 256


def picture(browser: str, url: str, name: str, height: int, folder: Path) -> None:
    """Take pictures of the first screen of a page: docs/NAME.png and docs/NAME-dark.png, with few colours."""
    for suffix, scheme in SCHEMES.items():
        shot, file = folder / "shot.png", DOCS / f"{name}{suffix}.png"
        options = [f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
        command = [browser, *CHROMIUM, *options, f"--window-size={WIDTH},{height}", f"--screenshot={shot}", url]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        keep(shot, file)


def keep(shot: Path, file: Path, colours: int = COLOURS) -> None:
    """Write a picture with few colours."""
    image = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    image.quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def class_maps(report: Path, folder: Path) -> None:
    """Take pictures of the class maps of a report: docs/class-maps.png and docs/class-maps-dark.png."""
    loaded = "[...document.querySelectorAll('#class-maps img')].every((image) => image.complete && image.naturalWidth)"
    with Browser(folder) as page:
        for suffix, scheme in (("", "light"), ("-dark", "dark")):
            page.size(WIDTH, MAPS_HEIGHT, scheme)
            page.open(report.as_uri())
            page.run("document.querySelector('#class-maps').scrollIntoView()")
            page.run("for (const image of document.querySelectorAll('#class-maps img')) image.loading = 'eager'")
            page.wait(loaded)
            page.screenshot(folder / "shot.png")
            keep(folder / "shot.png", DOCS / f"class-maps{suffix}.png", MAPS_COLOURS)


def label_page(folder: Path) -> None:
    """Label digits by keys, and take pictures of the page: docs/label.png and docs/label-dark.png."""
    options = ["--labels", "labels.csv", "--classes", ",".join(NAMES.values()), "--model", "models/digits"]
    command = [*PENULT, "label", "demo-out/digits-5-9/test", *options, "--no-browser", "--json"]
    shown = "document.querySelector('#one:not([hidden]) #stage .name')?.textContent"
    loaded = "[...document.querySelectorAll('main img')].every((image) => image.complete && image.naturalWidth)"
    with (
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server,
        ExitStack() as ending,
        Browser(folder) as page,
    ):
        ending.callback(server.terminate)
        assert server.stdout is not None  # asked for above
        page.size(WIDTH, LABEL_HEIGHT)
        page.open(json.loads(server.stdout.readline())["url"])
        page.wait(shown)
        while int(page.text("#count b")) < LABELS:
            name = page.wait(f"{loaded} && {shown}")
            page.key(str(1 + [*NAMES].index(name.partition("/")[0])))
            page.wait(f"{shown} && {shown} !== {json.dumps(name)}")
        page.wait("document.querySelector('#saved').textContent === '✓ saved' && document.querySelector('.curve')")
        for suffix, scheme in (("", "light"), ("-dark", "dark")):
            page.size(WIDTH, LABEL_HEIGHT, scheme)
            page.wait(loaded)
            page.screenshot(folder / "shot.png")
            keep(folder / "shot.png", DOCS / f"label{suffix}.png")


def main() -> int:
    """Make the pictures in docs/; return 0, or 1 if there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("make pictures needs Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "penult.export.jobs.demo"], cwd=folder, check=True)
        label_page(folder)
        (report,) = folder.glob("models/digits/*/report/index.html")
        picture(browser, report.as_uri(), "report", 1240, folder)
        class_maps(report, folder)
        serve = [*PENULT, "serve", "--port", "0", "--metrics-port", "0", "--lookup", "demo-out/lookup"]
        with subprocess.Popen(serve, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None  # asked for above
            line = next(line for line in server.stdout if line.startswith("ready "))
            ready = dict(word.split("=", 1) for word in line.split()[1:])
            load = ["--rate", "40", "--duration", str(LOAD_S), "--photos", "demo-out/digits-5-9/test"]
            subprocess.run([*PENULT, "bench", "--target", ready["grpc"], *load], cwd=folder, check=True)
            picture(browser, ready["page"], "status", 930, folder)
            server.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
