"""The nearest known name, for messages about one that is not known."""

import difflib
from collections.abc import Iterable

# Letters compared, and how alike two names must be (1: equal). Below that a guess is more often wrong than right.
_LONGEST = 200
_ALIKE = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, whatever the case of its letters; None if none is much like it."""
    folded = {each[:_LONGEST].casefold(): each for each in known}
    found = difflib.get_close_matches(name[:_LONGEST].casefold(), folded, n=1, cutoff=_ALIKE)
    return folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" to end a message with, or nothing if no known name is much like `name`."""
    found = nearest(name, known)
    return f"; did you mean {found}?" if found is not None else ""
