"""What all pictures share: colours that colour-blind people tell apart, one style, PNG bytes. Needs matplotlib.

The hues are Okabe and Ito's (2008).
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
    "text.parse_math": False,  # a class or a model may be called $5
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style inside the block."""
    with matplotlib.rc_context(_STYLE):
        yield


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches; call inside style()."""
    # Not pyplot's: that one remembers every figure until told not to.
    return Figure(figsize=(width, height), layout="constrained")


def png(drawn: Figure) -> bytes:
    """Return the figure's PNG bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names may be in scripts that no font here has: boxes in a picture are no reason to stop.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        drawn.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
