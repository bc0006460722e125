"""Which pictures and tables a report has, given what there is to show."""

import csv
import io
from typing import Any

import numpy as np

from penult.bundle.scores import softmax
from penult.export import pictures_learning, pictures_network, pictures_photos, pictures_scorers
from penult.export.changes import changes_csv, first_filters, layer_changes
from penult.export.descriptor_map import descriptor_map, map_csv
from penult.export.evidence import Evidence, Learning
from penult.export.pictures import short

Files = dict[str, bytes]

_MOST_ERRORS = 12


def illustrate(evidence: Evidence) -> tuple[Files, Files]:
    """Return pictures (PNG) and the tables behind them (CSV), by file name."""
    pictures, tables = _scorers(evidence)
    found = [(pictures, tables), _map(evidence), (_errors(evidence), {})]
    if evidence.learning:
        found.append(_learning(evidence.learning))
    return {k: v for drawn, _ in found for k, v in drawn.items()}, {k: v for _, rows in found for k, v in rows.items()}


def _learning(learning: Learning) -> tuple[Files, Files]:
    history, key = learning.history, first_filters(learning.given)
    before, after = (state[key].detach().cpu().float().numpy() for state in (learning.given, learning.final))
    names = list(learning.verdict.zones)
    changes = layer_changes(learning.architecture, learning.given, learning.final)
    pictures = {
        # The last phase decides; the one before it is drawn under its own name.
        ("learning_curves.png" if name == names[-1] else f"learning_curves_{name}.png"):
            pictures_learning.learning_curves(history.phase(name), learning.verdict)
        for name in names
    }  # fmt: skip
    pictures["filters.png"] = pictures_network.first_filters(
        before, after, key.removeprefix("body.").removesuffix(".weight")
    )
    pictures["changes.png"] = pictures_network.relative_changes(changes)
    return pictures, {"changes.csv": changes_csv(changes)}


def _scorers(evidence: Evidence) -> tuple[Files, Files]:
    metrics, test = evidence.metrics, evidence.metrics["test"]
    pictures = {
        f"confusion_{s}.png": pictures_scorers.confusion(evidence.splits.classes, m, s) for s, m in test.items()
    }
    pictures |= {
        "scorers.png": pictures_scorers.accuracies(metrics),
        "reliability.png": pictures_scorers.reliability(test),
    }
    bins = [[s, *part.values()] for s, m in test.items() for part in m["reliability"]]
    tables = {"reliability.csv": _csv(["scorer", "confidence", "accuracy", "photos"], bins)}
    svm = metrics.get("svm", {})
    if drawn := pictures_scorers.svm_search(svm):
        pictures["svm_c.png"] = drawn
        rows = [[name, c, a] for name, curve in pictures_scorers.searched(svm).items() for c, a in curve.items()]
        tables["svm_c.csv"] = _csv(["kernel", "c", "accuracy"], rows)
    return pictures, tables


def _map(evidence: Evidence) -> tuple[Files, Files]:
    points = descriptor_map(evidence.descriptors, evidence.settings.seed if evidence.settings else 0)
    if points is None:
        return {}, {}
    right = evidence.scores[evidence.manifest.default_scorer].argmax(axis=1) == evidence.labels
    classes, rows = evidence.splits.classes, points.rows
    picture = pictures_photos.descriptor_map(points, evidence.labels[rows], right[rows], classes)
    return {"descriptors.png": picture}, {"descriptors.csv": map_csv(points, evidence.labels, classes)}


def _errors(evidence: Evidence) -> Files:
    """Draw the photos that the default scorer was most sure of and wrong about, where photos may be shown."""
    scorer, labels, classes = evidence.manifest.default_scorer, evidence.labels, evidence.splits.classes
    probabilities = softmax(evidence.scores[scorer], evidence.manifest.temperatures[scorer])
    answered, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(answered != labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:_MOST_ERRORS]
    if evidence.crops is None or not len(worst):
        return {}
    captions = [
        f"true: {short(classes[labels[row]])}\nanswered: {short(classes[answered[row]])}, {sure[row]:.0%}"
        for row in worst
    ]
    crops = evidence.crops([evidence.splits.test[row] for row in worst])
    return {"errors.png": pictures_photos.worst_errors(crops, captions)}


def _csv(header: list[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()
