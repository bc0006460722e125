"""Plot what a run under --budget has tried: accuracy against time, with 95 % intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from penult.bundle.scores import wilson
from penult.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, png, style, svg
from penult.export.report.plot_style import new, percent

_STAGES: Mapping[str, tuple[str, str]] = {
    "ranking": (PURPLE, "o"),
    "size": (ORANGE, "s"),
    "copies": (GREEN, "^"),
    "views": (MUTED, "v"),
    "frozen": (PURPLE, "D"),
    "trial": (BLUE, "o"),
    "final training": (BLUE, "*"),
}
_LARGE = ("frozen", "final training")
_MINUTES_FROM_S = 300


def trials_svg(plan: Mapping[str, Any], budget_s: float | None) -> bytes:
    """Return the SVG of a plan; the budget is a line."""
    return _drawn(plan["tried"], budget_s, svg)


def trials_png(plan: Mapping[str, Any], budget_s: float | None) -> bytes:
    """Return the same as a PNG."""
    return _drawn(plan["tried"], budget_s, png)


def _drawn(tried: Sequence[Mapping[str, Any]], budget_s: float | None, made: Any) -> bytes:
    with style():
        figure, axes = new(3.2)
        axis = axes[0][0]
        last_s = max([each["at_s"] + each["seconds"] for each in tried] + [budget_s or 0.0])
        unit_s, unit = (60.0, "min") if last_s >= _MINUTES_FROM_S else (1.0, "s")
        for stage in dict.fromkeys(each["stage"] for each in tried):
            _points(axis, [each for each in tried if each["stage"] == stage], stage, unit_s)
        if budget_s:
            axis.axvline(budget_s / unit_s, color=INK, lw=1, ls=":")
            axis.annotate(
                "budget", (budget_s / unit_s, 0.03), xycoords=axis.get_xaxis_transform(), xytext=(-3, 0),
                textcoords="offset points", ha="right", va="bottom", rotation=90, color=INK, fontsize=8,
            )  # fmt: skip
        axis.set_xlim(left=0)
        percent(axis.yaxis)
        axis.set_xlabel(f"time, {unit}")
        axis.set_ylabel("accuracy on photos held out")
        figure.legend(loc="outside upper left", ncols=3)
        return bytes(made(figure))


def _points(axis: Axes, tried: Sequence[Mapping[str, Any]], stage: str, unit_s: float) -> None:
    """Draw the trials of a stage where each ended; the bar to the left is the time that it took."""
    colour, marker = _STAGES.get(stage, (INK, "o"))
    at = [(each["at_s"] + each["seconds"]) / unit_s for each in tried]
    middle = [each["accuracy"] for each in tried]
    bounds = [wilson(each["accuracy"], each["photos"]) for each in tried]
    down = [max(a - low, 0) for a, (low, _) in zip(middle, bounds, strict=True)]
    up = [max(high - a, 0) for a, (_, high) in zip(middle, bounds, strict=True)]
    took = [each["seconds"] / unit_s for each in tried]
    axis.errorbar(
        at, middle, yerr=[down, up], xerr=[took, [0.0] * len(took)], color=colour, marker=marker, ls="none",
        ms=7 if stage in _LARGE else 4, elinewidth=0.8, label=stage,
    )  # fmt: skip
