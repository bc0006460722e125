"""The pictures of `penult bench`, as PNG bytes. The only module here that knows matplotlib.

Hues are Okabe and Ito's (2008), which colour-blind people tell apart; what is told apart by hue differs in line or
marker as well, so that the pictures work in grey.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from penult.bench.measure import OK, Report, Row
from penult.bench.show import load_words

_BLUE, _VERMILION = "#0072b2", "#d55e00"
_INK, _MUTED, _FAINT = "#2f2f2f", "#767676", "#e6e6e6"
_DPI = 160
_BINS = 40
_SHORTEST_BIN_S = 0.1
_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999)
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _FAINT,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a model may be called $5
}


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    with matplotlib.rc_context(_STYLE):
        # Not pyplot's: that one remembers every figure until told not to.
        yield Figure(figsize=(6.4, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


# -- one load ----------------------------------------------------------------------------------------------------------


def bench(report: Report) -> bytes:
    """Draw a report: latency by percentile; answers per second and latency over the time of the run."""
    with _figure(7.6) as figure:
        axes = figure.subplots(3, 1, height_ratios=(4, 2, 3))
        model = report.model
        figure.suptitle(
            f"{model.name} {model.version} ({model.architecture}, {model.provider.removesuffix('ExecutionProvider')}): "
            f"{report.images_per_s:.0f} images/s\n{load_words(report.settings)}, "
            f"{report.settings.images_per_request} image(s) a request",
            x=0.01, ha="left", fontsize=10, color=_INK,
        )  # fmt: skip
        good = [row for row in report.rows if row.code == OK]
        bad = [row for row in report.rows if row.code != OK]
        _percentiles(axes[0], good)
        _throughput(axes[1], report)
        _over_time(axes[2], good, bad)
        axes[1].sharex(axes[2])
        axes[1].tick_params(labelbottom=False)
        axes[2].set_xlim(0, report.window_s)
        return _png(figure)


def _percentiles(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw latency against the share of requests that were answered by then; the slow tail is stretched."""
    axis.set_title("Latency: so many requests were answered within so long", color=_INK)
    axis.set_ylabel("latency (ms)")
    if not rows:
        axis.text(0.5, 0.5, "no request was answered", transform=axis.transAxes, ha="center", color=_INK)
        return
    times = np.sort([_ms(row) for row in rows])
    # Each step up of the curve is one request; the last one is drawn where one more would stand.
    slower = 1 - np.arange(len(times)) / len(times)
    axis.step(slower, times, where="post", color=_BLUE, lw=1.8)
    axis.set_xscale("log")
    axis.set_xlim(1.0, min(0.05, 0.9 / len(times)))
    ticks = [1 - q for q in _QUANTILES if 1 - q >= 0.9 / len(times)]
    axis.set_xticks([1.0, *ticks], ["0", *(f"{100 * (1 - tick):.6g} %" for tick in ticks)])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("requests answered by then (each further nine takes as much room)")
    _log_ms(axis, times)
    for quantile in (0.5, 0.99):
        if quantile == 0.5 or len(times) >= 100:
            _mark(axis, times, quantile)


def _mark(axis: Axes, times: NDArray[np.float64], quantile: float) -> None:
    value = float(np.quantile(times, quantile, method="inverted_cdf"))
    axis.plot(1 - quantile, value, "o", ms=6, mfc="white", mec=_INK, zorder=5)
    axis.annotate(
        f"p{100 * quantile:g}: {value:.3g} ms", (1 - quantile, value), xytext=(-6, 8), textcoords="offset points",
        ha="right", va="bottom", color=_INK, bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none"},
    )  # fmt: skip


def _log_ms(axis: Axes, times: NDArray[np.float64]) -> None:
    """A log axis of milliseconds with plain numbers at 1, 2, 5, and a decade of room at the least."""
    low, high = float(times.min()), float(times.max())
    middle = (low * high) ** 0.5
    low, high = min(low / 1.15, middle / 10**0.5), max(high * 1.25, middle * 10**0.5)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
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
    axis.stairs(rate, edges, color=_BLUE, lw=1.4)
    axis.set_title(f"Throughput, in steps of {edges[1]:.2g} s", color=_INK)
    axis.set_ylabel("images/s")
    axis.set_ylim(0, 1.25 * max(rate.max(), report.images_per_s, 1e-9))
    axis.axhline(report.images_per_s, color=_MUTED, ls="--", lw=1)
    axis.annotate(
        f"mean {report.images_per_s:.4g}", (0.995, report.images_per_s), xycoords=("axes fraction", "data"),
        xytext=(0, -3), textcoords="offset points", ha="right", va="top", fontsize=8, color=_INK,
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
    )  # fmt: skip


def _over_time(axis: Axes, good: Sequence[Row], bad: Sequence[Row]) -> None:
    """Draw a point per request at the time it was due, so that pauses show as slopes."""
    axis.set_title("Latency of each request", color=_INK)
    axis.set_xlabel("due at (seconds of the measured time)")
    axis.set_ylabel("latency (ms)")
    size = 3 if len(good) > 2000 else 6
    if good:
        axis.scatter([r.due_s for r in good], [_ms(r) for r in good], s=size, c=_BLUE, lw=0, alpha=0.55, label="answered")
    if bad:
        axis.scatter([r.due_s for r in bad], [_ms(r) for r in bad], s=14, c=_VERMILION, marker="x", lw=0.9, label="failed")
    if good or bad:
        _log_ms(axis, np.array([max(_ms(r), 1e-3) for r in (*good, *bad)]))
    if bad:
        axis.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)


def _ms(row: Row) -> float:
    return 1000 * (row.over_s - row.due_s)
