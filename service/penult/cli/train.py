"""`penult train`: one run, a sweep, or what a run would do."""

import argparse
import json
import os
import sys
from typing import Any

from penult.cli import fail
from penult.cli.published import as_json, link, next_steps, show_last, show_published


def run(arguments: argparse.Namespace) -> int:
    """Learn, compare settings, or show the plan; return 0, or 1 if int8 is refused."""
    from penult.export.config.train import TrainSettings
    from penult.export.jobs.early import check_training
    from penult.process_limits import keep_all_blocks

    settings = TrainSettings.load(arguments)
    check_training(settings)
    keep_all_blocks()  # every step takes and frees the same activations
    print("loading PyTorch", file=sys.stderr)
    if settings.dry_run:
        from penult.export.jobs.dry_run import show

        show(settings, arguments.json)
        return 0
    if settings.sweep != "no":
        return _sweep(arguments, settings)
    from penult.export.jobs.train import train

    result = train(settings)
    if os.environ.get("RANK", "0") != "0":
        return 0  # under torchrun, the first process speaks for all
    return _add_int8(arguments, settings, result) if settings.int8 else show_last(arguments, result)


def _add_int8(arguments: argparse.Namespace, settings: Any, result: Any) -> int:
    """Publish the int8 version too; the float one stays, whatever comes. Return 1 where int8 is refused."""
    from penult.bundle.errors import PenultError
    from penult.export.jobs.quantize import after_training

    if not arguments.json:
        show_published(arguments, result)
    try:
        added = after_training(settings, int(result.folder.name))
    except PenultError as error:
        if arguments.json:
            show_published(arguments, result, int8={"refused": error.message})
        else:
            print("\n".join(next_steps(result.folder, arguments.data)))
        return fail(f"version {result.folder.name} is published, in float; {error.message}")
    if arguments.json:
        return show_published(arguments, result, int8=as_json(added, **added.metrics["int8"]))
    return show_last(arguments, added)


def _sweep(arguments: argparse.Namespace, settings: Any) -> int:
    from penult.export.jobs import sweep_view
    from penult.export.jobs.early import sweep_folder
    from penult.export.jobs.train import compare

    sweep, folder = compare(settings), sweep_folder(settings)
    if os.environ.get("RANK", "0") != "0":
        return 0
    if arguments.json:
        print(json.dumps({"sweep": sweep.kind, "folder": str(folder), "advice": sweep_view.advice(sweep),
                          "trials": sweep_view.rows(sweep)}))  # fmt: skip
        return 0
    from penult.cli.console import print_table

    print_table(["mode", sweep_view.AXES[sweep.kind], "validation", "test", "scorer"], sweep_view.table(sweep))
    print(f"{sweep_view.advice(sweep)}\npicture: {link(folder / 'sweep.png')}\ntable: {folder / 'table.csv'}")
    return 0
