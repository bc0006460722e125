"""Colours, sizes and labels that all plots of the report share.

Plots are 3.7 inches wide with text of 9 points. A phone shows them 346 pixels wide, and the text 11 pixels high.
"""

import unicodedata
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from penult.drawing import GREEN, PURPLE, figure

SCORER_COLOURS = {"dense": GREEN, "svm": PURPLE}
SCORER_MARKERS = {"dense": "o", "svm": "s"}
SCORER_NAMES = {"dense": "dense head", "svm": "SVM"}


class Look(NamedTuple):
    """How one of two things is drawn: colour, marker, and the name in a legend."""

    colour: str
    marker: str
    name: str


SCORER_LOOKS = {
    scorer: Look(SCORER_COLOURS[scorer], SCORER_MARKERS[scorer], name) for scorer, name in SCORER_NAMES.items()
}
WIDTH = 3.7
_LONGEST_NAME = 20
# Matplotlib measures a letter that its font lacks as a box of 0.6 em. If it is drawn 1 em wide, so many spaces of
# 0.32 em make up for the difference.
_SPACES_PER_WIDE = 1.3
_NO_BREAK_SPACE = "\u00a0"


def new(height: float, *, width: float = WIDTH, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    """Return a figure of this size in inches, and its axes [rows, columns]; call inside style()."""
    made = figure(width, height)
    return made, made.subplots(rows, columns, squeeze=False, **more)


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut a class name to fit beside an axis or under a small photo; a wide letter counts as two."""
    # XML does not allow control characters.
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    if cells(name) <= longest:
        return name
    kept, used = "", 1
    for letter in name:
        used += cells(letter)
        if used > longest:
            break
        kept += letter
    return kept + "…"


def label(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a class name for an axis or a legend, cut, with spaces for letters that matplotlib measures too narrow."""
    cut = short(name, longest)
    if cut.startswith("_"):  # matplotlib leaves such names out of legends
        cut = _NO_BREAK_SPACE + cut
    return _NO_BREAK_SPACE * round(_SPACES_PER_WIDE * (cells(cut) - len(cut))) + cut


def percent(axis: Any) -> None:
    """Label an axis in per cent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")


def cells(text: str) -> int:
    """Return the width of a text in letters; East Asian letters and emoji count as two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
