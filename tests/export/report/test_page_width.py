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

from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.evaluation.cpu_time import CpuTimes
from penult.export.evaluation.metrics import evaluate
from penult.export.evaluation.versions import Answers, Classes, Comparison
from penult.export.report.compare_page import SideBySide, comparison_files
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


@pytest.mark.parametrize("names", [("cat", "dog"), ("x" * 200, "supercalifragilistic" * 5)], ids=["two", "endless"])
def test_a_comparison_does_not_stick_out(make_photos: Callable, tmp_path: Path, names: tuple[str, str]):
    """The page of `penult compare` is as wide as the window too, with photos, tables and both plots."""
    folder = make_photos(tmp_path / "photos", {"c" * 100: 48})
    photos = tuple(Photo(path, row % 2, str(row)) for row, path in enumerate(sorted(folder.rglob("*.png"))))
    labels, classes = np.array([photo.label for photo in photos]), Classes.of(names, (*names, "z" * 100))
    versions = []
    for number, right in enumerate((np.arange(48) % 3 > 0, np.arange(48) % 4 > 0)):
        known = (names, (*names, "z" * 100))[number]
        scores = np.eye(len(known), dtype=np.float32)[np.where(right, labels, 1 - labels)]
        manifest = Manifest("tiny5", known, Preprocess(32, 32), 128, "dense", {"dense": 0.5})
        versions.append(Answers.of(10**8 + number, manifest, "dense", scores, labels, classes.places[number]))
    found = SideBySide(
        name="m" * 64, split="test", splits=Splits(names, (), (), photos, (), root=folder), photos=photos,
        comparison=Comparison(classes, labels, np.arange(48), *versions), alone=({}, {"z" * 100: {"photos": 3, "right": 2}}),
        unknown={}, times=CpuTimes(np.array([[1000.0, 2000.0], [1001.0, 2001.0]])), network_bytes=(10**9, 10**6),
        seen=np.arange(48) < 5, notes=("photos cannot be read: " + "long_name_" * 30,), shows_photos=True,
    )  # fmt: skip
    page = comparison_files(found)["index.html"].decode()
    pictures = page.count("<img ") + 2
    assert pictures > 20
    assert _measured(page, tmp_path) == [[width, width, pictures] for width in _WIDTHS]


def test_the_measurement_can_fail(tmp_path: Path):
    """A page with a wide block is seen to stick out where the window is narrower."""
    found = _measured("<!doctype html><div style='width:700px'>wide</div>", tmp_path)
    assert [scroll > inner for inner, scroll, _ in found] == [True, True, False]
