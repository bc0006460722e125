"""What all pictures of the report share: colours that colour-blind people tell apart, sizes for phones, PNG bytes.

Pictures are about 4.6 inches wide, so that their text keeps its size where a phone shows them 360 pixels wide; what
is wider is cut into several. The hues are Okabe and Ito's (2008).
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9"
INK, MUTED, FAINT = "#2f2f2f", "#767676", "#e6e6e6"
SCORER_COLOURS = {"dense": GREEN, "svm": PURPLE}
SCORER_MARKERS = {"dense": "o", "svm": "s"}
SCORER_NAMES = {"dense": "dense head", "svm": "SVM"}
WIDTH = 4.6
_LONGEST_NAME = 20
_DPI = 160
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": FAINT,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a class may be called $5
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style inside this block."""
    with matplotlib.rc_context(_STYLE):
        yield


def new(height: float, *, width: float = WIDTH, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    """Return a figure of this size in inches, and its axes [rows, columns]; call inside style()."""
    # Not pyplot's: that one remembers every figure until told not to.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def short(name: str) -> str:
    """Cut a class name to what fits beside an axis or under a small photo."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def percent(axis: Any) -> None:
    """Write an axis in per cent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")


def png(figure: Figure) -> bytes:
    """Return the figure's PNG bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names may be in scripts that no font here has: boxes in a picture are no reason to stop.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
