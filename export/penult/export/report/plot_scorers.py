"""Plot dense head and SVM: accuracy, confusion, calibration, and the search for the SVM's C."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator, NullFormatter

from penult.bundle.scores import wilson
from penult.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, WHITE, style, svg
from penult.export.evaluation.accuracy import is_few, stated
from penult.export.evaluation.confusions import Confusions
from penult.export.report.plot_style import (
    SCORER_COLOURS,
    SCORER_LOOKS,
    SCORER_MARKERS,
    SCORER_NAMES,
    WIDTH,
    Look,
    cells,
    label,
    new,
    percent,
    short,
)

_PARTS = {"test": "test", "val": "validation"}
LINEAR = "linear"
_LINES, _DASHES = (PURPLE, BLUE, VERMILION, GREEN, ORANGE, SKY), ("-", "--", ":", "-.")
# With more classes the matrix has no names, and with more than the second number no row per class.
MAX_NAMED, _MAX_ROWS = 30, 150
_MAX_COUNTED = 25
# With so few classes, square cells would be needlessly large.
_MAX_FLAT = 5
_INCHES_PER_CLASS, _MARGIN = 0.26, 1.35
_FAINTEST = 0.15


def confusion(found: Confusions, scorer: str) -> bytes:
    """Return one scorer's confusion matrix (SVG): rows are true classes, shading is the share of the row."""
    counts = found.matrix(_MAX_ROWS)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # A transparent colour, so that no share has the colour of the page, light or dark.
    shown = np.empty((*counts.shape, 4))
    shown[..., :3], shown[..., 3] = to_rgb(BLUE), np.where(counts > 0, np.maximum(shares, _FAINTEST), 0)
    has_names, side = len(found.classes) <= MAX_NAMED, confusion_inches(len(found.classes))
    with style():
        is_square = len(counts) > _MAX_FLAT
        names = 0.07 * max(cells(short(name)) for name in found.classes)
        figure, axes = new(side if is_square else min(side, 0.8 + names + 0.42 * len(counts)), width=side)
        axis: Axes = axes[0][0]
        axis.grid(visible=False)
        axis.set_title(f"{SCORER_NAMES[scorer]}, {found.right.sum()} of {len(found.labels)} correct")
        if has_names:
            axis.imshow(shown, interpolation="none", aspect="equal" if is_square else "auto")
            _name_classes(axis, found.classes)
            _count(axis, counts, shares)
        else:
            count = len(found.classes)
            axis.imshow(shown, interpolation="none", extent=(0.5, count + 0.5, count + 0.5, 0.5))
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_xlabel("answered class" if has_names else "answered class, by number")
        axis.set_ylabel("true class" if has_names else "true class, by number")
        return svg(figure)


def confusion_inches(classes: int) -> float:
    """Return the width and height of the plot of a matrix in inches."""
    return max(WIDTH, _INCHES_PER_CLASS * classes + _MARGIN) if classes <= MAX_NAMED else WIDTH


def _name_classes(axis: Axes, classes: Sequence[str]) -> None:
    names = [label(name) for name in classes]
    slanted: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(names)), names, **(slanted if max(map(len, names)) > 3 else {}))
    axis.set_yticks(range(len(names)), names)


def _count(axis: Axes, counts: Any, shares: Any) -> None:
    if len(counts) > _MAX_COUNTED:
        return
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = WHITE if shares[row, column] > 0.55 else INK
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)


def accuracies(metrics: Mapping[str, Any]) -> bytes:
    """Return each scorer's accuracy with its 95 % interval (SVG), and the photos that only one gets right."""
    rows = [(part, scorer, values) for part in _PARTS if part in metrics for scorer, values in metrics[part].items()]
    comparison = metrics.get("comparison", {})
    with style():
        panels = 2 if comparison else 1
        figure, axes = new(
            0.8 + 0.28 * len(rows) + (1.1 if comparison else 0), rows=panels, height_ratios=(3, 2)[:panels]
        )
        _intervals(axes[0][0], rows)
        if comparison:
            _only_one_correct(axes[1][0], comparison)
        return svg(figure)


