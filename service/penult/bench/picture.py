"""The pictures of `penult bench`, as PNG bytes.

What differs in hue differs in line or marker as well, so that the pictures work in grey.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from penult.bench.measure import OK, Report, Row
from penult.bench.settings import LoadSettings
from penult.bench.show import load_words
from penult.bench.trials import Trial, gain, words
from penult.drawing import BLUE, INK, MUTED, VERMILION, png, style
from penult.drawing import figure as new_figure

_WIDTH = 6.4
_BINS = 40
_SHORTEST_BIN_S = 0.25
_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999)


def bench(report: Report) -> bytes:
    """Draw a report: latency by percentile, and answers per second and latency over time."""
    with style():
        figure = new_figure(_WIDTH, 7.6)
        figure.get_layout_engine().set(h_pad=0.09)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(3, 1, height_ratios=(4, 2, 3))
        model = report.model
        figure.suptitle(
            f"{model.name} {model.version} ({model.architecture}, {model.provider.removesuffix('ExecutionProvider')}): "
            f"{report.images_per_s:.0f} images/s\n{load_words(report.settings)}",
            x=0.01,
            ha="left",
            fontsize=10,
            color=INK,
        )
        good = [row for row in report.rows if row.code == OK]
        bad = [row for row in report.rows if row.code != OK]
        _percentiles(axes[0], good)
        _throughput(axes[1], report)
        _over_time(axes[2], good, bad)
        axes[1].sharex(axes[2])
        axes[1].tick_params(labelbottom=False)
        axes[2].set_xlim(0, report.window_s)
        return png(figure)


def _percentiles(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw latency against the share of requests that were answered by then; with the slow tail stretched."""
    axis.set_title("Latency: so many requests were answered within so long", color=INK)
    axis.set_ylabel("latency (ms)")
    if not rows:
        axis.text(0.5, 0.5, "no request was answered", transform=axis.transAxes, ha="center", color=INK)
        return
    times = np.sort([_ms(row) for row in rows])
    # Each step up of the curve is one request; the last one is drawn where one more would stand.
    slower = 1 - np.arange(len(times)) / len(times)
    axis.step(slower, times, where="post", color=BLUE, lw=1.8)
    axis.set_xscale("log")
    axis.set_xlim(1.0, min(0.05, 0.9 / len(times)))
    ticks = [1 - q for q in _QUANTILES if 1 - q >= 0.9 / len(times)]
    axis.set_xticks([1.0, *ticks], ["0", *(f"{100 * (1 - tick):.6g} %" for tick in ticks)])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("requests answered by then (each further nine takes as much room)")
    _log_ms(axis, times)
    # The curve only rises: right below it and left above it there is room.
    _mark(axis, times, 0.5, (7, -5), "left", "top")
    if len(times) >= 100:
        _mark(axis, times, 0.99, (-6, 7), "right", "bottom")


def _mark(
    axis: Axes, times: NDArray[np.float64], quantile: float, offset: tuple[float, float], ha: str, va: str
) -> None:
    value = float(np.quantile(times, quantile, method="inverted_cdf"))
    axis.plot(1 - quantile, value, "o", ms=6, mfc="white", mec=INK, zorder=5)
    axis.annotate(
        f"p{100 * quantile:g}: {_plain(value)} ms", (1 - quantile, value), xytext=offset, textcoords="offset points",
        ha=ha, va=va, color=INK, bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none"},
    )  # fmt: skip


