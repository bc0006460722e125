"""`penult index`: collections on a server, and `copy`, which needs none."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `penult index`."""
    from penult.cli.index_commands import add_index_arguments

    help_ = "Copy collections between stores, without a server; again where it was cut off."
    copy = add_index_arguments(parser).add_parser("copy", help=help_, description=help_)
    copy.add_argument(
        "source", metavar="FROM",
        help="where from, as serve --lookup: a folder (by default that is `lookup`, beside the model repository), "
        "postgresql://…, milvus://…",
    )  # fmt: skip
    copy.add_argument("target", metavar="TO", help="where to, in the same way")
    copy.add_argument("collections", metavar="COLLECTION", nargs="*", help="which (default: all)")
    copy.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run one of them; return 0 or 1."""
    if arguments.index_verb == "copy":
        return _copy(arguments)
    from penult.cli.index_commands import index

    return index(arguments)


def _copy(arguments: argparse.Namespace) -> int:
    from contextlib import closing

    from penult.cli.classify import has_bar
    from penult.cli.client_arguments import Refused
    from penult.client.batch_calls import Bar
    from penult.lookup.copying import copy_collection
    from penult.lookup.opening import open_store
    from penult.nearest import did_you_mean

    copied = {}
    with closing(open_store(arguments.source)) as source, closing(open_store(arguments.target)) as target:
        known = [spec.name for spec in source.specs()]
        for name in arguments.collections:
            if name not in known:
                there = f"there is {', '.join(known)}" if known else "it holds none"
                raise Refused(f"there is no collection {name} in FROM; {there}{did_you_mean(name, known)}")
        for name in arguments.collections or known:
            with Bar(source.open(name).stats().items, has_bar()) as bar:
                copied[name] = copy_collection(source, target, name, bar.add)
            if not arguments.json:
                print(f"{name}: {copied[name]} items copied, {target.open(name).stats().items} are there")
    if arguments.json:
        print(json.dumps({"copied": copied}))
    return 0
