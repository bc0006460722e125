"""Dense head and SVM beside each other: accuracy, confusion, calibration, and the search for the SVM's C."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from penult.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILION, png, style
from penult.export.evaluate import wilson
from penult.export.pictures import SCORER_COLOURS, SCORER_MARKERS, SCORER_NAMES, WIDTH, new, percent, short

_PARTS = {"test": "test photos", "val": "validation photos"}
LINEAR = "linear"
_LINES, _DASHES = (PURPLE, BLUE, VERMILION, GREEN, ORANGE, SKY), ("-", "--", ":", "-.")
_MOST_COUNTED = 25
_INCHES_PER_CLASS, _MARGIN, _LARGEST = 0.3, 1.8, 26.0


def confusion(classes: Sequence[str], values: Mapping[str, Any], scorer: str) -> bytes:
    """Draw one scorer's confusion on the test photos: rows are true classes, shading is the share of the row."""
    counts, names = np.array(values["confusion"]), [short(name) for name in classes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(3.6, _INCHES_PER_CLASS * len(classes) + _MARGIN), _LARGEST)
    # Where a thousand classes have less room each, their names shrink with it.
    size = min(9.0, 30 * (side - _MARGIN) / len(classes))
    with style():
        figure, axes = new(side, width=max(WIDTH * 0.9, side))
        axis: Axes = axes[0][0]
        axis.grid(visible=False)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        slanted: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(len(names)), names, fontsize=size, **(slanted if max(map(len, names)) > 3 else {}))
        axis.set_yticks(range(len(names)), names, fontsize=size)
        axis.set_xlabel("answered class")
        axis.set_ylabel("true class")
        axis.set_title(f"{SCORER_NAMES[scorer]}: {values['accuracy']:.1%} right")
        if len(classes) <= _MOST_COUNTED:
            for row, column in zip(*counts.nonzero(), strict=True):
                colour = "white" if shares[row, column] > 0.55 else INK
                axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
        return png(figure)


def accuracies(metrics: Mapping[str, Any]) -> bytes:
    """Draw each scorer's accuracy with its 95 % interval, on test and validation photos; then who is right alone."""
    parts = [part for part in _PARTS if part in metrics]
    comparison = metrics.get("comparison", {})
    with style():
        panels = 2 if comparison else 1
        figure, axes = new(3.6 if comparison else 2.0, rows=panels, height_ratios=(3, 2)[:panels])
        _bars(axes[0][0], [(part, scorer, values) for part in parts for scorer, values in metrics[part].items()])
        if comparison:
            _right_alone(axes[1][0], comparison)
        return png(figure)


def reliability(metrics: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw accuracy against confidence in bins of equally many photos, by scorer, with 95 % intervals."""
    with style():
        figure, axes = new(4.2)
        axis: Axes = axes[0][0]
        axis.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":", label="as right as sure")
        for scorer, values in metrics.items():
            bins = values["reliability"]
            x, y = ([part[name] for part in bins] for name in ("confidence", "accuracy"))
            ranges = [wilson(part["accuracy"], part["photos"]) for part in bins]
            errors = np.array([[max(a - low, 0), max(high - a, 0)] for a, (low, high) in zip(y, ranges, strict=True)]).T
            axis.errorbar(
                x, y, yerr=errors, color=SCORER_COLOURS[scorer], marker=SCORER_MARKERS[scorer], ms=5, lw=1.2,
                elinewidth=0.8, capsize=2, alpha=0.9,
                label=f"{SCORER_NAMES[scorer]}: off by {values['ece']:.1%} on average (ECE, {len(bins)} bins)",
            )  # fmt: skip
        bins = [part for values in metrics.values() for part in values["reliability"]]
        axis.set_xlim(max(0.0, min(part["confidence"] for part in bins) - 0.05), 1.01)
        axis.set_ylim(max(0.0, min(wilson(part["accuracy"], part["photos"])[0] for part in bins) - 0.05), 1.02)
        axis.set_xlabel("confidence: probability of the answered class")
        axis.set_ylabel("share of right answers")
        percent(axis.xaxis)
        percent(axis.yaxis)
        figure.legend(loc="outside upper left")
        return png(figure)


def svm_search(svm: Mapping[str, Any]) -> bytes | None:
    """Draw the SVM's cross-validated accuracy against C, a line per kernel tried; None where nothing was searched."""
    curves = searched(svm)
    if not curves:
        return None
    with style():
        figure, axes = new(3.4)
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
        axis.set_xlabel("C (larger: fewer training photos may lie on the wrong side)")
        axis.set_ylabel("accuracy, cross-validated")
        percent(axis.yaxis)
        figure.legend(loc="outside upper left", ncols=2)
        return png(figure)


def searched(svm: Mapping[str, Any], kernel: str = LINEAR) -> dict[str, dict[float, float]]:
    """Return the accuracy by C of every search that metrics["svm"] tells of, by kernel, wherever it stands in there.

    A search is a mapping with "accuracy_by_c", and maybe "kernel" and "gamma"; searches may lie in mappings or lists.
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


def _bars(axis: Axes, rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
    for place, (_, scorer, values) in enumerate(rows):
        accuracy, (low, high) = values["accuracy"], values["accuracy_95"]
        axis.barh(place, accuracy, color=SCORER_COLOURS[scorer], height=0.72)
        axis.errorbar(
            accuracy, place, xerr=[[max(accuracy - low, 0)], [max(high - accuracy, 0)]], color=INK, lw=1.2, capsize=3
        )
        axis.text(0.015, place, f"{accuracy:.1%}", va="center", color="white", fontweight="bold")
    axis.set_yticks(range(len(rows)), [f"{_PARTS[part]}, {SCORER_NAMES[scorer]}" for part, scorer, _ in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.grid(visible=False, axis="y")
    axis.set_title("right answers, with 95 % interval")
    percent(axis.xaxis)


def _right_alone(axis: Axes, comparison: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the photos that one scorer alone names right: what McNemar's test looks at."""
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
    axis.set_xlim(-1.25 * widest, 1.25 * widest)
    axis.set_xticks([])
    axis.grid(visible=False)
    axis.set_xlabel("← only the dense head is right · only the SVM →", fontsize=8)
