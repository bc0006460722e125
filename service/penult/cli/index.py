"""`penult index`: manage the collections of a server, and copy collections between stores."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from penult.cli.arguments import (
    PARQUET,
    Refused,
    add_connection_arguments,
    client_of,
    count,
    distance,
    explained,
    file_to_write,
    folder,
    named_photos,
)
from penult.client.sync_client import Client
from penult.client.tools.collection_pages import batches, collection_info, pages
from penult.client.tools.duplicates import Pair, find_duplicates
from penult.client.tools.reindex import reindex
from penult.client.types import ItemFailure, NewItem, RequestFailed, StoredItem
from penult.console import Bar, print_table
from penult.folders.names import normalised
from penult.nearest import did_you_mean

_BATCH = 64
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `penult index` and their options."""
    commands = parser.add_subparsers(dest="index_command", required=True, metavar="COMMAND")
    for name, (help_, add, act) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_, description=help_)
        command.set_defaults(act=act)
        add(command)
        add_connection_arguments(command)
    help_ = "Copy collections between stores, without a server; run again to resume."
    copy = commands.add_parser("copy", help=help_, description=help_)
    copy.set_defaults(act=None)
    store = "a folder, postgresql://…, or milvus://…, as in serve --lookup"
    copy.add_argument("source", metavar="FROM", help=f"store to read: {store}")
    copy.add_argument("target", metavar="TO", help=f"store to write: {store}")
    copy.add_argument("collections", metavar="COLLECTION", nargs="*", help="collections to copy (default: all)")
    copy.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run one of them; return 0 or 1. Raises RequestFailed, Refused."""
    act: Callable[[argparse.Namespace, Client], int] | None = arguments.act
    if act is None:
        return _copy(arguments)
    with explained(arguments, getattr(arguments, "collection", "")), client_of(arguments) as client:
        return act(arguments, client)


# -- add ---------------------------------------------------------------------------------------------------------------


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION", help="created if it does not exist")
    parser.add_argument(
        "what",
        type=Path,
        metavar="FOLDER|PARQUET",
        help="class folders of photos; or rows of id, descriptor or image, label, metadata",
    )
    parser.add_argument("--model", default="", metavar="NAME", help="model that describes photos (the only one)")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        choices=("source", "thumbnail"),
        help="store the photo's path, or a small JPEG, for sheets and reindex",
    )


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
    with Bar(total) as bar:
        for batch in batches(items, _BATCH):
            results = client.put_items(arguments.collection, batch, model=arguments.model, fields=fields)
            failures += [(item.id, failed) for item, failed in zip(batch, results, strict=True) if failed]
            sent += len(batch)
            bar.add(len(batch))
    return _print_added(arguments, total, sent, failures)


def _print_added(arguments: argparse.Namespace, total: int, sent: int, failures: list[tuple[str, ItemFailure]]) -> int:
    left_out, added = total - sent, sent - len(failures)
    if arguments.json:
        failed_items = [{"id": id_, "error": vars(failed)} for id_, failed in failures]
        more = {"left_out": left_out} if left_out else {}
        print(json.dumps({"collection": arguments.collection, "added": added, "failed": failed_items} | more))
    else:
        print(f"{added} of {total} items are in {arguments.collection}")
        if left_out:
            print(f"  {left_out} rows were left out: their photos could not be described; see the column error")
        for id_, failed in failures[:_SHOWN]:
            print(f"  {id_}: {failed.message}")
        if len(failures) > _SHOWN:
            print(f"  and {len(failures) - _SHOWN} more; --json lists all")
    return 1 if failures else 0


def _check_described(arguments: argparse.Namespace, client: Client, described: Any) -> None:
    """Reject a file of `penult describe` that another model made; the server verifies each item again."""
    if described is None:
        return
    served = client.get_model(arguments.model).version
    if served.fingerprint != described.fingerprint:
        raise RequestFailed(
            "FAILED_PRECONDITION",
            "DESCRIPTOR_FINGERPRINT",
            f"{arguments.what} was described by {described.model} version {described.version} "
            f"({described.fingerprint[:12]}); {served.name} version {served.version} is another "
            f"({served.fingerprint[:12]})",
        )


def photo_item(photo: Path, arguments: argparse.Namespace) -> NewItem:
    """Return an image of a folder as an item; its path is the id, its folder's name the label."""
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
    parser.add_argument("ids", metavar="ID", nargs="+", help="ids of the items")


def _remove(arguments: argparse.Namespace, client: Client) -> int:
    removed = sum(client.delete_items(arguments.collection, batch) for batch in batches(iter(arguments.ids)))
    _print(arguments, {"collection": arguments.collection, "removed": removed}, f"{removed} items removed")
    return 0


def _collection_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")


def _drop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("--yes", action="store_true", help="do not ask; required without a terminal")


