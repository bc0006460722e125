"""Write report/index.html with its plots and tables, and MODEL_CARD.md.

The page is one file of bounded size. If there are many classes, it shows the weakest ones; classes.csv has all.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from shlex import quote
from typing import Any

import jinja2

from penult.bundle.operating_points import percent as as_text
from penult.bundle.scores import Floats, best_of
from penult.drawing import inline
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.evaluation import accuracy
from penult.export.evaluation.choice import RULES
from penult.export.evaluation.confusions import Confusions, class_rows, classes_csv
from penult.export.evaluation.diagnosis import RULE
from penult.export.evaluation.occlusion import PLACES
from penult.export.evaluation.paired import SIGNIFICANCE
from penult.export.networks.weight_changes import StageChange, stage_changes
from penult.export.report import budget_table
from penult.export.report.figures import draw_figures
from penult.export.report.gallery import gallery, near_copies
from penult.export.report.map_gallery import map_gallery
from penult.export.report.plot_abstaining import risk_coverage
from penult.export.report.plot_scorers import MAX_NAMED, confusion_inches
from penult.export.report.plot_style import SCORER_NAMES, WIDTH
from penult.export.report.report_data import ReportData, TrainingSummary

# With more classes than the first number the page shows the weakest ones open; the second limits all that it has.
_MAX_OPEN, _MAX_FOLDED, _WEAKEST = 12, 200, 5
_MAX_MISTAKES, _MAX_IN_CARD = 10, 50
# At this width, text of 9 points is 11 CSS pixels high.
_REM_PER_INCH = 5.5
_BEFORE = '<section id="errors">'
_CURVE = "abstaining.svg"
_MARKED = re.compile(r"<!--withheld-->.*?<!--/withheld-->", re.DOTALL)
_CARD_SECTION = re.compile(r"^## Withheld answers\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
STATUS_PAGE = "http://127.0.0.1:9095/"
_OF_THIS_MACHINE = {
    "data", "out", "resume", "device", "cache_mb", "save_weights", "tensorboard", "sweep", "repeats", "outliers",
    "int8", "max_loss", "budget", "budget_plan", "pinned",
}  # fmt: skip

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("penult.export.report"),
    autoescape=jinja2.select_autoescape(["html"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.filters |= {
    "share": as_text,
    "percent": lambda share: f"{100 * share:.1f} %",
    "sure": lambda share: "over 99 %" if share > 0.99 else f"{100 * share:.0f} %",
    "near": lambda share, figures: f"{100 * share:.{0 if accuracy.is_few(figures) else 1}f} %",
    "loss": lambda loss, figures: f"{loss:.2g}" if accuracy.is_few(figures) else f"{loss:.3f}",
    "of": lambda share, photos: accuracy.share(round(share * photos), photos),
    "multiple": lambda ratio: f"{ratio:.2f} × threshold",
    "between": lambda interval: accuracy.between(*interval),
    "stated": accuracy.stated,
    "counted": accuracy.counted,
    "whole": accuracy.whole,
    "decimal": accuracy.decimal,
    "scorer": lambda name: SCORER_NAMES.get(name, name),
    "cell": lambda text: str(text).replace("|", "\\|"),
}


def report_files(report_data: ReportData) -> dict[str, bytes]:
    """Return the files of the report by their path in the bundle.

    index.html contains its plots, so that it can be copied as one file. They are also stored beside it, with their data
    as CSV.
    """
    classes, labels = report_data.splits.classes, report_data.labels
    by_scorer = {name: Confusions(classes, labels, s.argmax(axis=1)) for name, s in report_data.scores.items()}
    plots, tables = draw_figures(report_data, by_scorer)
    tables["classes.csv"] = classes_csv(by_scorer, _counts(report_data.splits))

    def drawn(file: str, description: str) -> str:
        return inline(plots[file], file.removesuffix(".svg"), description)

    values = _values(report_data, by_scorer) | {"plots": plots, "drawn": drawn}
    page = TEMPLATES.get_template("report.html").render(values)
    card = TEMPLATES.get_template("MODEL_CARD.md").render(values)
    beside = {f"report/{name}": data for name, data in (plots | tables).items()}
    return beside | {"report/index.html": page.encode(), "MODEL_CARD.md": card.encode()}


def with_abstaining(page: bytes, card: bytes, metrics: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of a report that show other operating points: page and card of before, and the curve.

    A page of an older penult gets the section before its end. A card gets it in place of the old one, or before "Data".
    """
    drawn = risk_coverage(metrics["abstaining"])
    plots = {_CURVE: drawn} if drawn else {}

    def inlined(file: str, description: str) -> str:
        return inline(plots[file], file.removesuffix(".svg"), description)

    values = {"metrics": metrics, "plots": plots, "drawn": inlined}
    section = TEMPLATES.get_template("abstaining.html").render(values)
    text, marked = page.decode(), f"<!--withheld-->\n{section}\n<!--/withheld-->"
    if _MARKED.search(text):
        text = _MARKED.sub(lambda found: marked, text)
    else:
        place = _BEFORE if _BEFORE in text else "</html>"
        text = text.replace(place, f"{marked}\n{place}", 1)
    old = _CARD_SECTION.sub("", card.decode())
    said = TEMPLATES.get_template("abstaining.md").render(values)
    new = old.replace("## Data\n", f"{said.strip()}\n\n## Data\n", 1)
    return {"report/index.html": text.encode(), "MODEL_CARD.md": new.encode()} | {
        f"report/{name}": data for name, data in plots.items()
    }


