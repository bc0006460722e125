"""What the client's verbs share on the command line: the server, numbers, files; refused before any server is asked."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from penult.client.credentials import add_security_arguments
from penult.client.types import DEFAULT_TARGET, DEFAULT_TIMEOUT_S

# A name without a suffix says nothing about what is inside.
PARQUET = (".parquet", ".pq", "")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".tif", ".tiff", ".gif", ".bmp")
_MOST = 2**32 - 1


class Refused(Exception):
    """A command line that cannot be followed; `message` is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which server, for how long, and in which form."""
    target = os.environ.get("PENULT_TARGET", DEFAULT_TARGET)
    parser.add_argument("--target", default=target, metavar="HOST:PORT", help="the server (%(default)s)")
    parser.add_argument("--timeout", type=seconds, default=DEFAULT_TIMEOUT_S, help="seconds per request (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    add_security_arguments(parser)


def count(text: str) -> int:
    """Read a number from 1 on. On the wire 0 stands for the default, so 0 is refused here."""
    value = int(text)
    if not 1 <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {_MOST}")
    return value


def seconds(text: str) -> float:
    """Read a time."""
    return _above_zero(text, "a number of seconds above 0", math.inf)


def distance(text: str) -> float:
    """Read a greatest distance, 1 - cosine. On the wire 0 stands for no limit."""
    return _above_zero(text, "a distance above 0, and 2 at most", 2.0)


def _above_zero(text: str, what: str, most: float) -> float:
    value = float(text)
    if not 0 < value <= most or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def file_to_write(suffixes: Sequence[str], what: str, makes_folder: bool = False) -> Callable[[str], Path]:
    """Return what reads the name of a file to write: one with such a suffix, in a folder that is there.

    The suffix decides the form of a picture, and people go by it: another one would be a lie about what is inside.
    """

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{text}: {what}; name a file that ends in {_either(suffixes)}")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
        if not makes_folder and not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no folder {path.parent}; make it first")
        return path

    return read


def _either(suffixes: Sequence[str]) -> str:
    named = [suffix for suffix in suffixes if suffix]
    return f"{', '.join(named[:-1])} or {named[-1]}"


def folder(text: str) -> Path:
    """Read the name of a folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path


def file_to_read(text: str) -> Path:
    """Read the name of a file that is there."""
    path = Path(text)
    if not path.exists() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file" if path.is_dir() else f"there is no {text}")
    return path
