"""Tables for people: columns that stand under each other, whatever letters are in them."""

import sys
import unicodedata
from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their header, in columns. Columns after the first that are empty in every row are left out."""
    kept = [place for place in range(len(header)) if not place or not rows or any(row[place] for row in rows)]
    table = [[printable(row[place]) for place in kept] for row in (header, *rows)]
    widths = [max(columns_of(row[column]) for row in table) for column in range(len(kept))]
    for row in table:
        cells = (cell + " " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Return text without what moves a terminal's cursor or cannot be written there: such letters are escaped."""
    escaped = "".join(
        letter if unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") else _escaped(letter) for letter in text
    )
    encoding = sys.stdout.encoding or "utf-8"
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for a Chinese character, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )  # fmt: skip
