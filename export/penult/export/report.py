"""What a person reads about a bundle: report/index.html, its pictures and tables beside it, and MODEL_CARD.md."""

import base64
import csv
import io
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import Any

import jinja2

from penult.bundle.scores import Floats, softmax
from penult.export.changes import StageChange, stage_changes
from penult.export.data import Splits
from penult.export.evidence import Evidence, Learning
from penult.export.illustrations import illustrate
from penult.export.pictures import SCORER_NAMES
from penult.export.settings import TrainSettings
from penult.export.verdict import RULE

# The recall of a class with fewer test photos than this is known to twenty points at best, and is marked.
_FEW_PHOTOS = 20
_OF_THIS_MACHINE = {
    "data", "out", "resume", "device", "cache_mb", "save_weights", "tensorboard", "sweep", "repeats",
    "int8", "max_loss",
}  # fmt: skip

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("penult.export"),
    autoescape=jinja2.select_autoescape(["html"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters |= {
    "percent": lambda share: "–" if share is None else f"{100 * share:.1f} %",
    "scorer": lambda name: SCORER_NAMES.get(name, name),
    "cell": lambda text: str(text).replace("|", "\\|"),
}


def report_files(evidence: Evidence) -> dict[str, bytes]:
    """Return the files of the report by their path in the bundle.

    index.html holds its pictures, so that it opens anywhere as one file; they also lie beside it, with the numbers
    behind them as CSV.
    """
    pictures, tables = illustrate(evidence)
    values = _values(evidence) | {"pictures": {name: _data_uri(data) for name, data in pictures.items()}}
    page = _TEMPLATES.get_template("report.html").render(values)
    card = _TEMPLATES.get_template("MODEL_CARD.md").render(values)
    beside = {f"report/{name}": data for name, data in (pictures | tables).items()}
    return beside | {"report/index.html": page.encode(), "MODEL_CARD.md": card.encode()}


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


def command(settings: TrainSettings, name: str) -> str:
    """Return the command line that repeats a run: no path of this machine, and only what is not the default."""
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


def _values(evidence: Evidence) -> dict[str, Any]:
    """Return what both templates know."""
    test = evidence.metrics["test"]
    counts = next(iter(test.values()))["photos_by_class"]
    settings = evidence.settings
    return {
        "name": evidence.name,
        "manifest": evidence.manifest,
        "why_silent": evidence.manifest.training.get("dense_is_silent", "the network was trained on other classes"),
        "splits": evidence.splits,
        "tested_anew": evidence.splits.sha256 == evidence.manifest.training.get("data_sha256"),
        "metrics": evidence.metrics,
        "default": test[evidence.manifest.default_scorer],
        "counts": [
            (label, [sum(photo.label == at for photo in part) for part in _parts(evidence.splits)])
            for at, label in enumerate(evidence.splits.classes)
        ],
        "few": [label for label, count in counts.items() if count < _FEW_PHOTOS],
        "few_photos": _FEW_PHOTOS,
        "training": evidence.manifest.training.get("settings", {}),
        "command": command(settings, evidence.name) if settings else None,
        "dropout": evidence.learning.dropout if evidence.learning else None,
        "rule": RULE,
        "verdict": evidence.learning.verdict if evidence.learning else None,
        "stages": _stages(evidence.learning) if evidence.learning else [],
        "shows_photos": evidence.crops is not None,
    }


def _parts(splits: Splits) -> tuple[Any, ...]:
    return splits.train, splits.val, splits.test


def _stages(learning: Learning) -> list[tuple[StageChange, str]]:
    """Return every stage with what happened to it, in words."""
    return [
        (stage, _fate(stage, learning.rates.get(stage.name)))
        for stage in stage_changes(learning.architecture, learning.given, learning.final)
    ]


def _fate(stage: StageChange, rate: float | None) -> str:
    if rate is None:
        return "frozen: identical, bit for bit" if stage.identical else "frozen, yet it changed"
    return f"learnt at {rate:.2g}" + (", but its first weights were kept" if stage.identical else "")


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