def _drop(arguments: argparse.Namespace, client: Client) -> int:
    if not arguments.yes:
        if arguments.json or not sys.stdin.isatty():
            raise Refused(f"index drop would remove {arguments.collection} with all its items: add --yes")
        info = collection_info(client, arguments.collection)
        print(f"Remove {info.name} with its {info.items} items? This cannot be undone. [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Refused(f"{info.name} is unchanged")
    client.drop_collection(arguments.collection)
    _print(arguments, {"dropped": arguments.collection}, f"{arguments.collection} removed")
    return 0


# -- list, stats, export -----------------------------------------------------------------------------------------------


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _list(arguments: argparse.Namespace, client: Client) -> int:
    found = client.list_collections()
    if arguments.json:
        print(json.dumps({"collections": [vars(each) for each in found]}))
        return 0
    rows = [[c.name, str(c.items), c.model, str(c.dimension), c.index, ", ".join(c.fields) or "–"] for c in found]
    print_table(["collection", "items", "model", "numbers", "search", "fields"], rows)
    return 0


def _stats(arguments: argparse.Namespace, client: Client) -> int:
    info = collection_info(client, arguments.collection)
    labels: dict[str, int] = {}
    for page in pages(client, info.name):
        for item in page:
            labels[item.label] = labels.get(item.label, 0) + 1
    if arguments.json:
        print(json.dumps(vars(info) | {"labels": labels}))
        return 0
    about = vars(info) | {"fields": ", ".join(info.fields) or "–"}
    print_table(["what", info.name], [[name, str(value)] for name, value in about.items() if name != "name"])
    print()
    ranked = sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))
    print_table(["label", "items"], [[label or "(none)", str(count)] for label, count in ranked])
    return 0


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument(
        "out",
        type=file_to_write(PARQUET, "items are written as Parquet"),
        metavar="OUT.parquet",
        help="file that penult index add can read",
    )


def _export(arguments: argparse.Namespace, client: Client) -> int:
    from penult.client.tools import parquet

    info = collection_info(client, arguments.collection)
    with Bar(info.items) as bar:

        def walked() -> Iterator[Sequence[StoredItem]]:
            for page in pages(client, info.name, descriptors=True, thumbnails=True):
                yield page
                bar.add(len(page))

        written = parquet.write_items(arguments.out, walked(), info.fields)
    _print(arguments, {"exported": written, "file": str(arguments.out)}, f"{written} items are in {arguments.out}")
    return 0


# -- duplicates, reindex -----------------------------------------------------------------------------------------------


def _duplicates_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument(
        "--max-distance", type=distance, default=0.02, metavar="D", help="maximum 1 - cosine of a pair (%(default)s)"
    )


def _duplicates(arguments: argparse.Namespace, client: Client) -> int:
    info = collection_info(client, arguments.collection)
    with Bar(info.items) as bar:
        found = pages(client, info.name, descriptors=True)
        pairs = find_duplicates(client, info.name, found, arguments.max_distance, bar.add)
    if arguments.json:
        print(json.dumps({"collection": info.name, "pairs": [vars(pair) for pair in pairs]}))
        return 0
    print_table(["similarity", "item", "label", "the same as", "label "], [_pair_row(pair) for pair in pairs])
    crossed = sum(pair.label != pair.other_label for pair in pairs)
    print(f"{len(pairs)} pairs; {crossed} of them have two labels")
    return 0


def _pair_row(pair: Pair) -> list[str]:
    return [f"{pair.similarity:.4f}", pair.id, pair.label, pair.other, pair.other_label]


def _reindex_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("--model", required=True, metavar="NAME", help="model that describes the items from now on")
    parser.add_argument("--version", type=count, default=0, metavar="V", help="model version (default: the newest)")
    parser.add_argument(
        "--photos", type=folder, metavar="FOLDER", help="folder of the photos, by id (sources, then thumbnails)"
    )
    parser.add_argument("--yes", action="store_true", help="leave out items whose photos are missing")


def _reindex(arguments: argparse.Namespace, client: Client) -> int:
    info = collection_info(client, arguments.collection)
    with Bar(info.items) as bar:
        walk = partial(pages, client, info.name, descriptors=True, thumbnails=True)
        described, lost = reindex(
            client, info, walk, arguments.model, arguments.version, arguments.photos, bar.add, arguments.yes
        )
    line = f"{described} items of {info.name} are described by {arguments.model} now"
    if lost:
        line += f"; {len(lost)} were left out, as their photos are missing: {', '.join(lost[:_SHOWN])}"
    _print(arguments, {"collection": info.name, "described": described, "left_out": lost}, line)
    return 0


# -- copy --------------------------------------------------------------------------------------------------------------


def _copy(arguments: argparse.Namespace) -> int:
    from penult.lookup.copying import copy_collection
    from penult.lookup.opening import open_store

    copied = {}
    with closing(open_store(arguments.source)) as source, closing(open_store(arguments.target)) as target:
        known = [spec.name for spec in source.specs()]
        for name in arguments.collections:
            if name not in known:
                there = f"there is {', '.join(known)}" if known else "it holds none"
                raise Refused(f"there is no collection {name} in FROM; {there}{did_you_mean(name, known)}")
        for name in arguments.collections or known:
            with Bar(source.open(name).stats().items) as bar:
                copied[name] = copy_collection(source, target, name, bar.add)
            if not arguments.json:
                print(f"{name}: {copied[name]} items copied, {target.open(name).stats().items} are there")
    if arguments.json:
        print(json.dumps({"copied": copied}))
    return 0


# ----------------------------------------------------------------------------------------------------------------------


def _print(arguments: argparse.Namespace, value: dict[str, Any], line: str) -> None:
    print(json.dumps(value) if arguments.json else line)


_COMMANDS: dict[
    str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace, Client], int]]
] = {
    "add": ("Store the photos of a folder, or the rows of a Parquet file.", _add_arguments, _add),
    "remove": ("Remove items by id.", _remove_arguments, _remove),
    "list": ("List the collections.", _no_arguments, _list),
    "stats": ("Show what a collection holds, label by label.", _collection_argument, _stats),
    "export": ("Write a collection to a Parquet file.", _export_arguments, _export),
    "duplicates": ("Find items that are nearly the same.", _duplicates_arguments, _duplicates),
    "reindex": ("Describe all items with another model, then switch.", _reindex_arguments, _reindex),
    "drop": ("Remove a collection, after asking.", _drop_arguments, _drop),
}
