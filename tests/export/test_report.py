"""The report: it renders for any class name and any history, and escapes what photos' folders are called."""

import csv
import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess
from penult.export.data import Photo, Splits
from penult.export.evaluate import evaluate
from penult.export.history import Epoch, History
from penult.export.report import predictions_csv, report_files

_NASTY = ("<script>alert(1)</script>", "a & b", '"quoted"', "{{ 7 * 7 }}", "größe")


@pytest.fixture
def render() -> Callable[..., dict[str, bytes]]:
    """render(classes, **parts): the report's files for a made-up run."""

    def make(classes: tuple[str, ...], history: History | None = None, notes: tuple[str, ...] = ()) -> dict[str, bytes]:
        labels = np.arange(20) % len(classes)
        scores = np.eye(len(classes), dtype=np.float32)[(labels + (np.arange(20) == 3)) % len(classes)]
        figures = evaluate(scores, labels, classes, 1.0)
        photos = tuple(Photo(Path("x"), int(label), "0" * 64) for label in labels)
        metrics = {part: {"dense": figures, "svm": figures} for part in ("test", "val", "train")}
        metrics |= {"parity": {"photos": 20, "logits_difference": 1e-6, "descriptor_difference": 2e-6}, "goldens": 8}
        manifest = Manifest(
            "tiny5", classes, Preprocess(32, 32), 128, "svm", {"dense": 1.0, "svm": 1.0},
            training={"settings": {"weights": "none", "freeze": 0, "reinit": False}},
        )  # fmt: skip
        splits = Splits(classes, photos, photos, photos, notes)
        return report_files("test", manifest, splits, history or _history(3), metrics)

    return make


def _history(epochs: int, phases: tuple[str, ...] = ("all",)) -> History:
    zeros: dict[str, Any] = dict.fromkeys([f.name for f in fields(Epoch)], 0.5)
    first = Epoch(**zeros)
    rows = [(phase, n) for phase in phases for n in range(1, epochs + 1)]
    return History([replace(first, phase=p, epoch=n, val_loss=1 / n, learning_rate=0.1 / n) for p, n in rows])


def test_the_report_has_its_files(render: Callable):
    """A page, its two pictures and a model card; the page shows both pictures by relative paths."""
    files = render(("cat", "dog"))
    assert set(files) == {"report/index.html", "report/learning_curves.png", "report/confusion.png", "MODEL_CARD.md"}
    page = files["report/index.html"].decode()
    assert re.findall(r'src="([^"]+)"', page) == ["learning_curves.png", "confusion.png"]
    for name in ("report/learning_curves.png", "report/confusion.png"):
        assert Image.open(io.BytesIO(files[name])).size > (300, 300)


def test_the_report_states_the_figures(render: Callable):
    """Accuracy, interval and default scorer stand in the page and in the card, and nothing is left unfilled."""
    files = render(("cat", "dog"), notes=("3 photos cannot be read and are left out: a.jpg",))
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = files[name].decode()
        assert "95.0 %" in text
        assert "svm (default)" in text
        assert "3 photos cannot be read" in text
        assert "{{" not in text
        assert "{%" not in text


def test_names_are_escaped(render: Callable):
    """A class called like a script is shown, not run; template marks in a name are text."""
    page = render(_NASTY, notes=("<img src=x onerror=alert(1)>",))["report/index.html"].decode()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &amp; b" in page
    assert "{{ 7 * 7 }}" in page
    assert "<img src=x" not in page


@pytest.mark.parametrize("name", ["$_{$", "US$ and CA$", "a$b", "\\frac{1}", "100%", "_^", "🐱", "猫", "ไทย"])
def test_any_class_name_can_be_drawn(render: Callable, name: str):
    """Dollar signs, other scripts and emoji in a class name neither stop a run at its end nor print warnings."""
    assert render((name, "other"))["report/confusion.png"].startswith(b"\x89PNG")


def test_a_dollar_sign_is_drawn_as_such(render: Callable):
    """A name is drawn as it stands, not as a formula, in which spaces would not show."""
    drawn = [render((name, "b"))["report/confusion.png"] for name in ("$x+y$", "$x + y$")]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("phases", [("all",), ("head",), ("head", "all")])
@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_any_history_can_be_drawn(render: Callable, phases: tuple[str, ...], epochs: int):
    """One phase or two, one epoch or many: the curves are drawn."""
    picture = render(("cat", "dog"), _history(epochs, phases))["report/learning_curves.png"]
    assert Image.open(io.BytesIO(picture)).width > 300


def test_many_classes_can_be_drawn(render: Callable):
    """Forty classes make a larger matrix, not an error."""
    small, large = (render(tuple(f"class {n}" for n in range(count)))["report/confusion.png"] for count in (3, 40))
    assert Image.open(io.BytesIO(large)).width > Image.open(io.BytesIO(small)).width


def test_the_trained_bundle_has_a_report(trained: Any):
    """A real run's page and card name its classes and its accuracy."""
    accuracy = f"{100 * trained.metrics['test']['dense']['accuracy']:.1f} %"
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = (trained.folder / name).read_text()
        assert accuracy in text
        assert "137" in text


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
