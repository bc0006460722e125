"""The report: one page that needs nothing else, for any run, class name and set of scorers; and the model card."""

import base64
import csv
import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penult.bundle.manifest import MODEL_NAME, SVM_NAME, FileEntry
from penult.bundle.preprocess import Preprocess
from penult.export.data import Photo, Splits
from penult.export.report import command, predictions_csv, report_files
from penult.export.settings import FREEZE_ALL, TrainSettings

_NASTY = ("<script>alert(1)</script>", "a & b", '"quoted"', "{{ 7 * 7 }}", "größe", "a | b")
_PICTURES = {
    "learning_curves.png", "filters.png", "changes.png", "scorers.png", "confusion_dense.png", "confusion_svm.png",
    "reliability.png", "svm_c.png", "descriptors.png", "errors.png",
}  # fmt: skip
_TABLES = {"changes.csv", "reliability.csv", "svm_c.csv", "descriptors.csv"}


class _Page(HTMLParser):
    """Collects what a page shows and what it would load."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.alternatives: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [values[name] for name in ("src", "srcset", "data", "poster") if values.get(name)]
        self.links += [values["href"]] if values.get("href") else []
        self.ids += [values["id"]] if values.get("id") else []
        self.alternatives += [values.get("alt") or ""] if tag == "img" else []


def test_the_report_has_its_files(evidence: Callable):
    """A page, a model card, every picture and the tables behind them."""
    files = report_files(evidence(("cat", "dog")))
    assert set(files) == {f"report/{name}" for name in _PICTURES | _TABLES | {"index.html"}} | {"MODEL_CARD.md"}


def test_the_page_opens_alone(evidence: Callable):
    """Every picture is inside the page, byte for byte, with a text for those who cannot see it; nothing is loaded."""
    files = report_files(evidence(("cat", "dog")))
    page = _Page(files["report/index.html"])
    start = "data:image/png;base64,"
    assert all(source.startswith(start) for source in page.sources)
    inside = {base64.b64decode(source.removeprefix(start)) for source in page.sources}
    assert inside == {files[f"report/{name}"] for name in _PICTURES}
    assert all(len(text) > 20 for text in page.alternatives)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert not re.search(rb"url\(|@import|<script|<link", files["report/index.html"])


def test_the_report_states_the_figures(evidence: Callable):
    """Accuracy, interval, default scorer, verdict and comparison stand in page and card; nothing is left unfilled."""
    made = evidence(("cat", "dog"), notes=("3 photos cannot be read and are left out: a.jpg",))
    files = report_files(made)
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = files[name].decode()
        assert "95.0 %" in text
        assert "76.4 % – 99.1 %" in text
        assert "svm (default)" in text
        assert made.learning.verdict.sentence in text
        assert "name exactly the same photos right" in text
        assert "3 photos cannot be read" in text
        assert made.splits.sha256 in text
        assert "frozen: identical, bit for bit" in text
        assert "{{" not in text
        assert "{%" not in text


@pytest.mark.parametrize(
    ("schedule", "phases", "words"),
    [
        ("plateau", ("head", "all"), "stops the run"),
        ("onecycle", ("head", "all"), "up and down once over all epochs"),
        ("onecycle", ("head",), "stops the run"),
    ],
)
def test_the_page_says_what_set_the_rates(
    evidence: Callable,
    settings: Callable,
    made_up_history: Callable,
    schedule: str,
    phases: tuple[str, ...],
    words: str,
):
    """Under one-cycle, validation loss neither lowers the rate nor stops; the head alone always learns by plateau."""
    made = evidence(("cat", "dog"), history=made_up_history(3, phases))
    manifest = replace(made.manifest, training={"settings": settings(schedule=schedule).as_json()})
    files = report_files(replace(made, manifest=manifest))
    page = files["report/index.html"].decode()
    assert words in page
    assert ("stops the run" in page) == (words == "stops the run")
    card = files["MODEL_CARD.md"].decode()
    assert ("stopped the run and chose the weights" in card) == (words == "stops the run")
    assert ("up and down once over all epochs" in card) == (words != "stops the run")


def test_names_are_escaped(evidence: Callable):
    """A class called like a script is shown, not run; template marks in a name are text."""
    page = report_files(evidence(_NASTY, notes=("<img src=x onerror=alert(1)>",)))["report/index.html"].decode()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &amp; b" in page
    assert "{{ 7 * 7 }}" in page
    assert "<img src=x" not in page


def test_tables_of_the_card_are_whole(evidence: Callable):
    """Every row of a table in the card has as many cells as its head, whatever classes are called."""
    card = report_files(evidence(_NASTY))["MODEL_CARD.md"].decode()
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
        assert len(table.splitlines()) > 2


@pytest.mark.parametrize("scorer", ["dense", "svm"])
def test_one_scorer_is_enough(evidence: Callable, scorer: str):
    """A bundle with the dense head alone, or the SVM alone, has a report that compares nothing."""
    files = report_files(evidence(("cat", "dog"), scorers=(scorer,)))
    assert f"report/confusion_{scorer}.png" in files
    assert "McNemar" not in files["report/index.html"].decode() + files["MODEL_CARD.md"].decode()


@pytest.mark.parametrize("training", [{}, {"settings": {}}, {"settings": {"views": 2}}])
def test_a_network_of_before_has_a_card(evidence: Callable, training: dict):
    """A new SVM on a bundle whose record lacks options that came later has a card; what it has is told."""
    made = evidence(("cat", "dog"), scorers=("svm",), learning=None, settings=None)
    preprocess = Preprocess(32, 32, fit="stretch") if training else Preprocess(48, 32)
    made = replace(made, manifest=replace(made.manifest, training=training, preprocess=preprocess))
    card = report_files(made)["MODEL_CARD.md"].decode()
    assert f"Input: {'both sides to 32' if training else 'shorter side to 48'}, middle 32 x 32" in card
    assert ("in 2 views: as it is, mirrored." in card) == bool(training.get("settings"))


@pytest.mark.parametrize("views", [1, 4])
def test_curves_of_one_view_say_so(evidence: Callable, views: int):
    """Where photos are served in several views, the curves are of one, and the page tells."""
    made = evidence(("cat", "dog"))
    training = {"settings": made.manifest.training["settings"] | {"views": views}}
    page = report_files(replace(made, manifest=replace(made.manifest, training=training)))["report/index.html"].decode()
    assert ("everything else here on 4 views" in page) == (views == 4)


def test_a_new_svm_alone_has_a_report(evidence: Callable):
    """Where no network learnt, there are no curves, filters or verdict, and nothing else is missing."""
    made = evidence(("cat", "dog"), scorers=("svm",), learning=None, settings=None)
    made.metrics.pop("verdict")
    made.metrics.pop("train")
    files = report_files(made)
    left_out = {"learning_curves.png", "filters.png", "changes.png", "confusion_dense.png", "changes.csv"}
    assert set(files) == {f"report/{name}" for name in (_PICTURES | _TABLES | {"index.html"}) - left_out} | {
        "MODEL_CARD.md"
    }
    assert "Verdict" not in files["report/index.html"].decode()


def test_photos_can_be_kept_out(evidence: Callable):
    """Without leave to show photos there is no picture of them, and page and card say so."""
    files = report_files(evidence(("cat", "dog"), crops=None))
    assert "report/errors.png" not in files
    assert "--no-report-photos" in files["report/index.html"].decode()
    assert "The report shows no photos." in files["MODEL_CARD.md"].decode()
    shown = report_files(evidence(("cat", "dog")))["MODEL_CARD.md"].decode()
    assert "`report/errors.png` and `report/index.html` show test photos" in shown


def test_the_photos_shown_are_the_worst_errors(evidence: Callable):
    """Only wrongly named photos are asked for, the surest first, twelve at most, by the default scorer."""
    asked: list[Photo] = []

    def crops(chosen: list[Photo]) -> np.ndarray:
        asked.extend(chosen)
        return np.zeros((len(chosen), 32, 32, 3), np.uint8)

    made = evidence(("cat", "dog"), crops=crops)
    report_files(made)
    assert asked == [made.splits.test[3]]
    asked.clear()
    wrong = np.eye(2, dtype=np.float32)[1 - made.labels] * (0.1 + np.arange(20, dtype=np.float32) / 10)[:, None]
    report_files(evidence(("cat", "dog"), crops=crops, scores={"dense": made.scores["dense"], "svm": wrong}))
    assert asked == [made.splits.test[row] for row in range(19, 7, -1)]


def test_a_faultless_scorer_has_no_errors_to_show(evidence: Callable):
    """Where every test photo is named right, the page says so."""
    made = evidence(("cat", "dog"))
    right = np.eye(2, dtype=np.float32)[made.labels]
    files = report_files(evidence(("cat", "dog"), scores={"dense": right, "svm": right}))
    assert "No test photo was named wrong." in files["report/index.html"].decode()
    assert "report/errors.png" not in files


def test_classes_with_few_photos_are_marked(evidence: Callable):
    """Ten test photos per class are few: page and card mark them. Photos of all parts are counted by class."""
    files = report_files(evidence(("cat", "dog")))
    assert "| cat | 10 (few) |" in files["MODEL_CARD.md"].decode()
    assert "<td>10 *</td>" in files["report/index.html"].decode()
    assert "| cat | 10 | 10 | 10 |" in files["MODEL_CARD.md"].decode()


def test_a_class_without_test_photos_has_a_dash(evidence: Callable):
    """Where the test photos lack a class, its figures are left open in page and card."""
    made = evidence(("cat", "dog"))
    for figures in made.metrics["test"].values():
        figures["recall"]["dog"] = figures["precision"]["dog"] = None
    files = report_files(made)
    assert "<td>–</td><td>–</td>" in files["report/index.html"].decode()
    assert "| dog | 10 (few) | – | – |" in files["MODEL_CARD.md"].decode()


@pytest.mark.parametrize("has_learnt", [True, False], ids=["training", "refit"])
def test_test_photos_that_may_have_been_learnt_from_are_told(evidence: Callable, has_learnt: bool):
    """That the test photos decided nothing is said where the network's own split was used, and only there."""
    made = evidence(("cat", "dog"))
    learnt_from = made.splits.sha256 if has_learnt else "0" * 64
    training = made.manifest.training | {"data_sha256": learnt_from}
    files = report_files(replace(made, manifest=replace(made.manifest, training=training)))
    page, card = (files[name].decode() for name in ("report/index.html", "MODEL_CARD.md"))
    assert ("the test photos decided nothing" in page) == ("test photos, which decided nothing:" in card) == has_learnt
    assert ("may have learnt from some" in page) == ("may have learnt from some" in card) == (not has_learnt)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, ""), ({"freeze": FREEZE_ALL, "weights": "/home/me/my net.pth"}, "--weights 'my net.pth' --freeze all"),
     ({"report_photos": False, "seed": 3}, "--seed 3 --no-report-photos"), ({"dropout": 0.5}, "--dropout 0.5")],
)  # fmt: skip
def test_the_command_repeats_the_run(changes: dict[str, Any], words: str):
    """The command holds what is not the default, no path of this machine, and is understood by the parser."""
    settings = TrainSettings(data=Path("/home/me/pets"), out=Path("/home/me/models/pets"), device="cpu", **changes)
    assert command(settings, "pets") == " ".join(["penult train PHOTOS --out models/pets", words]).strip()


