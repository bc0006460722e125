"""What all pictures of the report share: how scorers look, sizes for phones, names of any script.

Pictures are 3.7 inches wide with text of 9 points, so that it is 11 CSS pixels high where a phone shows them 346 wide.
"""

import unicodedata
from typing import Any

from matplotlib.figure import Figure

from penult.drawing import GREEN, PURPLE, figure

SCORER_COLOURS = {"dense": GREEN, "svm": PURPLE}
SCORER_MARKERS = {"dense": "o", "svm": "s"}
SCORER_NAMES = {"dense": "dense head", "svm": "SVM"}
WIDTH = 3.7
_LONGEST_NAME = 20
# A letter that matplotlib's font lacks is measured as a box of 0.6 em. Where it is drawn 1 em wide, so many spaces of
# 0.32 em keep its place.
_SPACES_PER_WIDE = 1.3
_NO_BREAK_SPACE = "\u00a0"


def new(height: float, *, width: float = WIDTH, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, Any]:
    """Return a figure of this size in inches, and its axes [rows, columns]; call inside style()."""
    made = figure(width, height)
    return made, made.subplots(rows, columns, squeeze=False, **more)


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut a class name to what fits beside an axis or under a small photo; a wide letter counts as two."""
    # XML has no place for control characters.
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
    """Return a class name for an axis or a legend: cut, and with room for letters wider than matplotlib measures."""
    cut = short(name, longest)
    if cut.startswith("_"):  # matplotlib leaves such names out of legends
        cut = _NO_BREAK_SPACE + cut
    return _NO_BREAK_SPACE * round(_SPACES_PER_WIDE * (cells(cut) - len(cut))) + cut


def percent(axis: Any) -> None:
    """Write an axis in per cent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")


def cells(text: str) -> int:
    """Return how wide a text is, in letters; those of East Asian scripts and emoji count as two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
