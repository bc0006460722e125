"""Plot novelty with one class: distances of held-out, test and other photos, and the ROC of both measures."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from penult.bundle.manifest import NEAREST, SVM
from penult.bundle.scores import Floats
from penult.drawing import BLUE, GREEN, INK, MUTED, PURPLE, VERMILION, style, svg
from penult.export.evaluation.one_class import roc
from penult.export.report.plot_style import new, percent

NAMES = {NEAREST: "nearest photos", SVM: "one-class SVM"}
_COLOURS, _DASHES = {NEAREST: BLUE, SVM: PURPLE}, {NEAREST: "-", SVM: "--"}
# Multiples of the threshold; larger ones are drawn at the edge.
_LARGEST, _BINS = 3.0, 30


def distances(held_out: Floats, test: Floats, outliers: Floats, threshold: float) -> bytes:
    """Draw the shares of held-out, test and other photos by novelty, in units of the threshold."""
    groups = {"held-out photos": (held_out, MUTED), "test photos": (test, GREEN), "outliers": (outliers, VERMILION)}
    groups = {name: found for name, found in groups.items() if len(found[0])}
    highest = max(float(values.max()) / threshold for values, _ in groups.values())
    edges = np.linspace(0, min(_LARGEST, max(1.2, 1.05 * highest)), _BINS + 1)
    with style():
        figure, axes = new(2.0 + 0.19 * len(groups))
        axis: Axes = axes[0][0]
        for name, (values, colour) in groups.items():
            ratios = np.minimum(values / threshold, edges[-1])
            shares = np.histogram(ratios, edges)[0] / len(values)
            axis.stairs(shares, edges, color=colour, lw=1.6, fill=False, label=f"{name} ({len(values):,})")
        axis.axvline(1, color=INK, lw=1, ls=":", label="threshold")
        axis.set_xlim(edges[0], edges[-1])
        axis.set_xlabel("novelty ÷ threshold")
        axis.set_ylabel("share of photos")
        percent(axis.yaxis)
        figure.legend(loc="outside upper left")
        return svg(figure)


def roc_curves(by_measure: Mapping[str, tuple[Floats, Floats]], thresholds: Mapping[str, float]) -> bytes:
    """Draw the share of outliers found against the share of false alarms; dots mark the thresholds.

    `by_measure` has the novelty of test photos and of outliers.
    """
    with style():
        figure, axes = new(3.1)
        axis: Axes = axes[0][0]
        for name, (own, others) in by_measure.items():
            colour = _COLOURS[name]
            axis.plot(*roc(own, others), color=colour, ls=_DASHES[name], lw=1.6, label=NAMES[name])
            place = (own > thresholds[name]).mean(), (others > thresholds[name]).mean()
            axis.plot(*place, color=colour, marker="o", ms=6, ls="none")
        axis.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":", label="chance")
        axis.set_xlabel("false alarms")
        axis.set_ylabel("outliers found")
        axis.set_aspect("equal")
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        percent(axis.xaxis)
        percent(axis.yaxis)
        figure.legend(loc="outside upper left", ncols=2)
        return svg(figure)
