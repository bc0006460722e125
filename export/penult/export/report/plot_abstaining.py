"""Plot error against coverage as the threshold falls, with the certified operating points."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from penult.bundle.operating_points import percent as as_text
from penult.drawing import INK, MUTED, style, svg
from penult.export.report.plot_style import SCORER_COLOURS, SCORER_MARKERS, SCORER_NAMES, new, percent

# An error above this is not shown, because certified points are far below it.
_MIN_SHOWN, _ROOM = 0.12, 1.15
# The first few answers jump between 0 and 100 %.
_MIN_COVERAGE = 0.02


def risk_coverage(abstaining: Mapping[str, Any]) -> bytes | None:
    """Return error among answered photos against the share that is answered (SVG), by scorer; None without photos.

    `abstaining` is the entry of metrics.json.
    """
    curves = {name: [row for row in rows if row[0] >= _MIN_COVERAGE] for name, rows in abstaining["curve"].items()}
    curves = {name: rows for name, rows in curves.items() if rows}
    if not curves:
        return None
    with style():
        figure, axes = new(3.0)
        axis: Axes = axes[0][0]
        for scorer, rows in curves.items():
            axis.plot(
                [row[0] for row in rows], [row[1] for row in rows], color=SCORER_COLOURS[scorer], lw=1.4,
                label=SCORER_NAMES[scorer],
            )  # fmt: skip
        highest = max(_MIN_SHOWN, *(row[1] for rows in curves.values() for row in rows[len(rows) // 2 :]))
        for point in abstaining["points"]:
            highest = max(highest, point["max_error"])
        for error in sorted({point["max_error"] for point in abstaining["points"]}):
            axis.axhline(error, color=MUTED, lw=0.8, ls=":")
            axis.annotate(
                as_text(error), (1, error), xycoords=axis.get_yaxis_transform(), xytext=(4, 0),
                textcoords="offset points", va="center", annotation_clip=False, color=INK,
            )  # fmt: skip
        for point in abstaining["points"]:
            coverage, error = _place(point)
            axis.plot(
                coverage, error, SCORER_MARKERS[point["scorer"]], color=SCORER_COLOURS[point["scorer"]], ms=6,
                mec=INK, mew=1.4 if point["is_default"] else 0.5, clip_on=False, zorder=3,
            )  # fmt: skip
        axis.set_xlim(0, 1)
        axis.set_ylim(0, _ROOM * highest)
        axis.set_xlabel("coverage: share of photos that are answered")
        axis.set_ylabel("wrong among answered")
        percent(axis.xaxis)
        percent(axis.yaxis)
        figure.legend(loc="outside upper left", ncols=2)
        return svg(figure)


def _place(point: Mapping[str, Any]) -> tuple[float, float]:
    """Return coverage and error of a point, on the test photos if they measured it."""
    found = point.get("test", point)
    return found["answered"] / max(found["photos"], 1), found["wrong"] / max(found["answered"], 1)
