"""`penult lookup`: the stored items nearest to images, as a table, as JSON, or as a contact sheet."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penult.cli.answers import error_cell, failed
from penult.cli.arguments import (
    PICTURES,
    Refused,
    add_connection_arguments,
    add_model_arguments,
    client_of,
    count,
    distance,
    explained,
    file_to_write,
    folder,
    named_photos,
)
from penult.client.sync_client import Client
from penult.client.tools.collection_pages import collection_info
from penult.client.tools.filters import SIGNS, EmptyLookup, read_filter
from penult.client.types import ItemFailure, LookupAnswer, RequestFailed
from penult.console import print_error, print_table
from penult.folders.names import normalised


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult lookup`."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--collection", "-c", required=True, metavar="C", help="collection to search")
    parser.add_argument("-k", type=count, default=10, metavar="N", help="neighbours per photo (%(default)s)")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        type=_condition,
        metavar="FIELD=VALUE",
        help="only such items: label=cat, price>=10; repeat to narrow, or for alternatives of one field",
    )
    parser.add_argument(
        "--max-distance", type=distance, default=0.0, metavar="D", help="maximum 1 - cosine, above 0, at most 2 (any)"
    )
    parser.add_argument(
        "--sheet",
        type=file_to_write(PICTURES, "a sheet is a picture"),
        metavar="OUT.png",
        help="draw a contact sheet of the photos and their neighbours",
    )
    parser.add_argument(
        "--photos", type=folder, metavar="FOLDER", help="folder of the items' photos, for --sheet (their sources)"
    )
    add_model_arguments(parser, "the collection's own")
    add_connection_arguments(parser)


def _condition(text: str) -> str:
    if not any(sign in text for sign in SIGNS):
        raise argparse.ArgumentTypeError(f"{text}: write FIELD=VALUE, FIELD>=N or FIELD<=N")
    return text


def run(arguments: argparse.Namespace) -> int:
    """Print or draw the nearest items; return 1 if any image failed. Raises RequestFailed, Refused."""
    images = [str(photo) for photo in named_photos(arguments.images)]
    if arguments.photos and not arguments.sheet:
        raise Refused("--photos needs a contact sheet: name it with --sheet OUT.png")
    with explained(arguments, arguments.collection), client_of(arguments) as client:
        where = read_filter(collection_info(client, arguments.collection), arguments.filter) if arguments.filter else {}
        answer = client.lookup(
            images, arguments.collection, k=arguments.k, where=where, max_distance=arguments.max_distance,
            model=arguments.model, version=arguments.version,
        )  # fmt: skip
        lookup = EmptyLookup(client, arguments.collection, where, arguments.max_distance)
        why = {
            image: lookup.reason(image, arguments.model, arguments.version)
            for image, result in zip(images, answer.results, strict=True)
            if not isinstance(result, ItemFailure) and not result
        }
        if arguments.sheet:
            _draw(client, arguments, images, answer, why)
    if arguments.json:
        print(json.dumps({"model": answer.model, "version": answer.version, "results": _values(images, answer)}))
        for line in dict.fromkeys(why.values()):
            print_error(f"nothing found: {line}")
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
    if answer.fingerprint:  # empty if no image could be read
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
    """Return True if a neighbour has the image's own label; None if either has none."""
    return normalised(label) == own if label and own else None


def _photos_of(client: Client, collection: str, ids: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Return each item's image: its path below a folder, its source, or its thumbnail."""
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
    """Return each image's own label, which is the name of its folder, or "" if no stored item has that label.

    The server is asked too, since all neighbours may be of other classes.
    """
    found = (result for result in answer.results if not isinstance(result, ItemFailure))
    known = {normalised(each.label): True for result in found for each in result}
    labels: dict[str, str] = {}
    for image, result in zip(images, answer.results, strict=True):
        name = normalised(Path(image).resolve().parent.name)
        if name not in known and not isinstance(result, ItemFailure):
            near = client.lookup(
                [image],
                arguments.collection,
                k=1,
                where={"label": name},
                model=arguments.model,
                version=arguments.version,
            )
            known[name] = not isinstance(near.results[0], ItemFailure) and bool(near.results[0])
        labels[image] = name if known.get(name) else ""
    return labels
