"""Draw the plots and write the tables of a report, as far as there are data for them."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from penult.export.config.budget import seconds_of
from penult.export.evaluation.confusions import Confusions
from penult.export.networks.weight_changes import changes_csv, first_filters, layer_changes
from penult.export.report import plot_abstaining, plot_learning, plot_network, plot_photos, plot_scorers
from penult.export.report.descriptor_map import descriptor_map, map_csv
from penult.export.report.plot_budget import trials_svg
from penult.export.report.report_data import ReportData, TrainingSummary

Files = dict[str, bytes]


def draw_figures(report_data: ReportData, confusions: Mapping[str, Confusions]) -> tuple[Files, Files]:
    """Return plots (SVG) and their tables (CSV) by file name; `confusions` are of the test photos."""
    found = [_scorers(report_data, confusions), _map(report_data)]
    if report_data.learning:
        found.append(_learning(report_data.learning))
        if plan := report_data.manifest.training.get("budget"):
            found.append(({"budget.svg": trials_svg(plan, seconds_of(plan["budget"]))}, {}))
    return {k: v for drawn, _ in found for k, v in drawn.items()}, {k: v for _, rows in found for k, v in rows.items()}


def _learning(learning: TrainingSummary) -> tuple[Files, Files]:
    history, key = learning.history, first_filters(learning.initial)
    before, after = (state[key].detach().cpu().float().numpy() for state in (learning.initial, learning.final))
    names = list(learning.diagnosis.zones)
    changes = layer_changes(learning.architecture, learning.initial, learning.final)
    plots = {
        # The last phase has the plain name, earlier ones their own.
        ("learning_curves.svg" if name == names[-1] else f"learning_curves_{name}.svg"):
            plot_learning.learning_curves(history.phase(name), learning.diagnosis)
        for name in names
    }  # fmt: skip
    plots["filters.svg"] = plot_network.first_filters(before, after, key.removeprefix("body.").removesuffix(".weight"))
    # If everything is frozen there are no bars; the table shows it.
    if any(change.change for change in changes):
        plots["changes.svg"] = plot_network.relative_changes(changes)
    return plots, {"changes.csv": changes_csv(changes)}


def _scorers(report_data: ReportData, confusions: Mapping[str, Confusions]) -> tuple[Files, Files]:
    metrics, test = report_data.metrics, report_data.metrics["test"]
    plots = {f"confusion_{name}.svg": plot_scorers.confusion(found, name) for name, found in confusions.items()}
    plots["scorers.svg"] = plot_scorers.accuracies(metrics)
    if "choice" in metrics:
        plots["choice.svg"] = plot_scorers.difference(metrics["choice"])
    if any(len(figures["reliability"]) > 1 for figures in test.values()):  # one point is not a diagram
        plots["reliability.svg"] = plot_scorers.reliability(test)
    if "abstaining" in metrics and (drawn := plot_abstaining.risk_coverage(metrics["abstaining"])):
        plots["abstaining.svg"] = drawn
    bins = [[s, *part.values()] for s, m in test.items() for part in m["reliability"]]
    tables = {"reliability.csv": _csv(["scorer", "confidence", "accuracy", "photos"], bins)}
    if "abstaining" in metrics:
        curves = [[name, *row] for name, curve in metrics["abstaining"]["curve"].items() for row in curve]
        tables["abstaining.csv"] = _csv(["scorer", "coverage", "error", "threshold"], curves)
    svm = metrics.get("svm", {})
    if drawn := plot_scorers.svm_search(svm):
        plots["svm_c.svg"] = drawn
        rows = [[name, c, a] for name, curve in plot_scorers.searched(svm).items() for c, a in curve.items()]
        tables["svm_c.csv"] = _csv(["kernel", "c", "accuracy"], rows)
    return plots, tables


def _map(report_data: ReportData) -> tuple[Files, Files]:
    points = descriptor_map(report_data.descriptors, report_data.settings.seed if report_data.settings else 0)
    if points is None:
        return {}, {}
    right = report_data.scores[report_data.manifest.default_scorer].argmax(axis=1) == report_data.labels
    classes, rows = report_data.splits.classes, points.rows
    plot = plot_photos.descriptor_map(points, report_data.labels[rows], right[rows], classes)
    return {"descriptors.svg": plot}, {"descriptors.csv": map_csv(points, report_data.labels, classes)}


def _csv(header: list[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()
