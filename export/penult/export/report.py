"""What a person reads about a bundle: report/index.html with its pictures, and MODEL_CARD.md."""

from typing import Any

import jinja2
from penult.bundle.manifest import Manifest
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
    name: str, manifest: Manifest, splits: Splits, history: History, metrics: dict[str, Any]
) -> dict[str, bytes]:
    """Return the files of the report by their path in the bundle."""
    values = {"name": name, "manifest": manifest, "splits": splits, "history": history, "metrics": metrics}
    return {
        "report/learning_curves.png": pictures.learning_curves(history),
        "report/confusion.png": pictures.confusion_matrices(splits.classes, metrics["test"]),
        "report/index.html": _TEMPLATES.get_template("report.html").render(values).encode(),
        "MODEL_CARD.md": _TEMPLATES.get_template("MODEL_CARD.md").render(values).encode(),
    }
