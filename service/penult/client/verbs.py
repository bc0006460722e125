"""`penult classify` and `penult describe`: a client for people and for scripts."""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penult.client.many import NoPhotos, named_photos
from penult.client.plain import Client
from penult.client.security import add_security_arguments, from_arguments
from penult.client.types import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, ItemFailure, Neighbours


def add_describe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `penult describe`."""
    _add_asking_arguments(parser, "*")
    bulk = parser.add_argument_group("any number of photos, into a file")
    bulk.add_argument(
        "--out", type=Path, metavar="FILE.parquet",
        help="write descriptors here instead of printing them; again after a break, the same command goes on",
    )  # fmt: skip
    bulk.add_argument("--list", type=Path, metavar="FILE", help="the photos that this file names, a path per line")
    bulk.add_argument(
        "--from", type=Path, dest="source", metavar="FILE.parquet", help="the photos in a column of this file"
    )
    bulk.add_argument("--column", default="image", metavar="NAME", help="that column, bytes or paths (%(default)s)")
    bulk.add_argument("--id-column", default="", metavar="NAME", help="what names them (default: id, if it is there)")
    bulk.add_argument("--restart", action="store_true", help="begin anew, whatever an earlier run has left")


def _add_asking_arguments(parser: argparse.ArgumentParser, images: str) -> None:
    parser.add_argument(
        "images", metavar="IMAGE", nargs=images, help="photo files, or folders of them: JPEG, PNG or WebP"
    )
    parser.add_argument("--model", default="", metavar="NAME", help="which model (default: the only one served)")
    parser.add_argument("--version", type=count, default=0, metavar="V", help="which version (default: the newest)")
    add_connection_arguments(parser)


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which server, for how long, and in which form."""
    target = os.environ.get("PENULT_TARGET", DEFAULT_TARGET)
    parser.add_argument("--target", default=target, metavar="HOST:PORT", help="the server (%(default)s)")
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="seconds per request (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    add_security_arguments(parser)


def count(text: str) -> int:
    """Read a whole number as the wire carries it."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {2**32 - 1}")
    return value


def add_classify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `penult classify`."""
    _add_asking_arguments(parser, "+")
    parser.add_argument(
        "--scorer",
        choices=("dense", "svm", "neighbours"),
        help="what names the classes (default: the model's own); neighbours: a vote of --collection",
    )
    parser.add_argument("--collection", "-c", default="", metavar="C", help="also look neighbours up here")
    parser.add_argument("-k", type=count, default=10, metavar="N", help="how many of them (%(default)s)")
    parser.add_argument("--top", type=count, default=5, metavar="K", help="classes per photo in --json (%(default)s)")


def classify(arguments: argparse.Namespace) -> int:
    """Name photos, print a table or JSON; return 1 if any photo failed. Raises RequestFailed."""
    neighbours = Neighbours(arguments.collection, arguments.k) if arguments.collection else None
    photos = named_photos(arguments.images)
    with Client(arguments.target, arguments.timeout, security=from_arguments(arguments)) as client:
        answers = list(
            client.classify_many(
                photos, model=arguments.model, version=arguments.version, scorer=arguments.scorer,
                top_k=arguments.top, neighbours=neighbours, progress=has_bar(),
            )
        )  # fmt: skip
    rows, values = [], []
    for image, r in ((str(answer.photo), answer.result) for answer in answers):
        if isinstance(r, ItemFailure):
            rows.append([image, r.code, "", r.message])
            values.append(failed(image, r))
            continue
        rows.append([image, r.label + " (novel)" * r.is_novel, f"{r.probability:.1%}", f"{r.score:.2f}"])
        classes = [vars(scored) for scored in r.classes]
        value = {"image": image, "label": r.label, "score": r.score, "probability": r.probability, "classes": classes}
        if r.novelty is not None:
            value |= {"novelty": r.novelty, "is_novel": r.is_novel}
        values.append(value | ({"neighbours": [vars(each) for each in r.neighbours]} if neighbours else {}))
    scorer = _last(answers).scorer
    return _show(arguments, answers, ["image", "label", "probability", "score"], rows, values, scorer=scorer)


def describe(arguments: argparse.Namespace) -> int:
    """Print descriptors, as classify() prints classes, or write them to a file."""
    if arguments.out:
        from penult.client.bulk import describe_all  # needs pyarrow

        return describe_all(arguments)
    if not arguments.images or arguments.list or arguments.source or arguments.restart:
        raise NoPhotos("name photos to print their descriptors; --list, --from and --restart go with --out FILE")
    photos = named_photos(arguments.images)
    with Client(arguments.target, arguments.timeout, security=from_arguments(arguments)) as client:
        answers = list(
            client.describe_many(photos, model=arguments.model, version=arguments.version, progress=has_bar())
        )
    rows, values = [], []
    for image, r in ((str(answer.photo), answer.result) for answer in answers):
        if isinstance(r, ItemFailure):
            rows.append([image, r.code, r.message])
            values.append(failed(image, r))
            continue
        start = " ".join(f"{number:.3f}" for number in r[:6])
        rows.append([image, str(len(r)), f"{start} …"])
        values.append({"image": image, "descriptor": r.tolist()})
    fingerprint = _last(answers).fingerprint
    return _show(arguments, answers, ["image", "numbers", "descriptor"], rows, values, fingerprint=fingerprint)


def has_bar() -> bool:
    """Tell whether someone looks at a bar, and the library that draws it is there."""
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None


def _last(answers: Sequence[Any]) -> Any:
    """Return the last answer that names what gave it: where photos could not be read, none may."""
    return next((answer for answer in reversed(answers) if answer.fingerprint), answers[-1])


def failed(image: str, failure: Any) -> dict[str, Any]:
    """Return a photo that has no answer, as JSON tells it."""
    return {"image": image, "error": {"code": failure.code, "reason": failure.reason, "message": failure.message}}


def _show(
    arguments: argparse.Namespace, answers: Sequence[Any], header: list[str], rows: list[list[str]],
    values: list[Any], **more: str,
) -> int:  # fmt: skip
    """Print a table, or JSON for scripts; return 1 if any photo failed."""
    last = _last(answers)
    versions = sorted({answer.version for answer in answers if answer.fingerprint})
    if arguments.json:
        if len(versions) > 1:  # a new version came in between
            values = [value | {"version": a.version} for value, a in zip(values, answers, strict=True)]
        print(json.dumps({"model": last.model, "version": last.version, **more, "results": values}))
    else:
        print_table(header, rows)
        named = " and ".join(map(str, versions or [last.version]))
        print(f"model {last.model or '?'} version {named}" + "".join(f", {k} {v}" for k, v in more.items()))
    return 1 if any("error" in value for value in values) else 0


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print rows below their header, in columns."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
