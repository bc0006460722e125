"""Plot two versions of a model: accuracy with intervals, and the photos that only one of them gets right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from penult.drawing import BLUE, INK, ORANGE, style, svg
from penult.export.evaluation.accuracy import stated
from penult.export.evaluation.versions import Answers, Comparison
from penult.export.report.plot_scorers import reliability
from penult.export.report.plot_style import Look, new, percent


def _looks(versions: Sequence[Answers]) -> dict[str, Look]:
    colours = ((BLUE, "o"), (ORANGE, "s"))
    return {
        str(each.version): Look(colour, marker, f"version {each.version}")
        for each, (colour, marker) in zip(versions, colours, strict=True)
    }


def accuracies(found: Comparison) -> bytes:
    """Return the accuracy of both versions with 95 % intervals (SVG), and the photos that only one gets right."""
    versions = (found.before, found.after)
    with style():
        figure, axes = new(2.5, rows=2, height_ratios=(3, 2))
        _intervals(axes[0][0], versions)
        _only_one_correct(axes[1][0], versions, found.outcome)
        return svg(figure)


def calibration(found: Comparison) -> bytes | None:
    """Return the reliability diagram of both versions (SVG); None if there are too few photos for one."""
    versions = (found.before, found.after)
    if all(len(each.figures["reliability"]) < 2 for each in versions):  # one point is no diagram
        return None
    return reliability({str(each.version): each.figures for each in versions}, _looks(versions))


def _intervals(axis: Axes, versions: Sequence[Answers]) -> None:
    looks = _looks(versions)
    for place, each in enumerate(versions):
        (low, high), look = each.figures["accuracy_95"], looks[str(each.version)]
        axis.plot([low, high], [place, place], color=look.colour, lw=5, alpha=0.45, solid_capstyle="butt")
        axis.plot(each.figures["accuracy"], place, look.marker, color=look.colour, ms=6, clip_on=False)
        axis.annotate(
            stated(each.figures), (1, place), xycoords=axis.get_yaxis_transform(), xytext=(6, 0),
            textcoords="offset points", va="center", annotation_clip=False, color=INK,
        )  # fmt: skip
    lowest = min(each.figures["accuracy_95"][0] for each in versions)
    axis.set_yticks(range(2), [look.name for look in looks.values()])
    axis.set_ylim(1.6, -0.6)
    axis.set_xlim(np.floor(10 * max(0.0, lowest - 0.02)) / 10, 1)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.grid(visible=False, axis="y")
    axis.set_title("accuracy and 95 % interval")
    percent(axis.xaxis)


def _only_one_correct(axis: Axes, versions: Sequence[Answers], outcome: dict[str, Any]) -> None:
    """Draw the photos that only one version gets right, which McNemar's test uses."""
    looks, counts = _looks(versions), (outcome["only_before"], outcome["only_after"])
    widest = max(1, *counts)
    for look, count, sign in zip(looks.values(), counts, (-1, 1), strict=True):
        axis.barh(0, sign * count, color=look.colour, height=0.72)
        axis.text(
            sign * (count + 0.03 * widest), 0, str(count), va="center", ha="left" if sign > 0 else "right", color=INK
        )
    axis.axvline(0, color=INK, lw=1)
    axis.set_xlim(-1.5 * widest, 1.5 * widest)
    axis.set_yticks([])
    axis.set_xticks([])
    axis.grid(visible=False)
    axis.set_title(f"correct only: version {versions[0].version} ← → version {versions[1].version}")
