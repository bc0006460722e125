"""Terminal output: tables, progress, notes and errors.

Tables go to standard output, everything else to standard error, so that --json output stays clean.
"""

import importlib.util
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

# Log files get a line at most this often.
_LOG_EVERY_S, _STATUS_EVERY_S = 10.0, 5.0
# Set in all processes of a distributed run but the first: one bar is enough.
_is_silent = False

# What is being done, how many items are done, and how many there are (None: unknown).
OnProgress = Callable[[str, int, int | None], None]
OnLine = Callable[[str], None]


@dataclass(frozen=True)
class _Listener:
    on_progress: OnProgress | None
    on_line: OnLine | None


_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


@contextmanager
def reporting_to(on_progress: OnProgress | None = None, on_line: OnLine | None = None) -> Iterator[None]:
    """Pass progress and notes of this block to functions, and print none of them; without functions, print as usual."""
    token = _listener.set(_Listener(on_progress, on_line) if on_progress or on_line else None)
    try:
        yield
    finally:
        _listener.reset(token)


def silence() -> None:
    """Show no progress and no notes from now on."""
    global _is_silent  # noqa: PLW0603 - a process is silent as a whole
    _is_silent = True


def is_terminal() -> bool:
    """Return True if standard error is a terminal."""
    return sys.stderr.isatty()


# -- tables ------------------------------------------------------------------------------------------------------------


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int | None = None) -> None:
    """Print rows below their header, in columns, as table() aligns them."""
    print("\n".join(table([header, *rows], left)))


def table(rows: Sequence[Sequence[str]], left: int | None = None) -> list[str]:
    """Align columns, and leave out those after the first that are empty in every row below the first.

    Args:
        rows: The header, if there is one, and the rows; all of one length.
        left: How many columns are aligned to the left, the others to the right; None: all.
    """
    kept = [n for n in range(len(rows[0])) if not n or len(rows) == 1 or any(row[n] for row in rows[1:])]
    cells = [[printable(row[n]) for n in kept] for row in rows]
    widths = [max(columns_of(row[n]) for row in cells) for n in range(len(kept))]
    lines = []
    for row in cells:
        gaps = [" " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=True)]
        aligned = (
            cell + gap if left is None or n < left else gap + cell for n, cell, gap in zip(kept, row, gaps, strict=True)
        )
        lines.append("  ".join(aligned).rstrip())
    return lines


def printable(text: str) -> str:
    """Return text with control characters, and what standard output cannot encode, escaped."""
    escaped = "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") else letter
        for letter in text
    )
    encoding = sys.stdout.encoding or "utf-8"
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for a Chinese character, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )  # fmt: skip


# -- lines on standard error -------------------------------------------------------------------------------------------


def print_error(line: str) -> int:
    """Print one line of error; return exit code 1."""
    print(f"penult: {line}", file=sys.stderr)
    return 1


def say(line: str) -> None:
    """Print a line, above any progress bar."""
    if _is_silent:
        return
    if listener := _listener.get():
        if listener.on_line:
            listener.on_line(line)
    elif "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


class StatusLine:
    """A line that is rewritten on a terminal; in a log file, a new line every few seconds."""

    def __init__(self, title: str) -> None:
        """Begin every line with `title`."""
        self._title = title
        self._is_terminal = is_terminal()
        self._next_s = time.monotonic() + _STATUS_EVERY_S

    def show(self, text: str) -> None:
        """Show the current state."""
        line = f"{self._title}: {text}"
        if self._is_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _STATUS_EVERY_S
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the line from a terminal."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# -- progress bars -----------------------------------------------------------------------------------------------------


def has_bar() -> bool:
    """Return True if a bar can be drawn: standard error is a terminal, and tqdm is installed."""
    return is_terminal() and importlib.util.find_spec("tqdm") is not None


class Bar:
    """Counts images up to a total, on a bar that is removed at the end of the `with` block."""

    def __init__(self, total: int, is_shown: bool | None = None) -> None:
        """Draw the bar if `is_shown`; None means has_bar()."""
        self._bar: Any = None
        if has_bar() if is_shown is None else is_shown:
            from tqdm import tqdm  # the base install lacks it

            self._bar = tqdm(total=total, unit="photo", leave=False)

    def add(self, count: int) -> None:
        """Count `count` more."""
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Yield `items` under a bar with rate and remaining time, which is removed at the end."""
    if _is_silent:
        return items
    if listener := _listener.get():
        return _counted(items, what, total, listener.on_progress) if listener.on_progress else items
    from tqdm import tqdm

    # In a log file, the bar begins after ten seconds, and prints a line every ten.
    pace_s, delay_s = (0.1, 0) if is_terminal() else (_LOG_EVERY_S, _LOG_EVERY_S)
    bar: Iterable[T] = tqdm(
        items, desc=what, total=total, leave=False, mininterval=pace_s, delay=delay_s, file=sys.stderr
    )
    return bar


def _counted(items: Iterable[T], what: str, total: int | None, on_progress: OnProgress) -> Iterator[T]:
    """Yield items, and report each one once it is done."""
    on_progress(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        on_progress(what, done, total)


def duration(seconds: float) -> str:
    """Return a time as text, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "a second"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