def _log_ms(axis: Axes, times: NDArray[np.float64]) -> None:
    """Make a log axis of milliseconds with plain numbers, and at least a decade."""
    low, high = float(times.min()), float(times.max())
    middle = (low * high) ** 0.5
    low, high = min(low / 1.15, middle / 10**0.5), max(high * 1.6, middle * 10**0.5)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 3, 5, 7) if high < 25 * low else (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    axis.set_yticks(ticks)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _throughput(axis: Axes, report: Report) -> None:
    """Draw images answered per second, in steps."""
    bins = max(1, min(_BINS, int(report.window_s / _SHORTEST_BIN_S)))
    edges = np.linspace(0, report.window_s, bins + 1)
    over = [row.over_s for row in report.rows if row.code == OK]
    images = [row.images for row in report.rows if row.code == OK]
    rate = np.histogram(over, edges, weights=images)[0] / np.diff(edges)
    axis.stairs(rate, edges, color=BLUE, lw=1.4, baseline=None)
    axis.set_title(f"Throughput, in steps of {edges[1]:.2g} s", color=INK)
    axis.set_ylabel("images/s")
    axis.set_ylim(0, 1.25 * max(rate.max(), report.images_per_s, 1e-9))
    axis.axhline(report.images_per_s, color=MUTED, ls="--", lw=1)
    axis.annotate(
        f"mean {_plain(report.images_per_s)}", (0.995, report.images_per_s), xycoords=("axes fraction", "data"),
        xytext=(0, -3), textcoords="offset points", ha="right", va="top", fontsize=8, color=INK,
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
    )  # fmt: skip


def _over_time(axis: Axes, good: Sequence[Row], bad: Sequence[Row]) -> None:
    """Draw a point per request at the time it was due, so that pauses show as slopes."""
    axis.set_title("Latency of each request", color=INK)
    axis.set_xlabel("due at (seconds of the measured time)")
    axis.set_ylabel("latency (ms)")
    size = 3 if len(good) > 2000 else 6
    if good:
        axis.scatter(
            [r.due_s for r in good], [_ms(r) for r in good], s=size, c=BLUE, lw=0, alpha=0.55, label="answered"
        )
    if bad:
        axis.scatter(
            [r.due_s for r in bad], [_ms(r) for r in bad], s=14, c=VERMILION, marker="x", lw=0.9, label="failed"
        )
    if good or bad:
        _log_ms(axis, np.array([max(_ms(r), 1e-3) for r in (*good, *bad)]))
    if bad:
        axis.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)


def _plain(value: float) -> str:
    """Write three digits, and never a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ms(row: Row) -> float:
    return 1000 * (row.over_s - row.due_s)


# -- many settings -----------------------------------------------------------------------------------------------------


def tune(settings: LoadSettings, trials: Sequence[Trial], best: Trial) -> bytes:
    """Draw every setting by throughput and p99, numbered as in the table, the chosen one marked."""
    with style():
        figure = new_figure(_WIDTH, 4.2 + 0.17 * len(trials))
        axis, below = figure.subplots(2, 1, height_ratios=(4.2, 0.17 * len(trials)))
        chosen = f"circled: chosen, {gain(trials[0], best)}" if best.values else "circled: the settings as they are"
        figure.suptitle(
            f"Settings of penult serve: up and to the left is better\n{load_words(settings)}\n{chosen}",
            x=0.01,
            ha="left",
            fontsize=10,
            color=INK,
        )
        x, y = [t.p99_ms for t in trials], [t.images_per_s for t in trials]
        axis.scatter(x, y, s=22, c=BLUE, zorder=3)
        axis.scatter(x[:1], y[:1], s=80, facecolors="none", edgecolors=MUTED, marker="s", zorder=4)
        axis.scatter(best.p99_ms, best.images_per_s, s=150, facecolors="none", edgecolors=VERMILION, lw=1.8, zorder=5)
        _number(axis, x, y)
        axis.set_xlabel("p99 latency (ms)")
        axis.set_ylabel("throughput (images/s)")
        axis.margins(0.08)
        _list(below, trials, best)
        return png(figure)


def _number(axis: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Write each point's number at that of four sides where the other points are farthest."""
    wide, high = max(x) - min(x) or 1.0, max(y) - min(y) or 1.0
    places = np.column_stack([np.array(x) / wide, np.array(y) / high])
    taken = list(places)
    for number, (place, at) in enumerate(zip(places, zip(x, y, strict=True), strict=True), start=1):
        sides = [(0.025, 0.0), (-0.025, 0.0), (0.0, 0.045), (0.0, -0.045)]
        others = [other for other in taken if not np.array_equal(other, place)]

        def room(side: tuple[float, float], place: Any = place, others: Any = others) -> float:
            return min((float(np.hypot(*(place + side - other))) for other in others), default=1.0)

        side = max(sides, key=room)
        taken.append(place + side)
        offset = (np.sign(side[0]) * 9, np.sign(side[1]) * 10)
        axis.annotate(str(number), at, xytext=offset, textcoords="offset points", ha="center", va="center", fontsize=8)


def _list(axis: Axes, trials: Sequence[Trial], best: Trial) -> None:
    """List below the picture which settings each number means."""
    axis.axis("off")
    for number, trial in enumerate(trials, start=1):
        look: dict[str, Any] = {
            "y": 1 - (number - 0.5) / len(trials), "va": "center", "fontsize": 8, "color": INK,
            "fontweight": "bold" if trial is best else "normal", "transform": axis.transAxes, "in_layout": False,
        }  # fmt: skip
        axis.text(0.02, s=str(number), ha="right", **look)
        axis.text(0.035, s=words(trial.values), **look)
