"""The picture of a sweep: accuracy on test photos against freezing depth, or against labelled photos per class."""

from typing import Any

import numpy as np

from penult.drawing import BLUE, GREEN, INK, PURPLE, VERMILION, png, style
from penult.export.config.train import ALL_STAGES, FREEZE_ALL
from penult.export.jobs.sweep import CONTINUE, FINE_TUNED, FROZEN, REINIT, SCRATCH, Outcome, Sweep
from penult.export.jobs.sweep_view import best_freeze, interval, mean, place
from penult.export.report.plot_style import new, percent

_LOOKS = {
    CONTINUE: (BLUE, "o"),
    REINIT: (VERMILION, "s"),
    FROZEN: (PURPLE, "D"),
    FINE_TUNED: (BLUE, "o"),
    SCRATCH: (GREEN, "^"),
}


def sweep_picture(sweep: Sweep) -> bytes:
    """Draw a line per mode, as PNG bytes: points are means over repeats, bars 95 % intervals on the test photos."""
    with style():
        figure, axes = new(3.6, width=4.6)
        axis = axes[0][0]
        for mode in sweep.modes():
            _line(axis, sweep, mode)
        percent(axis.yaxis)
        axis.set_ylabel(f"accuracy on {sweep.test_photos} test photos")
        if sweep.kind == "freeze":
            _freeze_axis(axis, sweep)
        else:
            _labels_axis(axis, sweep)
        figure.legend(loc="outside upper left", ncols=3)
        return png(figure)


def _line(axis: Any, sweep: Sweep, mode: str) -> None:
    colour, marker = _LOOKS[mode]
    points = sweep.points(mode)
    middle = [mean(found, "test_accuracy") for found in points.values()]
    low, high = np.transpose([interval(found, sweep.test_photos) for found in points.values()])
    bars = np.maximum([np.subtract(middle, low), np.subtract(high, middle)], 0)
    axis.errorbar(
        list(points), middle, yerr=bars, color=colour, marker=marker,
        ms=5, lw=1.6, elinewidth=0.8, capsize=2, label=mode,
    )  # fmt: skip


def _freeze_axis(axis: Any, sweep: Sweep) -> None:
    places = sorted({outcome.at for outcome in sweep.outcomes})
    axis.set_xticks(places, [place(sweep.kind, at) for at in places])
    axis.set_xlim(-0.4, FREEZE_ALL + 0.4)
    axis.set_xlabel("conv stages frozen, from the input")
    mode, at = best_freeze(sweep)
    axis.margins(y=0.15)
    top = max(high for _, high in (interval(found, sweep.test_photos) for found in _found_at(sweep, at)))
    axis.annotate(
        f"advised:\n{mode}, {place(sweep.kind, at)}", (at, top), xytext=(0, 4), textcoords="offset points",
        ha="right" if at > ALL_STAGES else "center", va="bottom", fontsize=8, color=INK,
    )  # fmt: skip


def _found_at(sweep: Sweep, at: int) -> list[list[Outcome]]:
    return [found for mode in sweep.modes() for place, found in sweep.points(mode).items() if place == at]


def _labels_axis(axis: Any, sweep: Sweep) -> None:
    places = sorted({outcome.at for outcome in sweep.outcomes})
    axis.set_xscale("log")
    axis.set_xticks(places, [str(at) for at in places])
    axis.minorticks_off()
    axis.set_xlabel("labelled photos per class to learn from, at most")
