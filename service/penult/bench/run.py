"""`penult bench` from settings to exit code: measure one server, or tune."""

import asyncio
import json

from penult.bench import load, photos, record, show
from penult.bench.measure import Report
from penult.bench.settings import BenchSettings
from penult.client.hints import explaining
from penult.console import StatusLine, print_error, say


def bench(settings: BenchSettings) -> int:
    """Run the command; return 0, or 1 if no image was answered. Raises BenchError, RequestFailed."""
    record.check_folder(settings.out)
    if settings.load.photos:
        photos.paths_in(settings.load.photos)
    if settings.tune:
        from penult.bench.tune import tune

        return tune(settings)
    with explaining(settings.load.target, settings.load.security, settings.load.model):
        report = measure(settings)
    _print(settings, report)
    return 0 if report.good_images_per_s else print_error("no image was answered; see the errors above")


def measure(settings: BenchSettings) -> Report:
    """Run the load under a status line."""
    line = StatusLine("bench")
    try:
        return asyncio.run(load.run(settings.load, watch=show.shown_on(line)))
    finally:
        line.close()


def _print(settings: BenchSettings, report: Report) -> None:
    numbers = record.as_json(report)
    if settings.as_json:
        print(json.dumps(numbers))
    else:
        print("\n".join(show.report_lines(report)))
    if settings.out:
        files = record.write(settings.out, "bench", numbers, lambda: _draw(report))
        say("written: " + ", ".join(map(str, files)))


def _draw(report: Report) -> bytes:
    from penult.bench import picture

    return picture.bench(report)
