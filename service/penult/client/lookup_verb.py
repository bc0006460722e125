"""`penult lookup`: a photo's nearest stored items as a table, as JSON, or as a contact sheet to look at."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penult.client.many import named_photos
from penult.client.plain import Client
from penult.client.security import from_arguments
from penult.client.types import ItemFailure, LookupAnswer, Neighbour, RequestFailed
from penult.client.verbs import add_connection_arguments, count, failed, print_table
from penult.folders.names import normalised


def add_lookup_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `penult lookup`."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="photo files, or folders of them")
    parser.add_argument("--collection", "-c", required=True, metavar="C", help="where to look")
    parser.add_argument("-k", type=count, default=10, metavar="N", help="neighbours per photo (%(default)s)")
    add_filter_argument(parser)
    parser.add_argument(
        "--max-distance", type=float, default=0.0, metavar="D", help="leave out what is further: 1 - cosine, 0 to 2"
    )
    parser.add_argument("--sheet", type=Path, metavar="OUT.png", help="draw the photos with their neighbours")
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="for --sheet: where the items' photos lie, by id (their sources)"
    )
    parser.add_argument("--model", default="", metavar="NAME", help="what describes the photos (the collection's own)")
    parser.add_argument("--version", type=count, default=0, metavar="V", help="which version (default: the newest)")
    add_connection_arguments(parser)


def add_filter_argument(parser: argparse.ArgumentParser) -> None:
    """Add --filter."""
    parser.add_argument(
        "--filter", action="append", default=[], metavar="FIELD=VALUE",
        help="only items like this: label=cat, price>=10, price<=20; all must hold, of one field's values any",
    )  # fmt: skip


def lookup(arguments: argparse.Namespace) -> int:
    """Look photos up and print, or draw, what is near; return 1 if any photo failed. Raises RequestFailed."""
    images = [str(photo) for photo in named_photos(arguments.images)]
    with Client(arguments.target, arguments.timeout, security=from_arguments(arguments)) as client:
        where = read_filter(client, arguments.collection, arguments.filter)
        answer = client.lookup(
            images, arguments.collection, k=arguments.k, where=where, max_distance=arguments.max_distance,
            model=arguments.model, version=arguments.version,
        )  # fmt: skip
        if arguments.sheet:
            _draw(client, arguments, images, answer)
    if arguments.json:
        print(json.dumps({"model": answer.model, "version": answer.version, "results": _values(images, answer)}))
    else:
        _print(images, answer)
        if arguments.sheet:
            print(f"sheet: {arguments.sheet}")
    return 1 if any(isinstance(result, ItemFailure) for result in answer.results) else 0


def read_filter(client: Client, collection: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return conditions as the client takes them; values by the collection's types. Raises RequestFailed."""
    if not texts:
        return {}
    told = [each for each in client.list_collections() if each.name == collection]
    types = {"label": "string"} | dict(told[0].fields if told else {})
    where: dict[str, Any] = {}
    for text in texts:
        sign = next((sign for sign in (">=", "<=", "=") if sign in text), None)
        if sign is None:
            raise RequestFailed(
                "INVALID_ARGUMENT", "FILTER", f"--filter {text}: write FIELD=VALUE, FIELD>=N or FIELD<=N"
            )
        name, _, value = text.partition(sign)
        if sign == "=":
            where.setdefault(name, []).append(_typed(value, types.get(name, "string"), text))
        else:
            low, high = where.get(name, (None, None))
            bound = float(_typed(value, "number", text))
            where[name] = (bound, high) if sign == ">=" else (low, bound)
    return where


def _typed(value: str, kind: str, text: str) -> Any:
    try:
        if kind == "boolean":
            return {"true": True, "false": False}[value.lower()]
        return float(value) if kind == "number" else value
    except (KeyError, ValueError):
        raise RequestFailed("INVALID_ARGUMENT", "FILTER", f"--filter {text}: {value!r} is no {kind}") from None


def _values(images: Sequence[str], answer: LookupAnswer) -> list[dict[str, Any]]:
    return [
        failed(image, result)
        if isinstance(result, ItemFailure)
        else {"image": image, "neighbours": [vars(each) for each in result]}
        for image, result in zip(images, answer.results, strict=True)
    ]


def _print(images: Sequence[str], answer: LookupAnswer) -> None:
    rows = []
    for image, result in zip(images, answer.results, strict=True):
        if isinstance(result, ItemFailure):
            rows.append([image, "", result.code, "", result.message])
            continue
        for place, each in enumerate(result):
            metadata = " ".join(f"{name}={value}" for name, value in each.metadata.items())
            rows.append([image if not place else "", f"{each.similarity:.3f}", each.label, each.id, metadata])
        if not result:
            rows.append([image, "", "", "(nothing near enough)", ""])
    header = ["image", "similarity", "label", "id", "metadata"]
    columns = len(header) if any(row[-1] for row in rows) else -1  # mostly there are none
    print_table(header[:columns], [row[:columns] for row in rows])
    print(f"model {answer.model or '?'} version {answer.version}")


def _draw(client: Client, arguments: argparse.Namespace, images: Sequence[str], answer: LookupAnswer) -> None:
    from penult.client.sheet import Tile, draw_sheet

    found = {each.id for result in answer.results if not isinstance(result, ItemFailure) for each in result}
    photos = _photos_of(client, arguments.collection, sorted(found), arguments.photos)
    rows = []
    for image, result in zip(images, answer.results, strict=True):
        name = Path(image).name
        if isinstance(result, ItemFailure):
            rows.append([Tile(image, name, result.reason)])
            continue
        label = _folder_label(image, result)
        tiles = [
            Tile(photos.get(e.id), f"{e.similarity:.3f}  {e.label}", e.id, e.label == label if label else None)
            for e in result
        ]
        rows.append([Tile(image, label or "query", name), *tiles])
    try:
        draw_sheet(rows, arguments.sheet)
    except (OSError, ValueError) as error:
        raise RequestFailed("INVALID_ARGUMENT", "SHEET", f"--sheet {arguments.sheet}: {error}") from error


def _photos_of(client: Client, collection: str, ids: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Return where each item's photo can be had: below a folder, at its source, or its thumbnail."""
    photos: dict[str, Any] = {}
    for at in range(0, len(ids), 100):
        for item in client.get_items(collection, ids[at : at + 100], thumbnails=True):
            paths = [folder / item.id] if folder else []
            paths += [Path(item.source)] if item.source else []
            photos[item.id] = next((path for path in paths if path.is_file()), item.thumbnail or None)
    return photos


def _folder_label(image: str, neighbours: Sequence[Neighbour]) -> str:
    """Return the label that the photo's folder tells, where neighbours bear such labels."""
    folder = normalised(Path(image).resolve().parent.name)
    return next((each.label for each in neighbours if normalised(each.label) == folder), "")