def test_the_trained_bundle_has_a_report(trained: Any):
    """A real run's page and card name its accuracy and its verdict, and metrics.json holds the verdict too."""
    accuracy = f"{100 * trained.metrics['test']['dense']['accuracy']:.1f} %"
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = (trained.folder / name).read_text()
        assert accuracy in text
        assert "137" in text
        assert trained.metrics["verdict"]["sentence"] in text
    assert (
        len(trained.metrics["verdict"]["zones"]["all"]) == len((trained.folder / "history.csv").read_text().split()) - 1
    )


def test_the_report_reads_what_the_manifest_lists(evidence: Callable):
    """A manifest that lists files, as publishing hands it over, changes nothing."""
    made = evidence(("cat", "dog"))
    entries = {name: FileEntry.of(b"x") for name in (MODEL_NAME, SVM_NAME)}
    listed = evidence(("cat", "dog"), manifest=replace(made.manifest, files=entries))
    assert report_files(listed)["report/index.html"] == report_files(made)["report/index.html"]


def test_predictions_can_name_any_photo():
    """Photos outside DATA are named without their folders, and names that are no text are spelt out."""
    odd = os.fsdecode(b"/data/test/\xff,\n.png")
    photos = (Photo(Path("/data/test/a.png"), 0), Photo(Path("/elsewhere/b.png"), 1), Photo(Path(odd), 1))
    splits = Splits(("cat", "dog"), (), (), photos, ())
    scores = {"dense": np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]], np.float32)}
    rows = list(csv.reader(io.StringIO(predictions_csv(splits, Path("/data"), scores, {"dense": 2.0}).decode())))
    assert rows[0] == ["image", "class", "dense", "dense_probability"]
    assert [row[0] for row in rows[1:]] == ["test/a.png", "b.png", "test/\\udcff,\n.png"]
    assert [row[1:3] for row in rows[1:]] == [["cat", "cat"], ["dog", "dog"], ["dog", "cat"]]
    assert {row[3] for row in rows[1:]} == {f"{1 / (1 + math.exp(-2)):.6f}"}
