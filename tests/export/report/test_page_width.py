"""The page in a real browser: nothing sticks out, at a phone's width or a desktop's."""

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penult.export.evaluation.metrics import evaluate
from penult.export.report.report import report_files

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_TIMEOUT_S = 120
# The page stands in frames of given widths: a window cannot be made as narrow as a phone.
_WIDTHS = (320, 390, 1280)
_SCRIPT = """<script>
addEventListener("load", () => {
  document.title = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    if (OPENED) page.querySelectorAll("details").forEach(each => each.open = true);
    const shown = [...page.images].filter(image => image.naturalWidth > 0).length + page.querySelectorAll("svg").length;
    return [MEASURED].join(" ");
  }).join(",");
});
</script>"""

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(_BROWSER is None, reason="needs Chromium: apt-get install chromium"),
]


def _measured(page: str, folder: Path) -> list[list[int]]:
    """Open a page in Chromium at each width; return [inner width, scroll width, pictures shown], CSS pixels."""
    return _in_browser(page, folder, "root.clientWidth, root.scrollWidth, shown", _WIDTHS)


def _in_browser(
    page: str, folder: Path, measured: str, widths: tuple[int, ...], opened: bool = True
) -> list[list[int]]:
    """Return what some expressions of JavaScript give for a page at each width; `opened`: with all details open."""
    wrapper = folder / "wrapper.html"
    script = _SCRIPT.replace("MEASURED", measured).replace("OPENED", str(opened).lower())
    # Photos that are far down would not be loaded.
    source = html.escape(page.replace(' loading="lazy"', ""))
    frames = [f"<iframe style='width:{w}px;height:800px' srcdoc=\"{source}\"></iframe>" for w in widths]
    wrapper.write_text(f"<!doctype html><style>iframe {{ border: 0 }}</style>{''.join(frames)}{script}")
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
def test_nothing_sticks_out(report_data: Callable, tmp_path: Path, classes: tuple[str, ...]):
    """At phone and desktop width the page is as wide as the window, whatever classes are called; all pictures show."""
    files = report_files(report_data(classes, notes=("photos cannot be read: " + "long_name_" * 30,)))
    pictures = sum(name.endswith(".svg") for name in files) + 1  # and the photo that was named wrong
    assert _measured(files["report/index.html"].decode(), tmp_path) == [[width, width, pictures] for width in _WIDTHS]


def test_a_hundred_classes_are_four_screens(report_data: Callable, made_up_history: Callable, tmp_path: Path):
    """Folded as it opens, the report of a hundred classes is at most four screens of 1280 x 800 high.

    It is a page with all that there can be: two phases of learning, twelve errors, both scorers.
    """
    labels = np.arange(200) % 100
    answers = np.where(np.arange(200) % 5, labels, (labels + 1) % 100)
    scores = dict.fromkeys(("dense", "svm"), np.eye(100, dtype=np.float32)[answers])
    made = report_data(tuple(f"class {n}" for n in range(100)), history=made_up_history(12, ("head", "all")))
    figures = evaluate(scores["svm"], labels, made.splits.classes, 1.0)
    photos = tuple(replace(made.splits.test[0], label=int(label)) for label in labels)
    made = replace(
        made, scores=scores, labels=labels, splits=replace(made.splits, test=photos),
        metrics=made.metrics | {"test": dict.fromkeys(scores, figures)},
        descriptors=np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32),
    )  # fmt: skip
    page = report_files(made)["report/index.html"].decode()
    assert page.count("<img") == 12
    assert page.count("<svg") == 10
    [(height,)] = _in_browser(page, tmp_path, "root.scrollHeight", (1280,), opened=False)
    assert 1600 < height <= 4 * 800


def test_the_measurement_can_fail(tmp_path: Path):
    """A page with a wide block is seen to stick out where the window is narrower."""
    found = _measured("<!doctype html><div style='width:700px'>wide</div>", tmp_path)
    assert [scroll > inner for inner, scroll, _ in found] == [True, True, False]