def difference(choice: Mapping[str, Any]) -> bytes:
    """Return the difference that chose the default scorer, with its 95 % interval and its repeats (SVG), in points."""
    low, high = (100 * value for value in choice["interval_95"])
    colour = SCORER_COLOURS.get(choice["verdict"], MUTED)
    with style():
        figure, axes = new(1.15)
        axis: Axes = axes[0][0]
        axis.axvline(0, color=INK, lw=1)
        axis.plot([low, high], [0, 0], color=colour, lw=5, alpha=0.45, solid_capstyle="butt")
        axis.plot(100 * choice["difference"], 0, "D", color=colour, ms=6)
        repeats = [100 * value for value in choice["difference_by_repeat"]]
        if len(repeats) > 1:
            axis.plot(repeats, [-0.5] * len(repeats), "o", color=MUTED, ms=3)
        widest = max(1.0, 1.1 * max(abs(low), abs(high)))
        axis.set_xlim(-widest, widest)
        axis.set_ylim(-0.9, 0.6)
        axis.set_yticks([])
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("points of accuracy: dense head ← → SVM")
        axis.set_title("SVM minus dense head")
        return svg(figure)


def reliability(metrics: Mapping[str, Mapping[str, Any]], looks: Mapping[str, Look] = SCORER_LOOKS) -> bytes:
    """Return accuracy against confidence (SVG) in bins of equally many photos, with 95 % intervals.

    Args:
        metrics: The figures of evaluate(), by scorer.
        looks: Colour, marker and name of each; those of scorers by default.
    """
    with style():
        figure, axes = new(2.8)
        axis: Axes = axes[0][0]
        axis.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":", label="perfect calibration")
        for scorer, values in metrics.items():
            bins = values["reliability"]
            x, y = ([part[name] for part in bins] for name in ("confidence", "accuracy"))
            ranges = [wilson(part["accuracy"], part["photos"]) for part in bins]
            errors = np.array([[max(a - low, 0), max(high - a, 0)] for a, (low, high) in zip(y, ranges, strict=True)]).T
            axis.errorbar(
                x, y, yerr=errors, color=looks[scorer].colour, marker=looks[scorer].marker, ms=5, lw=1.2,
                elinewidth=0.8, capsize=2, alpha=0.9, label=f"{looks[scorer].name}: calibration error {_error(values)}",
            )  # fmt: skip
        bins = [part for values in metrics.values() for part in values["reliability"]]
        axis.set_xlim(max(0.0, min(part["confidence"] for part in bins) - 0.05), 1.01)
        axis.set_ylim(max(0.0, min(wilson(part["accuracy"], part["photos"])[0] for part in bins) - 0.05), 1.02)
        axis.set_xlabel("confidence: probability of the answered class")
        axis.set_ylabel("accuracy")
        percent(axis.xaxis)
        percent(axis.yaxis)
        figure.legend(loc="outside upper left")
        return svg(figure)


