"""`penult lookup`: a photo's nearest stored items as a table, as JSON, or as a contact sheet to look at."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penult.cli.classify import error_cell, failed
from penult.cli.client_arguments import (
    PICTURES,
    Refused,
    add_connection_arguments,
    count,
    distance,
    file_to_write,
    folder,
)
from penult.cli.console import print_table
from penult.client.batch_calls import named_photos
from penult.client.credentials import from_arguments
from penult.client.hints import explained
from penult.client.sync_client import Client
from penult.client.tools.collection_pages import told_of
from penult.client.tools.filters import Asked, add_filter_argument, read_filter
from penult.client.types import ItemFailure, LookupAnswer, RequestFailed
from penult.folders.names import normalised


def add_lookup_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `penult lookup`."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="photo files, or folders of them")
    parser.add_argument("--collection", "-c", required=True, metavar="C", help="where to look")
    parser.add_argument("-k", type=count, default=10, metavar="N", help="neighbours per photo (%(default)s)")
    add_filter_argument(parser)
    parser.add_argument(
        "--max-distance", type=distance, default=0.0, metavar="D", help="leave out what is further: 1 - cosine, up to 2"
    )
    parser.add_argument(
        "--sheet", type=file_to_write(PICTURES, "a sheet is a picture"), metavar="OUT.png",
        help="draw the photos with their neighbours",
    )  # fmt: skip
    parser.add_argument(
        "--photos",
        type=folder,
        metavar="FOLDER",
        help="for --sheet: where the items' photos lie, by id (their sources)",
    )
    parser.add_argument("--model", default="", metavar="NAME", help="what describes the photos (the collection's own)")
    parser.add_argument("--version", type=count, default=0, metavar="V", help="which version (default: the newest)")
    add_connection_arguments(parser)


def lookup(arguments: argparse.Namespace) -> int:
    """Look photos up and print, or draw, what is near; return 1 if any photo failed. Raises RequestFailed, Refused."""
    images = [str(photo) for photo in named_photos(arguments.images)]
    if arguments.photos and not arguments.sheet:
        raise Refused("--photos says where a contact sheet finds photos: name the sheet with --sheet OUT.png")
    with (
        explained(arguments, arguments.collection),
        Client(arguments.target, arguments.timeout, security=from_arguments(arguments)) as client,
    ):
        where = read_filter(told_of(client, arguments.collection), arguments.filter) if arguments.filter else {}
        answer = client.lookup(
            images, arguments.collection, k=arguments.k, where=where, max_distance=arguments.max_distance,
            model=arguments.model, version=arguments.version,
        )  # fmt: skip
        asked = Asked(client, arguments.collection, where, arguments.max_distance)
        why = {
            image: asked.why_nothing(image, arguments.model, arguments.version)
            for image, result in zip(images, answer.results, strict=True)
            if not isinstance(result, ItemFailure) and not result
        }
        if arguments.sheet:
            _draw(client, arguments, images, answer, why)
    if arguments.json:
        print(json.dumps({"model": answer.model, "version": answer.version, "results": _values(images, answer)}))
        for line in dict.fromkeys(why.values()):
            print(f"penult: nothing found: {line}", file=sys.stderr)
    else:
        _print(images, answer, why)
        if arguments.sheet:
            print(f"sheet: {arguments.sheet}")
    return 1 if any(isinstance(result, ItemFailure) for result in answer.results) else 0


def _values(images: Sequence[str], answer: LookupAnswer) -> list[dict[str, Any]]:
    return [
        failed(image, result)
        if isinstance(result, ItemFailure)
        else {"image": image, "neighbours": [vars(each) for each in result]}
        for image, result in zip(images, answer.results, strict=True)
    ]


def _print(images: Sequence[str], answer: LookupAnswer, why: dict[str, str]) -> None:
    rows = []
    for image, result in zip(images, answer.results, strict=True):
        if isinstance(result, ItemFailure):
            rows.append([image, "", "", "", "", error_cell(result)])
            continue
        for place, each in enumerate(result):
            metadata = " ".join(f"{name}={value}" for name, value in each.metadata.items())
            rows.append([image if not place else "", f"{each.similarity:.3f}", each.label, each.id, metadata, ""])
        if not result:
            rows.append([image, "", "", "", "", why[image]])
    print_table(["image", "similarity", "label", "id", "metadata", "note"], rows)
    if answer.fingerprint:  # else no photo could be read
        print(f"model {answer.model} version {answer.version}")


def _draw(
    client: Client, arguments: argparse.Namespace, images: Sequence[str], answer: LookupAnswer, why: dict[str, str]
) -> None:
    from penult.client.tools.contact_sheet import Tile, draw_sheet

    found = {each.id for result in answer.results if not isinstance(result, ItemFailure) for each in result}
    photos = _photos_of(client, arguments.collection, sorted(found), arguments.photos)
    labels = _own_labels(client, arguments, images, answer)
    rows = []
    for image, result in zip(images, answer.results, strict=True):
        name = Path(image).name
        if isinstance(result, ItemFailure):
            rows.append([Tile(image, name, result.reason)])
            continue
        label = labels[image]
        tiles = [
            Tile(photos.get(e.id), f"{e.similarity:.3f}  {e.label}", e.id, _is_right(e.label, label)) for e in result
        ]
        rows.append([Tile(image, label or "label not known", name if result else why[image]), *tiles])
    try:
        draw_sheet(rows, arguments.sheet)
    except (OSError, ValueError) as error:
        raise RequestFailed("INVALID_ARGUMENT", "SHEET", f"--sheet {arguments.sheet}: {error}") from error


def _is_right(label: str, own: str) -> bool | None:
    """Return whether a neighbour bears the photo's own label; None where either has none."""
    return normalised(label) == own if label and own else None


def _photos_of(client: Client, collection: str, ids: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Return where each item's photo can be had: below a folder, at its source, or its thumbnail."""
    photos: dict[str, Any] = {}
    for at in range(0, len(ids), 100):
        for item in client.get_items(collection, ids[at : at + 100], thumbnails=True):
            paths = [folder / item.id] if folder else []
            paths += [Path(item.source)] if item.source else []
            photos[item.id] = next((path for path in paths if path.is_file()), item.thumbnail or None)
    return photos


def _own_labels(
    client: Client, arguments: argparse.Namespace, images: Sequence[str], answer: LookupAnswer
) -> dict[str, str]:
    """Return each photo's own label: the folder it lies in, if any stored item bears that label; "" if it is not known.

    Among the neighbours alone it need not be: all of them may be of other classes, and the sheet is to show that.
    """
    found = (result for result in answer.results if not isinstance(result, ItemFailure))
    known = {normalised(each.label): True for result in found for each in result}
    labels: dict[str, str] = {}
    for image, result in zip(images, answer.results, strict=True):
        name = normalised(Path(image).resolve().parent.name)
        if name not in known and not isinstance(result, ItemFailure):
            near = client.lookup(
                [image], arguments.collection, k=1, where={"label": name}, model=arguments.model,
                version=arguments.version,
            )  # fmt: skip
            known[name] = not isinstance(near.results[0], ItemFailure) and bool(near.results[0])
        labels[image] = name if known.get(name) else ""
    return labels
