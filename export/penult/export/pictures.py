"""What all pictures of the report share: how scorers look, sizes for phones.

Pictures are about 4.6 inches wide, so that their text keeps its size where a phone shows them 360 pixels wide; what
is wider is cut into several.
"""

from typing import Any

from matplotlib.figure import Figure

from penult.drawing import GREEN, PURPLE, figure

SCORER_COLOURS = {"dense": GREEN, "svm": PURPLE}
SCORER_MARKERS = {"dense": "o", "svm": "s"}
SCORER_NAMES = {"dense": "dense head", "svm": "SVM"}
WIDTH = 4.6
_LONGEST_NAME = 20


def new(height: float, *, width: float = WIDTH, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    """Return a figure of this size in inches, and its axes [rows, columns]; call inside style()."""
    made = figure(width, height)
    return made, made.subplots(rows, columns, squeeze=False, **more)


def short(name: str) -> str:
    """Cut a class name to what fits beside an axis or under a small photo."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def percent(axis: Any) -> None:
    """Write an axis in per cent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
