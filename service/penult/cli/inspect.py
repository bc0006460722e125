"""`penult inspect`: suspect labels, copies and weak photos, before anything is learnt from them."""

import argparse
import json

from penult.cli.published import link
from penult.console import print_table
from penult.export.config.inspect import InspectSettings

add_arguments = InspectSettings.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Inspect, and print where the results are; return 0."""
    from penult.export.jobs.preflight import check_inspection

    settings = InspectSettings.load(arguments)
    check_inspection(settings)
    from penult.export.jobs.inspect import inspect

    found = inspect(settings)
    if arguments.json:
        print(json.dumps(found.as_json(), ensure_ascii=False))
        return 0
    if found.worst:
        print_table(["image", "label", "suggested", "score"], found.worst)
    print("\n".join([found.sentence, f"page: {link(found.page)}", f"suspects: {found.suspects}",
                     f"copies: {found.duplicates}"]))  # fmt: skip
    return 0
