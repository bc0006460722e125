"""Which pictures and tables a report has, given what there is to show."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from penult.export.evaluation.confusions import Confusions
from penult.export.networks.weight_changes import changes_csv, first_filters, layer_changes
from penult.export.report import plot_learning, plot_network, plot_photos, plot_scorers
from penult.export.report.descriptor_map import descriptor_map, map_csv
from penult.export.report.report_data import ReportData, TrainingSummary

Files = dict[str, bytes]


def illustrate(report_data: ReportData, confusions: Mapping[str, Confusions]) -> tuple[Files, Files]:
    """Return pictures (SVG) and the tables behind them (CSV), by file name; `confusions` are of the test photos."""
    found = [_scorers(report_data, confusions), _map(report_data)]
    if report_data.learning:
        found.append(_learning(report_data.learning))
    return {k: v for drawn, _ in found for k, v in drawn.items()}, {k: v for _, rows in found for k, v in rows.items()}


def _learning(learning: TrainingSummary) -> tuple[Files, Files]:
    history, key = learning.history, first_filters(learning.given)
    before, after = (state[key].detach().cpu().float().numpy() for state in (learning.given, learning.final))
    names = list(learning.verdict.zones)
    changes = layer_changes(learning.architecture, learning.given, learning.final)
    pictures = {
        # The last phase decides; the one before it is drawn under its own name.
        ("learning_curves.svg" if name == names[-1] else f"learning_curves_{name}.svg"):
            plot_learning.learning_curves(history.phase(name), learning.verdict)
        for name in names
    }  # fmt: skip
    pictures["filters.svg"] = plot_network.first_filters(
        before, after, key.removeprefix("body.").removesuffix(".weight")
    )
    # Where everything is frozen there are no bars to draw: the table says that it is.
    if any(change.change for change in changes):
        pictures["changes.svg"] = plot_network.relative_changes(changes)
    return pictures, {"changes.csv": changes_csv(changes)}


def _scorers(report_data: ReportData, confusions: Mapping[str, Confusions]) -> tuple[Files, Files]:
    metrics, test = report_data.metrics, report_data.metrics["test"]
    pictures = {f"confusion_{name}.svg": plot_scorers.confusion(found, name) for name, found in confusions.items()}
    pictures["scorers.svg"] = plot_scorers.accuracies(metrics)
    if any(len(figures["reliability"]) > 1 for figures in test.values()):  # one point is no diagram
        pictures["reliability.svg"] = plot_scorers.reliability(test)
    bins = [[s, *part.values()] for s, m in test.items() for part in m["reliability"]]
    tables = {"reliability.csv": _csv(["scorer", "confidence", "accuracy", "photos"], bins)}
    svm = metrics.get("svm", {})
    if drawn := plot_scorers.svm_search(svm):
        pictures["svm_c.svg"] = drawn
        rows = [[name, c, a] for name, curve in plot_scorers.searched(svm).items() for c, a in curve.items()]
        tables["svm_c.csv"] = _csv(["kernel", "c", "accuracy"], rows)
    return pictures, tables


def _map(report_data: ReportData) -> tuple[Files, Files]:
    points = descriptor_map(report_data.descriptors, report_data.settings.seed if report_data.settings else 0)
    if points is None:
        return {}, {}
    right = report_data.scores[report_data.manifest.default_scorer].argmax(axis=1) == report_data.labels
    classes, rows = report_data.splits.classes, points.rows
    picture = plot_photos.descriptor_map(points, report_data.labels[rows], right[rows], classes)
    return {"descriptors.svg": picture}, {"descriptors.csv": map_csv(points, report_data.labels, classes)}


def _csv(header: list[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()
