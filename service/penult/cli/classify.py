"""`penult classify` and `penult describe`: a client for people and for scripts."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any

from penult.cli.client_arguments import (
    PARQUET,
    Refused,
    add_connection_arguments,
    count,
    file_to_read,
    file_to_write,
)
from penult.cli.console import print_table
from penult.client.batch_calls import named_photos
from penult.client.credentials import from_arguments
from penult.client.hints import explained
from penult.client.sync_client import Client
from penult.client.types import Classification, ItemFailure, Neighbours

_NEIGHBOURS = 10
_NOT_AS_TEXT = "descriptors are written as Parquet (--json without --out prints them as text)"


def add_describe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `penult describe`."""
    _add_asking_arguments(parser, "*")
    bulk = parser.add_argument_group("any number of photos, into a file")
    bulk.add_argument(
        "--out", type=file_to_write(PARQUET, _NOT_AS_TEXT, makes_folder=True), metavar="FILE.parquet",
        help="write descriptors here instead of printing them; again after a break, the same command goes on",
    )  # fmt: skip
    bulk.add_argument(
        "--list", type=file_to_read, metavar="FILE", help="the photos that this file names, a path per line"
    )
    bulk.add_argument(
        "--from", type=file_to_read, dest="source", metavar="FILE.parquet", help="the photos in a column of this file"
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


def add_classify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `penult classify`."""
    _add_asking_arguments(parser, "+")
    parser.add_argument(
        "--scorer",
        choices=("dense", "svm", "neighbours"),
        help="what names the classes (default: the model's own); neighbours: a vote of --collection",
    )
    parser.add_argument("--collection", "-c", default="", metavar="C", help="also look neighbours up here")
    parser.add_argument("-k", type=count, metavar="N", help=f"how many of them ({_NEIGHBOURS})")
    parser.add_argument("--top", type=count, default=5, metavar="K", help="classes per photo in --json (%(default)s)")


def classify(arguments: argparse.Namespace) -> int:
    """Name photos, print a table or JSON; return 1 if any photo failed. Raises RequestFailed, Refused."""
    neighbours = _neighbours(arguments)
    photos = named_photos(arguments.images)
    with explained(arguments, arguments.collection), _client(arguments) as client:
        answers = list(
            client.classify_many(
                photos, model=arguments.model, version=arguments.version, scorer=arguments.scorer,
                top_k=arguments.top, neighbours=neighbours, progress=has_bar(),
            )
        )  # fmt: skip
    rows, values = [], []
    for answer in answers:
        image, r = str(answer.photo), answer.result
        if isinstance(r, ItemFailure):
            rows.append([image, "", "", "", "", error_cell(r)])
            values.append(failed(image, r))
            continue
        far = _distance(r, answer.novelty_threshold)
        rows.append([image, r.label + " (novel)" * r.is_novel, f"{r.probability:.1%}", far, f"{r.score:.2f}", ""])
        classes = [vars(scored) for scored in r.classes]
        value = {"image": image, "label": r.label, "score": r.score, "probability": r.probability, "classes": classes}
        if r.novelty is not None:
            value |= {"novelty": r.novelty, "is_novel": r.is_novel}
        values.append(value | ({"neighbours": [vars(each) for each in r.neighbours]} if neighbours else {}))
    last = _last(answers)
    header = ["image", "label", "probability", "distance", "score", "error"]
    code = _show(arguments, answers, header, rows, values, scorer=last.scorer)
    if last.novelty_threshold is not None and not arguments.json:
        print("distance: from the training photos; 1 is the model's limit, above it (novel) a class may mean nothing")
    return code


def _distance(found: Classification, threshold: float | None) -> str:
    """Return how far a photo lies from the training photos, in units of the model's limit; "" if that is unknown."""
    return f"{found.novelty / threshold:.2f}" if threshold and found.novelty is not None else ""


def _neighbours(arguments: argparse.Namespace) -> Neighbours | None:
    """Return which neighbours are looked for; raise Refused where a flag needs a collection and there is none."""
    if arguments.collection:
        return Neighbours(arguments.collection, arguments.k or _NEIGHBOURS)
    if arguments.k or arguments.scorer == "neighbours":
        flag = "-k" if arguments.k else "--scorer neighbours"
        raise Refused(f"{flag} goes with --collection C: name the one that holds the neighbours")
    return None


def describe(arguments: argparse.Namespace) -> int:
    """Print descriptors, as classify() prints classes, or write them to a file."""
    if arguments.out:
        from penult.cli.describe_bulk import describe_all  # needs pyarrow

        with explained(arguments):
            return describe_all(arguments)
    if not arguments.images or arguments.list or arguments.source or arguments.restart:
        raise Refused("name photos to print their descriptors; --list, --from and --restart go with --out FILE")
    photos = named_photos(arguments.images)
    with explained(arguments), _client(arguments) as client:
        answers = list(
            client.describe_many(photos, model=arguments.model, version=arguments.version, progress=has_bar())
        )
    rows, values = [], []
    for image, r in ((str(answer.photo), answer.result) for answer in answers):
        if isinstance(r, ItemFailure):
            rows.append([image, "", "", error_cell(r)])
            values.append(failed(image, r))
            continue
        start = " ".join(f"{number:.3f}" for number in r[:6])
        rows.append([image, str(len(r)), f"{start} …", ""])
        values.append({"image": image, "descriptor": r.tolist()})
    fingerprint = _last(answers).fingerprint
    header = ["image", "numbers", "descriptor", "error"]
    return _show(arguments, answers, header, rows, values, fingerprint=fingerprint)


def _client(arguments: argparse.Namespace) -> Client:
    return Client(arguments.target, arguments.timeout, security=from_arguments(arguments))


def has_bar() -> bool:
    """Tell whether someone looks at a bar, and the library that draws it is there."""
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None


def _last(answers: Sequence[Any]) -> Any:
    """Return the last answer that names what gave it: where photos could not be read, none may."""
    return next((answer for answer in reversed(answers) if answer.fingerprint), answers[-1])


def error_cell(failure: ItemFailure) -> str:
    """Return why a photo has no answer, for a table."""
    return f"{failure.code}: {failure.message}"


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
        if versions:  # else no photo could be read, and no server was asked
            named = " and ".join(map(str, versions))
            print(f"model {last.model} version {named}" + "".join(f", {k} {v}" for k, v in more.items()))
    return 1 if any("error" in value for value in values) else 0
