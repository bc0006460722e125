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
# The page stands in a frame of a given width: a window cannot be made as narrow as a phone.
_SCRIPT = """<script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument;
  page.querySelectorAll("details").forEach(each => each.open = true);
  const root = page.documentElement, shown = [...page.images].filter(image => image.naturalWidth > 0);
  document.title = `inner=${root.clientWidth} scroll=${root.scrollWidth} pictures=${shown.length}`;
});
</script>"""

pytestmark = pytest.mark.skipif(_BROWSER is None, reason="needs Chromium: apt-get install chromium")


def _measured(page: str, width: int, folder: Path) -> dict[str, int]:
    """Open a page in Chromium at a width in CSS pixels; return its inner width, scroll width and shown pictures."""
    wrapper = folder / "wrapper.html"
    frame = f'<iframe id="page" style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
    wrapper.write_text(f"<!doctype html><body style='margin:0'>{frame}{_SCRIPT}")
    done = subprocess.run(
        [_BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom", wrapper.as_uri()],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=True,
    )  # fmt: skip
    found = re.search(r"<title>inner=(\d+) scroll=(\d+) pictures=(\d+)</title>", done.stdout)
    assert found, done.stdout[-500:]
    return dict(zip(("inner", "scroll", "pictures"), map(int, found.groups()), strict=True))


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize(
    "classes",
    [
        ("cat", "dog"),
        tuple(f"a class with a long name {n}" for n in range(30)),
        ("x" * 200, "supercalifragilistic" * 5),
    ],
    ids=["two", "thirty", "endless names"],
)
def test_nothing_sticks_out(evidence: Callable, tmp_path: Path, classes: tuple[str, ...], width: int):
    """At phone and desktop width the page is as wide as the window, whatever classes are called; all pictures show."""
    files = report_files(evidence(classes, notes=("photos cannot be read: " + "long_name_" * 30,)))
    found = _measured(files["report/index.html"].decode(), width, tmp_path)
    assert found["inner"] <= width
    assert found["scroll"] == found["inner"]
    assert found["pictures"] == sum(name.endswith(".png") for name in files)


def test_the_measurement_can_fail(tmp_path: Path):
    """A page with a wide block is seen to stick out."""
    found = _measured("<!doctype html><div style='width:700px'>wide</div>", 390, tmp_path)
    assert found["scroll"] > found["inner"]
