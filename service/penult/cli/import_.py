"""`penult import`: publish a model that was trained elsewhere as a bundle."""

import argparse
import json
import time
from typing import Any

from penult.cli.published import next_steps, print_published
from penult.console import say
from penult.export.config.import_model import ImportSettings

add_arguments = ImportSettings.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Import, compare and publish; return 0."""
    from penult.export.jobs.preflight import check_import

    settings = ImportSettings.load(arguments)
    check_import(settings)
    from penult.export.jobs.import_model import import_model

    started = time.monotonic()
    result = import_model(settings)
    seconds = round(time.monotonic() - started, 1)
    more = {"imported": result.metrics["imported"], "parity": result.metrics["parity"], "seconds": seconds}
    if result.metrics["test"]:
        print_published(arguments, result, **more)
    elif arguments.json:
        print(json.dumps({"bundle": str(result.folder), "default_scorer": "dense", "test": {}, **more}))
    else:
        print("\n".join(_unmeasured(result)))
    if not arguments.json:
        print("\n".join(next_steps(result.folder, settings.photos)))
    say(f"done in {seconds} s")
    return 0


def _unmeasured(result: Any) -> list[str]:
    """Return what is said of a bundle that no labelled photos have measured."""
    return [
        "scorer: dense, not calibrated and not measured; "
        f"penult svm {result.folder.parent} PHOTOS does both on labelled photos",
        f"bundle: {result.folder}",
    ]
