"""`penult index …`: what is in collections, and how it comes in and goes out."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from penult.cli.classify import has_bar
from penult.cli.client_arguments import (
    PARQUET,
    Refused,
    add_connection_arguments,
    count,
    distance,
    file_to_write,
    folder,
)
from penult.cli.console import print_table
from penult.client.batch_calls import Bar, named_photos
from penult.client.credentials import from_arguments
from penult.client.hints import explained
from penult.client.sync_client import Client
from penult.client.tools.collection_pages import batches, pages, told_of
from penult.client.tools.duplicates import Pair, find_duplicates
from penult.client.tools.reindex import reindex
from penult.client.types import ItemFailure, NewItem, RequestFailed, StoredItem
from penult.folders.names import normalised

_BATCH = 64
_SHOWN = 5


def add_index_arguments(parser: argparse.ArgumentParser) -> Any:
    """Add the verbs of `penult index` and their flags; return what further verbs can be added to."""
    verbs = parser.add_subparsers(dest="index_verb", required=True, metavar="VERB")
    for name, (help_, add, act) in _VERBS.items():
        verb = verbs.add_parser(name, help=help_, description=help_)
        verb.set_defaults(act=act)
        add(verb)
        add_connection_arguments(verb)
    return verbs


def index(arguments: argparse.Namespace) -> int:
    """Run one of them. Raises RequestFailed, Refused."""
    act: Callable[[argparse.Namespace, Client], int] = arguments.act
    with (
        explained(arguments, getattr(arguments, "collection", "")),
        Client(arguments.target, arguments.timeout, security=from_arguments(arguments)) as client,
    ):
        return act(arguments, client)


# -- add ---------------------------------------------------------------------------------------------------------------


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION", help="made if it is not there")
    parser.add_argument(
        "what", type=Path, metavar="FOLDER|PARQUET",
        help="photos, each labelled by the folder it lies in, with its path for id; or rows with id, descriptor or "
        "image, label, and columns of metadata",
    )  # fmt: skip
    parser.add_argument("--model", default="", metavar="NAME", help="what describes photos (default: the only one)")
    parser.add_argument(
        "--keep", action="append", default=[], choices=("source", "thumbnail"),
        help="keep where a photo lies, or a small JPEG of it, for contact sheets and for penult index reindex",
    )  # fmt: skip


def _add(arguments: argparse.Namespace, client: Client) -> int:
    if arguments.what.is_dir():
        photos = [Path(photo) for photo in named_photos([str(arguments.what)])]
        total, fields = len(photos), {}
        items: Iterator[NewItem] = (photo_item(photo, arguments) for photo in photos)
    else:
        from penult.client.tools import parquet

        total, fields = parquet.row_count(arguments.what), parquet.field_types(arguments.what)
        _check_described(arguments, client, parquet.described_in(arguments.what))
        items = parquet.read_items(arguments.what)
    sent, failures = 0, list[tuple[str, ItemFailure]]()
    with Bar(total, has_bar()) as bar:
        for batch in batches(items, _BATCH):
            results = client.put_items(arguments.collection, batch, model=arguments.model, fields=fields)
            failures += [(item.id, failed) for item, failed in zip(batch, results, strict=True) if failed]
            sent += len(batch)
            bar.add(len(batch))
    return _tell_added(arguments, total, sent, failures)


def _tell_added(arguments: argparse.Namespace, total: int, sent: int, failures: list[tuple[str, ItemFailure]]) -> int:
    left_out, added = total - sent, sent - len(failures)
    if arguments.json:
        told = [{"id": id_, "error": vars(failed)} for id_, failed in failures]
        more = {"left_out": left_out} if left_out else {}
        print(json.dumps({"collection": arguments.collection, "added": added, "failed": told} | more))
    else:
        print(f"{added} of {total} items are in {arguments.collection}")
        if left_out:
            print(f"  {left_out} rows were left out: their photos could not be described, as column error says")
        for id_, failed in failures[:_SHOWN]:
            print(f"  {id_}: {failed.message}")
        if len(failures) > _SHOWN:
            print(f"  and {len(failures) - _SHOWN} more; --json lists all")
    return 1 if failures else 0


def _check_described(arguments: argparse.Namespace, client: Client, described: Any) -> None:
    """Refuse a file of `penult describe` that another model made; the server looks again, item by item."""
    if described is None:
        return
    told = client.get_model(arguments.model).version
    if told.fingerprint != described.fingerprint:
        raise RequestFailed(
            "FAILED_PRECONDITION", "DESCRIPTOR_FINGERPRINT",
            f"{arguments.what} was described by {described.model} version {described.version} "
            f"({described.fingerprint[:12]}); {told.name} version {told.version} is another ({told.fingerprint[:12]})",
        )  # fmt: skip


def photo_item(photo: Path, arguments: argparse.Namespace) -> NewItem:
    """Return a photo of a folder as an item: its path there is the id, the folder that it lies in the label."""
    inside = photo.relative_to(arguments.what)
    label = normalised(inside.parts[-2]) if len(inside.parts) > 1 else ""
    thumbnail = b""
    if "thumbnail" in arguments.keep:
        from penult.client.tools import contact_sheet

        thumbnail = contact_sheet.thumbnail(photo)
    source = str(photo.resolve()) if "source" in arguments.keep else ""
    return NewItem(inside.as_posix(), photo, label=label, source=source, thumbnail=thumbnail)


# -- remove, drop ------------------------------------------------------------------------------------------------------


def _remove_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("ids", metavar="ID", nargs="+", help="items to remove")


def _remove(arguments: argparse.Namespace, client: Client) -> int:
    removed = sum(client.delete_items(arguments.collection, batch) for batch in batches(iter(arguments.ids)))
    _say(arguments, {"collection": arguments.collection, "removed": removed}, f"{removed} items removed")
    return 0


def _collection_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")


def _drop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed without a terminal")


def _drop(arguments: argparse.Namespace, client: Client) -> int:
    if not arguments.yes:
        if arguments.json or not sys.stdin.isatty():
            raise Refused(f"index drop would remove {arguments.collection} with all that it holds: add --yes")
        told = told_of(client, arguments.collection)
        print(f"Remove {told.name} with its {told.items} items? Nothing brings them back. [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Refused(f"{told.name} stays as it is")
    client.drop_collection(arguments.collection)
    _say(arguments, {"dropped": arguments.collection}, f"{arguments.collection} is gone")
    return 0


# -- list, stats, export -----------------------------------------------------------------------------------------------


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _list(arguments: argparse.Namespace, client: Client) -> int:
    told = client.list_collections()
    if arguments.json:
        print(json.dumps({"collections": [vars(each) for each in told]}))
        return 0
    rows = [[c.name, str(c.items), c.model, str(c.dimension), c.index, ", ".join(c.fields) or "–"] for c in told]
    print_table(["collection", "items", "model", "numbers", "search", "fields"], rows)
    return 0


def _stats(arguments: argparse.Namespace, client: Client) -> int:
    told = told_of(client, arguments.collection)
    labels: dict[str, int] = {}
    for page in pages(client, told.name):
        for item in page:
            labels[item.label] = labels.get(item.label, 0) + 1
    if arguments.json:
        print(json.dumps(vars(told) | {"labels": labels}))
        return 0
    about = vars(told) | {"fields": ", ".join(told.fields) or "–"}
    print_table(["what", told.name], [[name, str(value)] for name, value in about.items() if name != "name"])
    print()
    ranked = sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))
    print_table(["label", "items"], [[label or "(none)", str(count)] for label, count in ranked])
    return 0


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument(
        "out", type=file_to_write(PARQUET, "items are written as Parquet"), metavar="OUT.parquet",
        help="a file that penult index add takes again",
    )  # fmt: skip


def _export(arguments: argparse.Namespace, client: Client) -> int:
    from penult.client.tools import parquet

    told = told_of(client, arguments.collection)
    with Bar(told.items, has_bar()) as bar:

        def walked() -> Iterator[Sequence[StoredItem]]:
            for page in pages(client, told.name, descriptors=True, thumbnails=True):
                yield page
                bar.add(len(page))

        written = parquet.write_items(arguments.out, walked(), told.fields)
    _say(arguments, {"exported": written, "file": str(arguments.out)}, f"{written} items are in {arguments.out}")
    return 0


# -- duplicates, reindex -----------------------------------------------------------------------------------------------


def _duplicates_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument(
        "--max-distance",
        type=distance,
        default=0.02,
        metavar="D",
        help="1 - cosine of what counts as the same (%(default)s)",
    )


def _duplicates(arguments: argparse.Namespace, client: Client) -> int:
    told = told_of(client, arguments.collection)
    with Bar(told.items, has_bar()) as bar:
        found = pages(client, told.name, descriptors=True)
        pairs = find_duplicates(client, told.name, found, arguments.max_distance, bar.add)
    if arguments.json:
        print(json.dumps({"collection": told.name, "pairs": [vars(pair) for pair in pairs]}))
        return 0
    print_table(["similarity", "item", "label", "the same as", "label "], [_pair_row(pair) for pair in pairs])
    crossed = sum(pair.label != pair.other_label for pair in pairs)
    print(f"{len(pairs)} pairs; {crossed} of them bear two labels")
    return 0


def _pair_row(pair: Pair) -> list[str]:
    return [f"{pair.similarity:.4f}", pair.id, pair.label, pair.other, pair.other_label]


def _reindex_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("--model", required=True, metavar="NAME", help="what describes the items from now on")
    parser.add_argument("--version", type=count, default=0, metavar="V", help="which version (default: the newest)")
    parser.add_argument(
        "--photos",
        type=folder,
        metavar="FOLDER",
        help="where the photos lie, by id (default: sources, then thumbnails)",
    )
    parser.add_argument("--yes", action="store_true", help="leave items out whose photos are not to be had")


def _reindex(arguments: argparse.Namespace, client: Client) -> int:
    told = told_of(client, arguments.collection)
    with Bar(told.items, has_bar()) as bar:
        walk = partial(pages, client, told.name, descriptors=True, thumbnails=True)
        described, lost = reindex(
            client, told, walk, arguments.model, arguments.version, arguments.photos, bar.add, arguments.yes
        )
    line = f"{described} items of {told.name} are described by {arguments.model} now"
    if lost:
        line += f"; {len(lost)} were left out, for their photos are not to be had: {', '.join(lost[:_SHOWN])}"
    _say(arguments, {"collection": told.name, "described": described, "left_out": lost}, line)
    return 0


# -- what they share ---------------------------------------------------------------------------------------------------


def _say(arguments: argparse.Namespace, value: dict[str, Any], line: str) -> None:
    print(json.dumps(value) if arguments.json else line)


_VERBS: dict[
    str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace, Client], int]]
] = {
    "add": ("Store the photos of a folder, or the rows of a Parquet file.", _add_arguments, _add),
    "remove": ("Remove items by id.", _remove_arguments, _remove),
    "list": ("List the collections.", _no_arguments, _list),
    "stats": ("Tell what a collection holds, label by label.", _collection_argument, _stats),
    "export": ("Write a collection to a Parquet file.", _export_arguments, _export),
    "duplicates": ("Find items that are nearly the same.", _duplicates_arguments, _duplicates),
    "reindex": ("Describe all items anew with another model, then switch.", _reindex_arguments, _reindex),
    "drop": ("Remove a collection, after asking.", _drop_arguments, _drop),
}
