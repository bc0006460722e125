"""What people see: a line while it runs, a few lines of numbers after. Progress goes to standard error."""

import sys
import time
from collections.abc import Iterable, Sequence

from penult.bench.measure import Latency, Report
from penult.bench.pace import Progress
from penult.bench.settings import LoadSettings

_EVERY_S = 5.0
_FEW_REQUESTS = 1000


class ProgressLine:
    """One line that is rewritten on a terminal; into a file, a line every few seconds."""

    def __init__(self, title: str = "bench") -> None:
        """`title` begins every line."""
        self._title, self._is_terminal, self._next_s = title, sys.stderr.isatty(), time.monotonic() + _EVERY_S

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""
        line = f"{self._title}: {progress_line(progress)}"
        if self._is_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _EVERY_S
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the line away."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def progress_line(progress: Progress) -> str:
    """Write one state in a line."""
    of = f" of {progress.of_seconds:.0f}" if progress.of_seconds else ""
    if progress.of_seconds and progress.seconds > progress.of_seconds:
        state = "waiting for the last answers"
    else:
        state = "warming up" if progress.is_warmup else "measuring"
    failed = f", {progress.failed} requests failed" if progress.failed else ""
    return (
        f"{state}, {progress.seconds:.0f}{of} s, {progress.images} images, {progress.images_per_s:.0f} images/s{failed}"
    )


def report_lines(report: Report) -> Iterable[str]:
    """Write a report for people."""
    settings, model = report.settings, report.model
    yield (
        f"{model.name} version {model.version} ({model.architecture}, {model.provider}) at {settings.target}, "
        f"fingerprint {model.fingerprint[:12]}"
    )
    yield f"{load_words(settings)}, {report.message_bytes / 1000:.0f} kB"
    yield f"photos: {report.photos}; {report.window_s:.1f} s measured, {report.requests} requests"
    yield ""
    yield from table([
        ["images/s", "good images/s", "requests/s"],
        [f"{report.images_per_s:.1f}", f"{report.good_images_per_s:.1f}", f"{report.requests_per_s:.1f}"],
    ])  # fmt: skip
    yield ""
    yield from table([["latency, ms", "p50", "p90", "p95", "p99", "p99.9", "max"], *_latency_rows(report)])
    yield from _more(report)


def load_words(settings: LoadSettings) -> str:
    """Name the load in a few words."""
    count = settings.images_per_request
    each = "1 image" if count == 1 else f"{count} images"
    if settings.rate:
        return f"open loop, {settings.rate:g} images/s due, {settings.arrivals} arrivals, {each} a request"
    if settings.is_stream:
        return f"closed loop, {settings.concurrency} streams with {settings.window} requests on their way, {each} each"
    return f"closed loop, {settings.concurrency} requests on their way, {each} each"


def _latency_rows(report: Report) -> Iterable[list[str]]:
    for name, latency in (("answered", report.latency), ("failed", report.rejected)):
        if latency:
            yield [name, *(f"{value:.1f}" for value in _percentiles(latency))]


def _percentiles(latency: Latency) -> Sequence[float]:
    return latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.p99_9_ms, latency.max_ms


def _more(report: Report) -> Iterable[str]:
    """Say what else a reader must know, each only where it is so."""
    if report.latency and report.latency.requests < _FEW_REQUESTS:
        yield f"p99.9 of {report.latency.requests} requests is the slowest of them; measure longer for more"
    if report.latency:
        stages = ", ".join(f"{name.removesuffix('_ms')} {value:.1f}" for name, value in report.stages_ms.items())
        yield f"in the server, mean ms: {stages}"
    for name, value, what in (
        ("client", report.client_cpu_ms_per_image, ""), ("server", report.server_cpu_ms_per_image, _batch(report)),
    ):  # fmt: skip
        if value is not None:
            yield f"{name}: {value:.2f} CPU-ms per image{what}"
    for name, counts in (("requests failed", report.errors), ("images failed", report.item_errors)):
        if counts:
            yield f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    if report.settings.rate:
        yield f"sent late by this program: p99 {report.late_p99_ms:.1f} ms (counted in latency)"
    if report.not_sent:
        yield f"not sent: {report.not_sent} requests, as too many were unanswered: the server cannot follow this rate"
    if report.unfinished:
        yield f"unanswered when it ended: {report.unfinished} requests, whose latency is not in the numbers above"
    if report.is_interrupted:
        yield "interrupted: the numbers are of what was measured by then"


def _batch(report: Report) -> str:
    return f", {report.server_batch_images:.1f} images per run of the model" if report.server_batch_images else ""


def table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Align columns: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()
