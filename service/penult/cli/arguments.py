"""What the client commands share: options for the server, images, numbers and files, checked before any request."""

import argparse
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from penult.client.batch_calls import photos_in
from penult.client.credentials import TOKEN_VARIABLE, VARIABLES, Security
from penult.client.hints import explaining
from penult.client.sync_client import Client
from penult.client.types import DEFAULT_TARGET, DEFAULT_TIMEOUT_S
from penult.console import say
from penult.folders.names import printable
from penult.folders.walk import LeftOut

# A name without a suffix promises no format.
PARQUET = (".parquet", ".pq", "")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".tif", ".tiff", ".gif", ".bmp")
_MAX = 2**32 - 1


class Refused(Exception):
    """A command line that cannot be followed; `message` is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


# -- the server --------------------------------------------------------------------------------------------------------


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the server, its security, the timeout and the output format."""
    target = os.environ.get("PENULT_TARGET", DEFAULT_TARGET)
    parser.add_argument("--target", default=target, metavar="HOST:PORT", help="server address (%(default)s)")
    parser.add_argument(
        "--timeout", type=seconds, default=DEFAULT_TIMEOUT_S, metavar="S", help="seconds per request (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    add_security_arguments(parser)


def add_security_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a connection's security; variables stand in for those left out."""
    group = parser.add_argument_group("security")
    group.add_argument("--tls", action="store_true", help="encrypt; require a certificate of a known authority (off)")
    for flag, name, help_ in (
        ("--ca", "ca", "PEM file of the server's authority; implies --tls"),
        ("--client-cert", "certificate", "PEM file of the client's certificate, for mutual TLS"),
        ("--client-key", "key", "PEM file of the client's key"),
        ("--token-file", "token_file", f"file with the bearer token; or set {TOKEN_VARIABLE}"),
    ):
        group.add_argument(flag, type=Path, metavar="FILE", dest=name, help=f"{help_} ({VARIABLES[name]})")
    group.add_argument("--server-name", metavar="NAME", help="name on the server's certificate (the address)")


def security_of(arguments: argparse.Namespace) -> Security:
    """Return the security that options and variables ask for."""
    from_variables = Security.from_environment()
    given = {name: value for name in VARIABLES if (value := getattr(arguments, name, None))}
    known = {name: getattr(from_variables, name) for name in VARIABLES} | given
    is_tls = from_variables.tls or getattr(arguments, "tls", False)
    return Security(tls=is_tls, token=from_variables.token, **known)


def client_of(arguments: argparse.Namespace) -> Client:
    """Return a client of the server that the options name."""
    return Client(arguments.target, arguments.timeout, security=security_of(arguments))


def explained(arguments: argparse.Namespace, collection: str = "") -> AbstractContextManager[None]:
    """Return a context that adds hints to a RequestFailed, as explaining() does."""
    model = getattr(arguments, "model", "") or ""
    return explaining(arguments.target, security_of(arguments), model, collection)


# -- images ------------------------------------------------------------------------------------------------------------


def add_model_arguments(parser: argparse.ArgumentParser, default: str = "the only one served") -> None:
    """Add the options that choose a model."""
    parser.add_argument("--model", default="", metavar="NAME", help=f"model name (default: {default})")
    parser.add_argument("--version", type=count, default=0, metavar="V", help="model version (default: the newest)")


def named_photos(images: Iterable[str]) -> list[str | Path]:
    """Return the images named, and those in the folders named; print what each folder leaves out. Raises Refused."""
    photos: list[str | Path] = []
    for image in images:
        if Path(image).is_dir():
            left_out = LeftOut()
            try:
                photos += photos_in(image, left_out)
            except FileNotFoundError as error:
                raise Refused(str(error)) from error
            note_left_out(image, left_out)
        else:
            photos.append(image)
    return photos


def note_left_out(folder: str | Path, left_out: LeftOut) -> None:
    """Print which files of a folder are not used, and why."""
    for line in left_out.lines():
        say(f"note: {printable(str(folder))}: {line}")


# -- types of options --------------------------------------------------------------------------------------------------


def count(text: str) -> int:
    """Read a number of at least 1. On the wire 0 means the default, so 0 is rejected here."""
    value = int(text)
    if not 1 <= value <= _MAX:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {_MAX}")
    return value


def seconds(text: str) -> float:
    """Read a time."""
    return _above_zero(text, "a number of seconds above 0", math.inf)


def share(text: str) -> float:
    """Read a share of wrong answers, such as 5% or 0.05. On the wire 0 means the default."""
    number = text.strip()
    value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of wrong answers; give one like 5% or 0.05")
    return value


def distance(text: str) -> float:
    """Read a maximum distance, 1 - cosine. On the wire 0 means no limit."""
    return _above_zero(text, "a distance above 0, and at most 2", 2.0)


def _above_zero(text: str, what: str, maximum: float) -> float:
    value = float(text)
    if not 0 < value <= maximum or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def file_to_write(suffixes: Sequence[str], what: str, makes_folder: bool = False) -> Callable[[str], Path]:
    """Return a reader of names of files to write, with one of these suffixes, in a folder that exists.

    A picture's suffix chooses its format, so a wrong suffix would give a file that other programs cannot open.
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
    """Read the name of a folder that exists."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path


def file_to_read(text: str) -> Path:
    """Read the name of a file that exists."""
    path = Path(text)
    if not path.exists() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file" if path.is_dir() else f"there is no {text}")
    return path
