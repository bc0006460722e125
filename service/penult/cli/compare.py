"""`penult compare`: two versions of a model on the same labelled photos."""

import argparse
import json
from typing import Any

from penult.cli.published import link
from penult.console import print_error, print_table
from penult.export.config.compare import CompareSettings

add_arguments = CompareSettings.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print what differs; return 0, or 1 if the latter version does not pass the gate asked for."""
    from penult.export.jobs.preflight import check_comparison

    settings = CompareSettings.load(arguments)
    check_comparison(settings)
    from penult.export.jobs.compare import compare

    compared = compare(settings)
    if arguments.json:
        print(json.dumps(compared.as_json(), ensure_ascii=False))
    else:
        _print(compared)
    return print_error(compared.failure) if compared.failure else 0


def _print(compared: Any) -> None:
    from penult.export.evaluation.accuracy import between, counted, decimal, stated

    found = compared.found
    header = ["version", "scorer", "right", "accuracy", "95 % interval", "macro-F1", "calibration error", "CPU-ms"]
    rows = [
        [str(each.version), each.scorer, counted(each.figures), stated(each.figures),
         between(*each.figures["accuracy_95"]), decimal(each.figures["macro_f1"], each.figures),
         f"{100 * each.figures['ece']:.1f} %", ms]
        for each, ms in zip(found.versions, found.times.texts, strict=True)
    ]  # fmt: skip
    print_table(header, rows)
    print(compared.sentence)
    counts = ", ".join(f"{name}: {len(rows)}" for name, rows in found.comparison.changes.items())
    print(f"{counts}; same answer: {100 * found.comparison.agreement:.1f} %")
    for line in (found.copies, found.speed):
        if line:
            print(line)
    print(f"page: {link(compared.page)}\nphotos: {compared.table}")
