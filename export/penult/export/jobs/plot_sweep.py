"""The plot of a sweep: accuracy on test photos by frozen stages, labelled photos per class, or layer."""

from typing import Any

import numpy as np

from penult.drawing import BLUE, GREEN, INK, PURPLE, VERMILION, png, style
from penult.export.config.train import ALL_STAGES, FREEZE_ALL
from penult.export.jobs.sweep import AS_GIVEN, CONTINUE, FINE_TUNED, FROZEN, RANDOM, REINIT, SCRATCH, TRAINED, Sweep
from penult.export.jobs.sweep_view import best_freeze, interval, mean, place
from penult.export.report.plot_style import new, percent

# Points of layers before and after may be equal; the second line is drawn so far beside the first.
_ASIDE = 0.08
_LOOKS = {
    CONTINUE: (BLUE, "o"),
    REINIT: (VERMILION, "s"),
    FROZEN: (PURPLE, "D"),
    FINE_TUNED: (BLUE, "o"),
    SCRATCH: (GREEN, "^"),
    AS_GIVEN: (PURPLE, "D"),
    RANDOM: (PURPLE, "D"),
    TRAINED: (BLUE, "o"),
}


def plot_sweep(sweep: Sweep) -> bytes:
    """Return a PNG with a line per mode. Points are means over repeats, bars 95 % intervals on test photos."""
    with style():
        figure, axes = new(3.6, width=5.4 if sweep.kind == "layers" else 4.6)
        axis = axes[0][0]
        for mode in sweep.modes():
            _line(axis, sweep, mode)
        percent(axis.yaxis)
        axis.set_ylabel(f"accuracy on {sweep.test_photos} test photos")
        if sweep.kind == "freeze":
            _freeze_axis(axis, sweep)
        elif sweep.kind == "layers":
            _layers_axis(axis, sweep)
        else:
            _labels_axis(axis, sweep)
        figure.legend(loc="outside upper left", ncols=3)
        return png(figure)


def _places(sweep: Sweep) -> list[int]:
    return sorted({outcome.at for outcome in sweep.outcomes})


def _line(axis: Any, sweep: Sweep, mode: str) -> None:
    colour, marker = _LOOKS[mode]
    points = sweep.points(mode)
    middle = [mean(found, "test_accuracy") for found in points.values()]
    low, high = np.transpose([interval(found, sweep.test_photos) for found in points.values()])
    bars = np.maximum([np.subtract(middle, low), np.subtract(high, middle)], 0)
    look = {"color": colour, "marker": marker, "ms": 5, "lw": 1.6, "elinewidth": 0.8, "capsize": 2}
    layers = _places(sweep)
    aside = _ASIDE * sweep.modes().index(mode)
    places = [layers.index(at) + aside for at in points] if sweep.kind == "layers" else list(points)
    axis.errorbar(places, middle, yerr=bars, label=mode, **look)


def _freeze_axis(axis: Any, sweep: Sweep) -> None:
    places = _places(sweep)
    axis.set_xticks(places, [place(sweep.kind, at) for at in places])
    axis.set_xlim(-0.4, FREEZE_ALL + 0.4)
    axis.set_xlabel("frozen conv stages, from the input")
    mode, at = best_freeze(sweep)
    axis.margins(y=0.15)
    here = [found[at] for found in map(sweep.points, sweep.modes()) if at in found]
    top = max(interval(outcomes, sweep.test_photos)[1] for outcomes in here)
    axis.annotate(
        f"recommended:\n{mode}, {place(sweep.kind, at)}", (at, top), xytext=(0, 4), textcoords="offset points",
        ha="right" if at > ALL_STAGES else "center", va="bottom", fontsize=8, color=INK,
    )  # fmt: skip


def _layers_axis(axis: Any, sweep: Sweep) -> None:
    places = _places(sweep)
    axis.set_xticks(range(len(places)), [place(sweep.kind, at) for at in places])
    axis.set_xlabel("layer that the SVM reads, from the input")


def _labels_axis(axis: Any, sweep: Sweep) -> None:
    places = _places(sweep)
    axis.set_xscale("log")
    axis.set_xticks(places, [str(at) for at in places])
    axis.minorticks_off()
    axis.set_xlabel("training photos per class, at most")