def predictions_csv(splits: Splits, scores: Mapping[str, Floats], temperatures: Mapping[str, float]) -> bytes:
    """Return a CSV of every test photo with its true class, and each scorer's class and probability.

    Args:
        splits: The photos. Paths below their root are written relative to it, others as the file name only.
        scores: [N, classes] by scorer, in the order of the test photos.
        temperatures: By scorer.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", *(column for name in scores for column in (name, f"{name}_probability"))])
    best = [best_of(values, temperatures[name]) for name, values in scores.items()]
    for row, photo in enumerate(splits.test):
        answers = [(splits.classes[named[row]], f"{sure[row]:.6f}") for named, sure in best]
        is_inside = photo.path.is_relative_to(splits.root)
        path = photo.path.relative_to(splits.root) if is_inside else photo.path.name
        shown = str(path).encode(errors="backslashreplace").decode()
        writer.writerow([shown, splits.classes[photo.label], *(cell for answer in answers for cell in answer)])
    return text.getvalue().encode()


def command(settings: TrainSettings, name: str) -> str:
    """Return the command line that repeats a run, without paths of this machine and without defaults."""
    words = ["penult", "train", "PHOTOS", "--out", f"models/{name}"]
    shown = settings.as_json()
    for field in fields(TrainSettings):
        value = shown.get(field.name, getattr(settings, field.name))
        if field.name in _OF_THIS_MACHINE or value == field.default or value is None:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", quote(str(value))]
    return " ".join(words)


def _values(report_data: ReportData, by_scorer: Mapping[str, Confusions]) -> dict[str, Any]:
    """Return the values for both templates."""
    test, scorer, classes = report_data.metrics["test"], report_data.manifest.default_scorer, report_data.splits.classes
    settings, default = report_data.settings, by_scorer[report_data.manifest.default_scorer]
    many = len(classes) > _MAX_OPEN
    budget = report_data.manifest.training.get("budget")
    rows = class_rows(by_scorer, _counts(report_data.splits), scorer)
    disagreements = {
        name: found["sentence"] for name, found in report_data.metrics.get("test_against_validation", {}).items()
    }
    return {
        "name": report_data.name,
        "status_page": STATUS_PAGE,
        "manifest": report_data.manifest,
        "why_no_dense": report_data.manifest.training.get(
            "dense_is_silent", "the network was trained on other classes"
        ),
        "splits": report_data.splits,
        "tested_anew": report_data.splits.sha256 == report_data.manifest.training.get("data_sha256"),
        "metrics": report_data.metrics,
        "default": test[scorer],
        "validated": report_data.metrics.get("val", {}).get(scorer),
        "caution": accuracy.caution(test[scorer]),
        "disagreement": disagreements.get(scorer, ""),
        "other_disagreements": [text for name, text in disagreements.items() if text and name != scorer],
        "choice_rule": RULES.get(report_data.metrics.get("choice", {}).get("rule"), ""),
        "outcome": _outcome(report_data.metrics.get("comparison", {}).get("test")),
        "few_rule": accuracy.RULE,
        "many": many,
        "unnamed": len(classes) > MAX_NAMED,
        "matrix_rem": _matrix_rem(len(classes)),
        "rows": rows[:_MAX_FOLDED] if many else sorted(rows, key=lambda row: row.number),
        "weakest": _WEAKEST,
        "mistakes": default.worst(_MAX_MISTAKES),
        "most_in_card": _MAX_IN_CARD,
        "has_errors": bool((default.labels != default.answers).any()),
        "gallery": gallery(report_data),
        "copies": report_data.metrics.get("near_copies", {"test_photos": 0, "val_photos": 0}),
        "copy_pairs": near_copies(report_data),
        "training": report_data.manifest.training.get("settings", {}),
        "command": command(settings, report_data.name) if settings else None,
        "dropout": report_data.learning.dropout if report_data.learning else None,
        "rule": RULE,
        "budget": budget if report_data.learning else None,
        "tried": [budget_table.HEADER, *budget_table.rows(budget)] if budget else [],
        "diagnosis": report_data.learning.diagnosis if report_data.learning else None,
        "stages": _stages(report_data.learning) if report_data.learning else [],
        "shows_photos": report_data.crops is not None,
        "maps": map_gallery(report_data),
        "occlusion_places": PLACES**2,
    }


def _counts(splits: Splits) -> list[tuple[int, int, int]]:
    """Return the training, validation and test photos of every class."""
    found = [Counter(photo.label for photo in part) for part in (splits.train, splits.val, splits.test)]
    return [(found[0][at], found[1][at], found[2][at]) for at in range(len(splits.classes))]


def _outcome(comparison: dict[str, Any] | None) -> str:
    """Return a sentence on which scorer was better on these test photos."""
    if comparison is None:
        return ""
    if comparison["p_value"] >= SIGNIFICANCE:
        return "On these test photos neither is clearly better."
    better = "SVM" if comparison["only_svm"] > comparison["only_dense"] else "dense head"
    return f"On these test photos the {better} is better."


def _matrix_rem(classes: int) -> float:
    """Return the width in rem that a matrix with names needs to be readable; 0 if it fits a phone."""
    inches = confusion_inches(classes)
    return 0 if inches <= WIDTH else round(_REM_PER_INCH * inches, 1)


def _stages(learning: TrainingSummary) -> list[tuple[StageChange, str]]:
    """Return every stage with a text on how it was trained."""
    return [
        (stage, _training_of(stage, learning.rates.get(stage.name)))
        for stage in stage_changes(learning.architecture, learning.initial, learning.final)
    ]


def _training_of(stage: StageChange, rate: float | None) -> str:
    if rate is None:
        return "frozen, bit-identical" if stage.identical else "frozen, but changed"
    return f"trained at {rate:.2g}" + (", but its initial weights were kept" if stage.identical else "")
