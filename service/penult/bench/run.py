"""`penult bench` from options to answer: measure one server, or let tune try settings."""

import asyncio
import json
import sys

from penult.bench import load, photos, record, show
from penult.bench.measure import Report
from penult.bench.settings import BenchSettings
from penult.client.hints import explaining


def bench(settings: BenchSettings) -> int:
    """Run the verb; return 0, or 1 where not one image was answered well. Raises BenchError, RequestFailed."""
    record.check_folder(settings.out)
    if settings.load.photos:
        photos.paths_in(settings.load.photos)
    if settings.tune:
        from penult.bench.tune import tune

        return tune(settings)
    with explaining(settings.load.target, settings.load.security, settings.load.model):
        report = measure(settings)
    _tell(settings, report)
    if not report.good_images_per_s:
        print("penult: no image was answered; see the errors above", file=sys.stderr)
    return 0 if report.good_images_per_s else 1


def measure(settings: BenchSettings) -> Report:
    """Put the load on, with a line of progress."""
    line = show.ProgressLine()
    try:
        return asyncio.run(load.run(settings.load, watch=line))
    finally:
        line.close()


def _tell(settings: BenchSettings, report: Report) -> None:
    numbers = record.as_json(report)
    if settings.as_json:
        print(json.dumps(numbers))
    else:
        print("\n".join(show.report_lines(report)))
    if settings.out:
        files = record.write(settings.out, "bench", numbers, lambda: _draw(report))
        print("written: " + ", ".join(map(str, files)), file=sys.stderr)


def _draw(report: Report) -> bytes:
    from penult.bench import picture

    return picture.bench(report)
