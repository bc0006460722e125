"""The report: one page that needs nothing else, for any run, class name and set of scorers; and the model card."""

import csv
import html
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
from penult.bundle.scores import wilson
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.evaluation.confusions import Confusions
from penult.export.evaluation.copies_across import Across
from penult.export.evaluation.metrics import against_validation, compare, evaluate
from penult.export.report import report
from penult.export.report.figures import draw_figures
from penult.export.report.report import command, predictions_csv, report_files

_NASTY = ("<script>alert(1)</script>", "a & b", '"quoted"', "{{ 7 * 7 }}", "größe", "a | b")
_PICTURES = {
    "learning_curves.svg", "filters.svg", "changes.svg", "scorers.svg", "confusion_dense.svg", "confusion_svm.svg",
    "svm_c.svg", "descriptors.svg",
}  # fmt: skip
_TABLES = {"changes.csv", "classes.csv", "reliability.csv", "svm_c.csv", "descriptors.csv"}


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
        self.alternatives += [values.get("aria-label") or ""] if tag == "svg" else []


@pytest.fixture(scope="module")
def drawn() -> list[Any]:
    """The pictures and tables of one run, once they are drawn."""
    return []


@pytest.fixture
def texts_of(
    report_data: Callable, drawn: list[Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Any], dict[str, bytes]]:
    """texts_of(data): the files of its report, for what the page and the card say; the pictures are another run's.

    Drawing takes most of a report's time; test_plots.py draws every kind of run.
    """
    if not drawn:
        made = report_data(("cat", "dog"))
        found = {n: Confusions(made.splits.classes, made.labels, s.argmax(axis=1)) for n, s in made.scores.items()}
        drawn.append(draw_figures(made, found))
    plots, tables = drawn[0]

    def make(data: Any) -> dict[str, bytes]:
        with monkeypatch.context() as patch:
            patch.setattr(report, "draw_figures", lambda *_: (plots, dict(tables)))
            return report_files(data)

    return make


