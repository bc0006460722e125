"""`penult calibrate`: certify thresholds of a model on further labelled photos."""

import argparse
import json
from typing import Any

from penult.cli.published import link
from penult.console import print_table
from penult.export.config.calibrate import CalibrateSettings

add_arguments = CalibrateSettings.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Certify and publish; return 0. Raises PenultError if nothing can be certified."""
    from penult.export.jobs.preflight import check_calibration

    settings = CalibrateSettings.load(arguments)
    check_calibration(settings)
    from penult.export.jobs.calibrate import calibrate

    result = calibrate(settings)
    if arguments.json:
        print(json.dumps({"bundle": str(result.folder), "abstaining": result.metrics["abstaining"]}))
        return 0
    print_table(["scorer", "error at most", "threshold", "answered", "wrong"], _rows(result.metrics["abstaining"]))
    for sentence in result.metrics["abstaining"]["sentences"]:
        print(sentence)
    print(f"bundle: {result.folder}")
    print(f"report: {link(result.folder / 'report' / 'index.html')}")
    return 0


def _rows(entry: dict[str, Any]) -> list[list[str]]:
    from penult.bundle.operating_points import percent

    return [
        [point["scorer"] + " (default)" * point["is_default"], percent(point["max_error"]), _threshold(point),
         f"{point['answered']} of {point['photos']}", str(point["wrong"])]
        for point in entry["points"]
    ]  # fmt: skip


def _threshold(point: dict[str, Any]) -> str:
    return f"{point['thresholds'][0]:.3f}" if len(point["thresholds"]) == 1 else "by class"
