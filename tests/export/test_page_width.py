"""The page in a real browser: nothing sticks out, at a phone's width or a desktop's."""

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from penult.export.report import report_files

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_TIMEOUT_S = 120
# The page stands in frames of given widths: a window cannot be made as narrow as a phone.
_WIDTHS = (320, 390, 1280)
_SCRIPT = """<script>
addEventListener("load", () => {
  document.title = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(each => each.open = true);
    const shown = [...page.images].filter(image => image.naturalWidth > 0);
    return `${root.clientWidth} ${root.scrollWidth} ${shown.length}`;
  }).join(",");
});
</script>"""

pytestmark = pytest.mark.skipif(_BROWSER is None, reason="needs Chromium: apt-get install chromium")


def _measured(page: str, folder: Path) -> list[list[int]]:
    """Open a page in Chromium at each width; return [inner width, scroll width, pictures shown], CSS pixels."""
    wrapper = folder / "wrapper.html"
    frames = [f"<iframe style='width:{w}px;height:900px' srcdoc=\"{html.escape(page)}\"></iframe>" for w in _WIDTHS]
    wrapper.write_text(f"<!doctype html><style>iframe {{ border: 0 }}</style>{''.join(frames)}{_SCRIPT}")
    done = subprocess.run(
        [_BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom", wrapper.as_uri()],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=True,
    )  # fmt: skip
    found = re.search(r"<title>([\d ,]+)</title>", done.stdout)
    assert found, done.stdout[-500:]
    return [[int(number) for number in part.split()] for part in found[1].split(",")]


@pytest.mark.parametrize(
    "classes",
    [
        ("cat", "dog"),
        tuple(f"a class with a long name {n}" for n in range(30)),
        ("x" * 200, "supercalifragilistic" * 5),
    ],
    ids=["two", "thirty", "endless names"],
)
def test_nothing_sticks_out(evidence: Callable, tmp_path: Path, classes: tuple[str, ...]):
    """At phone and desktop width the page is as wide as the window, whatever classes are called; all pictures show."""
    files = report_files(evidence(classes, notes=("photos cannot be read: " + "long_name_" * 30,)))
    pictures = sum(name.endswith(".png") for name in files)
    assert _measured(files["report/index.html"].decode(), tmp_path) == [[width, width, pictures] for width in _WIDTHS]


def test_the_measurement_can_fail(tmp_path: Path):
    """A page with a wide block is seen to stick out where the window is narrower."""
    found = _measured("<!doctype html><div style='width:700px'>wide</div>", tmp_path)
    assert [scroll > inner for inner, scroll, _ in found] == [True, True, False]