def test_the_page_opens_alone(report_data: Callable):
    """Page, card, every picture and its tables are there, and the page holds pictures and photos itself.

    All have a text for those who cannot see them. All ids are different, as those of one picture must not be found in
    another. Besides its own parts the page links the status page alone.
    """
    files = report_files(report_data(("cat", "dog")))
    assert set(files) == {f"report/{name}" for name in _PICTURES | _TABLES | {"index.html"}} | {"MODEL_CARD.md"}
    page = _Page(files["report/index.html"])
    assert files["report/index.html"].count(b"<svg") == len(_PICTURES)
    assert len(page.sources) == 1
    assert page.sources[0].startswith("data:image/jpeg;base64,")
    assert all(len(text) > 20 for text in page.alternatives)
    assert len(page.alternatives) == len(_PICTURES) + 1
    assert len(page.ids) == len(set(page.ids)) > 20
    assert {link.removeprefix("#") for link in page.links} - set(page.ids) == {"http://127.0.0.1:9095/"}
    used = set(re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', files["report/index.html"].decode()))
    assert used <= set(page.ids)
    assert not re.search(rb"url\((?!#)|@import|<script|<link", files["report/index.html"])


def test_the_report_states_the_figures(report_data: Callable, texts_of: Callable):
    """Accuracy, interval, default scorer, diagnosis and comparison stand in page and card; nothing is left unfilled."""
    made = report_data(("cat", "dog"), notes=("3 photos cannot be read and are left out: a.jpg",))
    files = texts_of(made)
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = files[name].decode()
        assert "76–99 %" in text
        assert "19 of 20" in text
        assert "95.0 %" not in text
        assert "svm (default)" in text
        assert made.learning.diagnosis.sentence in text
        assert "are correct on exactly the same photos" in text
        assert "3 photos cannot be read" in text
        assert made.splits.sha256 in text
        assert "frozen, bit-identical" in text
        assert "{{" not in text
        assert "{%" not in text


@pytest.mark.parametrize(
    ("schedule", "phases", "words"),
    [
        ("plateau", ("head", "all"), "stops the run"),
        ("onecycle", ("head", "all"), "rises and falls once over all epochs"),
        ("onecycle", ("head",), "stops the run"),
    ],
)
def test_the_page_says_what_set_the_rates(
    report_data: Callable,
    texts_of: Callable,
    settings: Callable,
    made_up_history: Callable,
    schedule: str,
    phases: tuple[str, ...],
    words: str,
):
    """Under one-cycle, validation loss neither lowers the rate nor stops; the head alone always learns by plateau."""
    made = report_data(("cat", "dog"), history=made_up_history(3, phases))
    manifest = replace(made.manifest, training={"settings": settings(schedule=schedule).as_json()})
    files = texts_of(replace(made, manifest=manifest))
    page = files["report/index.html"].decode()
    assert words in page
    assert ("stops the run" in page) == (words == "stops the run")
    card = files["MODEL_CARD.md"].decode()
    assert ("stopped the run and chose the weights" in card) == (words == "stops the run")
    assert ("rose and fell once over all epochs" in card) == (words != "stops the run")


def test_names_are_escaped(report_data: Callable):
    """A class called like a script is shown, not run; template marks in a name are text."""
    page = report_files(report_data(_NASTY, notes=("<img src=x onerror=alert(1)>",)))["report/index.html"].decode()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &amp; b" in page
    assert "{{ 7 * 7 }}" in page
    assert "<img src=x" not in page


def test_tables_of_the_card_are_whole(report_data: Callable, texts_of: Callable):
    """Every row of a table in the card has as many cells as its head, whatever classes are called."""
    card = texts_of(report_data(_NASTY))["MODEL_CARD.md"].decode()
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
        assert len(table.splitlines()) > 2


def test_one_scorer_is_enough(report_data: Callable):
    """A bundle with the dense head alone has a report that compares nothing; the SVM alone is tested below."""
    files = report_files(report_data(("cat", "dog"), scorers=("dense",)))
    assert {name for name in files if "confusion" in name} == {"report/confusion_dense.svg"}
    assert "McNemar" not in files["report/index.html"].decode() + files["MODEL_CARD.md"].decode()


@pytest.mark.parametrize("training", [{}, {"settings": {}}, {"settings": {"views": 2}}])
def test_a_network_of_before_has_a_card(report_data: Callable, texts_of: Callable, training: dict):
    """A new SVM on a bundle whose record lacks options that came later has a card; what it has is told."""
    made = report_data(("cat", "dog"), scorers=("svm",), learning=None, settings=None)
    preprocess = Preprocess(32, 32, fit="stretch") if training else Preprocess(48, 32)
    made = replace(made, manifest=replace(made.manifest, training=training, preprocess=preprocess))
    card = texts_of(made)["MODEL_CARD.md"].decode()
    assert (
        f"Input: {'both sides resized to 32' if training else 'shorter side resized to 48'} pixels, center crop of 32 x 32"
        in card
    )
    assert ("in 2 views (unchanged, mirrored)." in card) == bool(training.get("settings"))


@pytest.mark.parametrize("views", [1, 4])
def test_curves_of_one_view_say_so(report_data: Callable, texts_of: Callable, views: int):
    """Where photos are served in several views, the curves are of one, and the page tells."""
    made = report_data(("cat", "dog"))
    training = {"settings": made.manifest.training["settings"] | {"views": views}}
    page = texts_of(replace(made, manifest=replace(made.manifest, training=training)))["report/index.html"].decode()
    assert ("Everything else is measured on 4 views" in page) == (views == 4)


def test_a_new_svm_alone_has_a_report(report_data: Callable):
    """Where no network learnt, there are no curves, filters or diagnosis, and nothing else is missing."""
    made = report_data(("cat", "dog"), scorers=("svm",), learning=None, settings=None)
    made.metrics.pop("verdict")
    made.metrics.pop("train")
    files = report_files(made)
    left_out = {"learning_curves.svg", "filters.svg", "changes.svg", "confusion_dense.svg", "changes.csv"}
    assert set(files) == {f"report/{name}" for name in (_PICTURES | _TABLES | {"index.html"}) - left_out} | {
        "MODEL_CARD.md"
    }
    assert "learning curves" not in files["report/index.html"].decode()
    assert "McNemar" not in files["report/index.html"].decode() + files["MODEL_CARD.md"].decode()


def test_photos_can_be_kept_out(report_data: Callable, texts_of: Callable):
    """Without leave to show photos there is no picture of them, and page and card say so."""
    files = texts_of(report_data(("cat", "dog"), crops=None))
    assert b"<img" not in files["report/index.html"]
    assert "--no-report-photos" in files["report/index.html"].decode()
    assert "The report shows no photos." in files["MODEL_CARD.md"].decode()
    shown = texts_of(report_data(("cat", "dog")))["MODEL_CARD.md"].decode()
    assert "`report/index.html` shows small photos" in shown


def test_the_photos_shown_are_the_worst_errors(report_data: Callable, texts_of: Callable):
    """Only wrongly named photos are asked for, the surest first, twelve at most, by the default scorer."""
    asked: list[Photo] = []

    def crops(chosen: list[Photo]) -> np.ndarray:
        asked.extend(chosen)
        return np.zeros((len(chosen), 32, 32, 3), np.uint8)

    made = report_data(("cat", "dog"), crops=crops)
    texts_of(made)
    assert asked == [made.splits.test[3]]
    asked.clear()
    wrong = np.eye(2, dtype=np.float32)[1 - made.labels] * (0.1 + np.arange(20, dtype=np.float32) / 10)[:, None]
    texts_of(report_data(("cat", "dog"), crops=crops, scores={"dense": made.scores["dense"], "svm": wrong}))
    assert asked == [made.splits.test[row] for row in range(19, 7, -1)]


def test_without_test_errors_other_photos_are_shown(report_data: Callable, texts_of: Callable):
    """With no test photo named wrong, the page shows validation errors, and right answers of every class, least sure."""
    asked: list[Photo] = []

    def crops(chosen: list[Photo]) -> np.ndarray:
        asked.extend(chosen)
        return np.zeros((len(chosen), 32, 32, 3), np.uint8)

    made = report_data(("cat", "dog"))
    right = np.eye(2, dtype=np.float32)[made.labels] * (1 + np.arange(20, dtype=np.float32) / 10)[:, None]
    page = texts_of(report_data(("cat", "dog"), scores={"dense": right, "svm": right}, crops=crops))
    text = page["report/index.html"].decode()
    assert "test photos are correct" in text
    assert "Errors on the validation photos" in text
    assert "Correct answers with the lowest confidence, by class" in text
    least = [made.splits.test[row] for label in (0, 1) for row in np.flatnonzero(made.labels == label)[:6]]
    assert asked == [*least, made.splits.val[3]]


def test_few_photos_have_no_bare_percentage(report_data: Callable, texts_of: Callable):
    """Eighteen of eighteen, three of three: page and card give counts and intervals, "100" stands as an end alone."""
    right = np.eye(2, dtype=np.float32)[np.arange(18) % 2]
    made = report_data(("cat", "dog"))
    figures = evaluate(right, made.labels[:18], made.splits.classes, 1.0)
    metrics = made.metrics | {part: dict.fromkeys(("dense", "svm"), figures) for part in ("test", "val")}
    splits = replace(made.splits, test=made.splits.test[:18])
    scores, descriptors = dict.fromkeys(("dense", "svm"), right), made.descriptors[:18]
    few = replace(made, splits=splits, metrics=metrics, scores=scores, labels=made.labels[:18], descriptors=descriptors)
    files = texts_of(few)
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", files[name].decode(), flags=re.DOTALL)
        assert "18 of 18" in text
        assert "9 of 9" in text
        assert "82–100 %" in text
        assert not re.search(r"(?<![–\d])(?<!and )100(\.0)? ?%|1\.000", text)
        assert "may be between 82 and 100 %" in text


@pytest.mark.parametrize(
    ("test", "val", "words"),
    [((18, 18), (20, 33), "Rely on the lower figure"), ((60, 100), (85, 100), "Rely on the test photos"),
     ((18, 18), (30, 33), "")],
)  # fmt: skip
def test_a_disagreement_is_said(
    report_data: Callable, texts_of: Callable, test: tuple[int, int], val: tuple[int, int], words: str
):
    """Page and card say when test and validation photos disagree by more than chance explains, whichever is better."""
    made = report_data(("cat", "dog"))
    told = {part: {"accuracy": right / of, "photos": of, "accuracy_95": list(wilson(right / of, of))}
            for part, (right, of) in (("test", test), ("val", val))}  # fmt: skip
    made.metrics["test_against_validation"] = {"svm": against_validation(told["test"], told["val"])}
    files = texts_of(made)
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = html.unescape(files[name].decode())
        assert ("differs between test and validation photos by more than chance" in text) == bool(words)
        assert words in text
        assert not words or f"{val[0]} of {val[1]} validation photos" in text


@pytest.mark.parametrize(
    ("only_dense", "only_svm", "words"),
    [(0, 8, "the SVM is better"), (8, 0, "the dense head is better"), (2, 1, "neither is clearly better")],
)
def test_the_better_scorer_is_named_by_the_outcome(
    report_data: Callable, texts_of: Callable, only_dense: int, only_svm: int, words: str
):
    """What the page says of the SVM depends on which of the two named more of these photos right."""
    made = report_data(("cat", "dog"))
    labels = np.zeros(20, int)
    dense, svm = (np.eye(2)[(np.arange(20) < wrong).astype(int)] for wrong in (only_svm, 0))
    svm[12 : 12 + only_dense] = [0.0, 1.0]
    made.metrics["comparison"]["test"] = compare(dense, svm, labels)
    assert f"On these test photos {words}." in texts_of(made)["report/index.html"].decode()


def test_photos_of_all_parts_are_counted_by_class(report_data: Callable, texts_of: Callable):
    """The card's table has the photos of every split, and recall in counts where ten photos are behind it."""
    card = texts_of(report_data(("cat", "dog")))["MODEL_CARD.md"].decode()
    assert "| cat | 10 | 10 | 10 | 10 of 10 | 10 of 10 |" in card
    assert "| dog | 10 | 10 | 10 | 9 of 10 | 9 of 10 |" in card


def test_a_class_without_test_photos_has_a_dash(report_data: Callable, texts_of: Callable):
    """Where the test photos lack a class, its figures are left open in page and card."""
    files = texts_of(report_data(tuple("abcdefghijklmnopqrstuvwxyz")[:24]))
    assert "| x | 0 | 0 | 0 | – | – |" in files["MODEL_CARD.md"].decode()


def test_many_classes_make_a_page_of_bounded_size(report_data: Callable, classes: int = 10_000):
    """The page shows the weakest classes, the card fewer, classes.csv all; neither page nor card grows any more."""
    names = tuple(f"class number {n}" for n in range(classes))
    made = report_data(names[:20])
    scores = {name: np.pad(values, ((0, 0), (0, classes - 20))) for name, values in made.scores.items()}
    files = report_files(replace(made, splits=replace(made.splits, classes=names), scores=scores))
    assert len(files["report/index.html"]) < 500_000
    assert len(files["MODEL_CARD.md"]) < 20_000
    assert len(files["report/classes.csv"].splitlines()) == classes + 1
    # Of the photos there are, one is wrong: its class is the weakest.
    page = files["report/index.html"].decode()
    assert page.index("<bdi>class number 3</bdi>") < page.index("<bdi>class number 2</bdi>")
    assert f"The 200 weakest of {classes} classes" in page


@pytest.mark.parametrize("has_learnt", [True, False], ids=["training", "refit"])
def test_test_photos_that_may_have_been_learnt_from_are_told(
    report_data: Callable, texts_of: Callable, has_learnt: bool
):
    """That the test photos decided nothing is said where the network's own split was used, and only there."""
    made = report_data(("cat", "dog"))
    learnt_from = made.splits.sha256 if has_learnt else "0" * 64
    training = made.manifest.training | {"data_sha256": learnt_from}
    files = texts_of(replace(made, manifest=replace(made.manifest, training=training)))
    page, card = (files[name].decode() for name in ("report/index.html", "MODEL_CARD.md"))
    assert (
        ("test photos were used for this figure only" in page)
        == ("were used for these figures only. The" in card)
        == has_learnt
    )
    assert ("may have been trained on some" in page) == ("may have been trained on some" in card) == (not has_learnt)


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
    """A real run's page and card name its accuracy and its diagnosis, and metrics.json holds the diagnosis too."""
    figures = trained.metrics["test"]["dense"]
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = html.unescape((trained.folder / name).read_text())
        assert f"{100 * figures['accuracy']:.1f} %" in text
        assert f"{round(figures['accuracy'] * figures['photos'])} of {figures['photos']}" in text
        assert trained.metrics["verdict"]["sentence"] in text
    assert (
        len(trained.metrics["verdict"]["zones"]["all"]) == len((trained.folder / "history.csv").read_text().split()) - 1
    )
    assert trained.metrics["test_against_validation"]["svm"]["test_photos"] == figures["photos"]


def test_the_report_reads_what_the_manifest_lists(report_data: Callable, texts_of: Callable):
    """A manifest that lists files, as publishing hands it over, changes nothing."""
    made = report_data(("cat", "dog"))
    entries = {name: FileEntry.of(b"x") for name in (MODEL_NAME, SVM_NAME)}
    listed = report_data(("cat", "dog"), manifest=replace(made.manifest, files=entries))
    assert texts_of(listed)["report/index.html"] == texts_of(made)["report/index.html"]


def test_predictions_can_name_any_photo():
    """Photos outside DATA are named without their folders, and names that are no text are spelt out."""
    odd = os.fsdecode(b"/data/test/\xff,\n.png")
    photos = (Photo(Path("/data/test/a.png"), 0), Photo(Path("/elsewhere/b.png"), 1), Photo(Path(odd), 1))
    splits = Splits(("cat", "dog"), (), (), photos, (), root=Path("/data"))
    scores = {"dense": np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]], np.float32)}
    rows = list(csv.reader(io.StringIO(predictions_csv(splits, scores, {"dense": 2.0}).decode())))
    assert rows[0] == ["image", "class", "dense", "dense_probability"]
    assert [row[0] for row in rows[1:]] == ["test/a.png", "b.png", "test/\\udcff,\n.png"]
    assert [row[1:3] for row in rows[1:]] == [["cat", "cat"], ["dog", "dog"], ["dog", "cat"]]
    assert {row[3] for row in rows[1:]} == {f"{1 / (1 + math.exp(-2)):.6f}"}


def test_near_copies_are_shown(report_data: Callable, texts_of: Callable):
    """If test photos have near-copies among training photos, page and card show the accuracy without them."""
    pair = Across("test", 4, Photo(Path("test/cat/4.png"), 0), "train", Photo(Path("train/cat/<9>.png"), 0), 0.912)
    data = report_data(("cat", "dog"), near_copies=[pair])
    figures = {"photos": 15, "accuracy": 0.8, "accuracy_95": [0.55, 0.93], "few_photos": True}
    data.metrics["near_copies"] = {
        "test_photos": 5, "val_photos": 0, "test_without": {"dense": figures, "svm": figures}, "pairs": [],
    }  # fmt: skip
    files = texts_of(data)
    page = files["report/index.html"].decode()
    section = page[page.index('id="near-copies"') :].partition("</section>")[0]
    assert section.count("12 of 15") == 2
    assert section.count("data:image/jpeg") == 2
    assert "cat/&lt;9&gt;.png" in section
    assert "similarity 0.91" in section
    assert files["MODEL_CARD.md"].decode().count("12 of 15 test photos") == 2
    none = texts_of(report_data(("cat", "dog")))
    assert b"near-cop" not in none["report/index.html"] + none["MODEL_CARD.md"]