def svm_search(svm: Mapping[str, Any]) -> bytes | None:
    """Return the SVM's cross-validated accuracy against C (SVG), a line per kernel; None if nothing was searched."""
    curves = searched(svm)
    if not curves:
        return None
    with style():
        figure, axes = new(2.0 + 0.19 * len(curves))
        axis: Axes = axes[0][0]
        for number, (name, accuracy) in enumerate(curves.items()):
            axis.plot(
                list(accuracy), list(accuracy.values()), color=_LINES[number % len(_LINES)], marker="o", ms=4,
                ls=_DASHES[number % 4], label=name,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda c, _: f"{c:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        lowest = min(min(accuracy.values()) for accuracy in curves.values())
        axis.set_ylim(lowest - 0.01, min(1.002, max(max(accuracy.values()) for accuracy in curves.values()) + 0.01))
        if "c" in svm:
            axis.axvline(svm["c"], color=INK, lw=1, ls=":", label=f"chosen: {_name(svm, LINEAR)}, C = {svm['c']:g}")
        axis.set_xlabel("C")
        axis.set_ylabel("accuracy")
        percent(axis.yaxis)
        figure.legend(loc="outside upper left")
        return svg(figure)


def searched(svm: Mapping[str, Any], kernel: str = LINEAR) -> dict[str, dict[float, float]]:
    """Return the accuracy by C of every search in metrics["svm"], by kernel, at any depth.

    A search is a mapping with "accuracy_by_c", and perhaps "kernel" and "gamma". Searches are in mappings or lists.
    """
    found: dict[str, dict[float, float]] = {}
    for key, value in svm.items():
        if key == "accuracy_by_c":
            found[_name(svm, kernel)] = dict(sorted((float(c), float(accuracy)) for c, accuracy in value.items()))
        elif isinstance(value, Mapping | list):
            entries = value.items() if isinstance(value, Mapping) else [(kernel, entry) for entry in value]
            for name, entry in entries:
                found |= searched(entry, str(name)) if isinstance(entry, Mapping) else {}
    return found


def _name(search: Mapping[str, Any], kernel: str) -> str:
    gamma = search.get("gamma")
    gamma = f"{gamma:g}" if isinstance(gamma, float) else gamma
    return f"{search.get('kernel', kernel)}" + ("" if gamma is None else f", gamma {gamma}")


def _error(values: Mapping[str, Any]) -> str:
    """Return the calibration error as text, in whole points if there are few photos."""
    return f"{values['ece']:.{0 if is_few(values) else 1}%}"


def _intervals(axis: Axes, rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
    lowest = min(values["accuracy_95"][0] for _, _, values in rows)
    for place, (_, scorer, values) in enumerate(rows):
        low, high = values["accuracy_95"]
        axis.plot([low, high], [place, place], color=SCORER_COLOURS[scorer], lw=5, alpha=0.45, solid_capstyle="butt")
        axis.plot(values["accuracy"], place, SCORER_MARKERS[scorer], color=SCORER_COLOURS[scorer], ms=6, clip_on=False)
        axis.annotate(
            stated(values), (1, place), xycoords=axis.get_yaxis_transform(), xytext=(6, 0),
            textcoords="offset points", va="center", annotation_clip=False, color=INK,
        )  # fmt: skip
    axis.set_yticks(range(len(rows)), [f"{SCORER_NAMES[scorer]}, {_PARTS[part]}" for part, scorer, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(np.floor(10 * max(0.0, lowest - 0.02)) / 10, 1)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.grid(visible=False, axis="y")
    axis.set_title("accuracy and 95 % interval")
    percent(axis.xaxis)


def _only_one_correct(axis: Axes, comparison: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the photos that only one scorer gets right, which McNemar's test uses."""
    widest = max(1, *(found[name] for found in comparison.values() for name in ("only_dense", "only_svm")))
    for place, found in enumerate(comparison.values()):
        for scorer, sign in (("dense", -1), ("svm", 1)):
            count = found[f"only_{scorer}"]
            axis.barh(place, sign * count, color=SCORER_COLOURS[scorer], height=0.72)
            axis.text(
                sign * (count + 0.03 * widest), place, str(count), va="center", ha="left" if sign > 0 else "right",
                color=INK,
            )  # fmt: skip
    rows = [f"{_PARTS.get(part, part)}, p = {found['p_value']:.2g}" for part, found in comparison.items()]
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.axvline(0, color=INK, lw=1)
    axis.set_xlim(-1.5 * widest, 1.5 * widest)
    axis.set_xticks([])
    axis.grid(visible=False)
    axis.set_title("correct only: dense head ← → SVM")
