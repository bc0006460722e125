"""`penult train`: train once, sweep settings, or print the plan of a run."""

import argparse
import json
import os
import time
from typing import Any

from penult.cli.published import as_json, link, next_steps, print_last, print_published
from penult.console import duration, print_error, print_table, say
from penult.export.config.train import TrainSettings

add_arguments = TrainSettings.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Train, compare settings, or print the plan; return 0, or 1 if the int8 version is rejected."""
    began = time.monotonic()
    from penult.export.jobs.preflight import check_training
    from penult.process_limits import keep_all_blocks

    settings = TrainSettings.load(arguments)
    check_training(settings)
    keep_all_blocks()  # every step allocates and frees the same activations
    say("loading PyTorch")
    if settings.dry_run:
        from penult.export.jobs.dry_run import show

        show(settings, arguments.json)
        return 0
    if settings.sweep != "no":
        return _sweep(arguments, settings)
    if settings.budget:
        return _budget(arguments, settings, began)
    if settings.budget_plan:
        from penult.export.jobs.budget import replay as train
    else:
        from penult.export.jobs.train import train

    result = train(settings)
    if os.environ.get("RANK", "0") != "0":
        return 0  # under torchrun, the first process prints for all
    return _add_int8(arguments, settings, result) if settings.int8 else print_last(arguments, result)


def _add_int8(arguments: argparse.Namespace, settings: Any, result: Any) -> int:
    """Publish the int8 version too; return 1 if it is rejected. The float version stays in either case."""
    from penult.bundle.errors import PenultError
    from penult.export.jobs.quantize import after_training

    if not arguments.json:
        print_published(arguments, result)
    try:
        added = after_training(settings, int(result.folder.name))
    except PenultError as error:
        if arguments.json:
            print_published(arguments, result, int8={"refused": error.message})
        else:
            print("\n".join(next_steps(result.folder, arguments.data)))
        return print_error(f"version {result.folder.name} is published, in float; {error.message}")
    if arguments.json:
        return print_published(arguments, result, int8=as_json(added, **added.metrics["int8"]))
    return print_last(arguments, added)


def _budget(arguments: argparse.Namespace, settings: Any, began: float) -> int:
    from penult.export.jobs import budget_view
    from penult.export.jobs.budget import run_budget
    from penult.export.jobs.preflight import budget_folder
    from penult.export.report import budget_table

    result, folder = run_budget(settings, began), budget_folder(settings)
    if os.environ.get("RANK", "0") != "0":
        return 0
    plan, seconds = budget_view.read(folder), round(time.monotonic() - began, 1)
    if arguments.json:
        return print_published(arguments, result, budget=plan, seconds=seconds)
    print_table(budget_table.HEADER, budget_table.rows(plan))
    print("\n".join(plan["decisions"]))
    print(f"tried: {link(folder / 'trials.png')}\nplan: {folder / 'budget.json'}\ntime: {duration(seconds)}")
    return print_last(arguments, result)


def _sweep(arguments: argparse.Namespace, settings: Any) -> int:
    from penult.export.jobs import sweep_view
    from penult.export.jobs.preflight import sweep_folder
    from penult.export.jobs.run_sweep import run_sweep

    sweep, folder = run_sweep(settings), sweep_folder(settings)
    if os.environ.get("RANK", "0") != "0":
        return 0
    if arguments.json:
        print(json.dumps({"sweep": sweep.kind, "folder": str(folder), "advice": sweep_view.advice(sweep),
                          "trials": sweep_view.rows(sweep)}))  # fmt: skip
        return 0
    print_table(["mode", sweep_view.AXES[sweep.kind], "validation", "test", "scorer"], sweep_view.table(sweep))
    print(f"{sweep_view.advice(sweep)}\nplot: {link(folder / 'sweep.png')}\ntable: {folder / 'table.csv'}")
    return 0
