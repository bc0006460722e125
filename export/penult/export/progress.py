"""What a person sees while waiting. Everything goes to standard error, so that --json output stays clean."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
# The processes beside the first work in silence: one bar is enough for a person.
_silent = False


def silence() -> None:
    """Show nothing from now on."""
    global _silent  # noqa: PLW0603 - a process is silent as a whole
    _silent = True


def bar(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Pass `items` on, drawing a bar with rate and remaining time; it is removed when done."""
    if _silent:
        return items
    quiet = not sys.stderr.isatty()
    # Into a log file a bar is noise: there it starts after ten seconds, and then says so every ten.
    pace = 10.0 if quiet else 0.1
    bar: Iterable[T] = tqdm(
        items, desc=what, total=total, leave=False, mininterval=pace, delay=pace if quiet else 0, file=sys.stderr
    )
    return bar


def say(line: str) -> None:
    """Print one line, above any bar."""
    if not _silent:
        tqdm.write(line, file=sys.stderr)


def duration(seconds: float) -> str:
    """Return a time for people, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "a second"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
