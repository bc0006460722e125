"""What a person reads about a bundle: report/index.html with its pictures, predictions.csv, and MODEL_CARD.md."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from penult.bundle.manifest import Manifest
from penult.bundle.scores import Floats, softmax
from penult.export import pictures
from penult.export.data import Splits
from penult.export.history import History

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("penult.export"),
    autoescape=jinja2.select_autoescape(["html"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["percent"] = lambda share: f"{100 * share:.1f} %"


def report_files(
    name: str, manifest: Manifest, splits: Splits, history: History | None, metrics: dict[str, Any]
) -> dict[str, bytes]:
    """Return the files of the report by their path in the bundle; `history` is None where only an SVM was fitted."""
    values = {"name": name, "manifest": manifest, "splits": splits, "history": history, "metrics": metrics}
    curves = {"report/learning_curves.png": pictures.learning_curves(history)} if history else {}
    return curves | {
        "report/confusion.png": pictures.confusion_matrices(splits.classes, metrics["test"]),
        "report/index.html": _TEMPLATES.get_template("report.html").render(values).encode(),
        "MODEL_CARD.md": _TEMPLATES.get_template("MODEL_CARD.md").render(values).encode(),
    }


def predictions_csv(
    splits: Splits, root: Path, scores: Mapping[str, Floats], temperatures: Mapping[str, float]
) -> bytes:
    """Return a CSV of every test photo with its true class, and each scorer's class and probability.

    `scores` maps a scorer to [N, classes] in the order of the test photos; paths are relative to `root` where below it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", *(column for name in scores for column in (name, f"{name}_probability"))])
    probabilities = {name: softmax(values, temperatures[name]) for name, values in scores.items()}
    for row, photo in enumerate(splits.test):
        answers = [(splits.classes[p[row].argmax()], f"{p[row].max():.6f}") for p in probabilities.values()]
        path = photo.path.relative_to(root) if photo.path.is_relative_to(root) else photo.path.name
        shown = str(path).encode(errors="backslashreplace").decode()
        writer.writerow([shown, splits.classes[photo.label], *(cell for answer in answers for cell in answer)])
    return text.getvalue().encode()
