"""The text of a measurement: its state while it runs, and its report."""

from collections.abc import Iterable, Sequence

from penult.bench.measure import Latency, Report
from penult.bench.pace import Progress, Watch
from penult.bench.settings import LoadSettings
from penult.console import StatusLine, table

_FEW_REQUESTS = 1000


def shown_on(line: StatusLine) -> Watch:
    """Return what shows the state of a run on a status line."""
    return lambda progress: line.show(progress_line(progress))


def progress_line(progress: Progress) -> str:
    """Return the state of a run in one line."""
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
    """Return a report as text."""
    settings, model = report.settings, report.model
    yield (
        f"{model.name} version {model.version} ({model.architecture}, {model.provider}) at {settings.target}, "
        f"fingerprint {model.fingerprint[:12]}"
    )
    yield f"{load_words(settings)}, {report.message_bytes / 1000:.0f} kB"
    yield f"photos: {report.photos}; {report.window_s:.1f} s measured, {report.requests} requests"
    yield ""
    rates = [report.images_per_s, report.good_images_per_s, report.requests_per_s]
    yield from table([["images/s", "good images/s", "requests/s"], [f"{rate:.1f}" for rate in rates]], left=1)
    yield ""
    yield from table([["latency, ms", "p50", "p90", "p95", "p99", "p99.9", "max"], *_latency_rows(report)], left=1)
    yield from _more(report)


def load_words(settings: LoadSettings) -> str:
    """Return the load in a few words."""
    count = settings.images_per_request
    each = "1 image" if count == 1 else f"{count} images"
    if settings.rate:
        return f"open loop, {settings.rate:g} images/s due, {settings.arrivals} arrivals, {each} a request"
    if settings.is_stream:
        return f"closed loop, {settings.concurrency} streams with {settings.window} requests in flight, {each} each"
    return f"closed loop, {settings.concurrency} requests in flight, {each} each"


def _latency_rows(report: Report) -> Iterable[list[str]]:
    for name, latency in (("answered", report.latency), ("failed", report.rejected)):
        if latency:
            yield [name, *(f"{value:.1f}" for value in _percentiles(latency))]


def _percentiles(latency: Latency) -> Sequence[float]:
    return latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.p99_9_ms, latency.max_ms


def _more(report: Report) -> Iterable[str]:
    """Return further lines, each only if it applies."""
    if report.latency and report.latency.requests < _FEW_REQUESTS:
        yield f"p99.9 of {report.latency.requests} requests is the slowest of them; measure longer for more"
    if report.latency:
        stages = ", ".join(f"{name.removesuffix('_ms')} {value:.1f}" for name, value in report.stages_ms.items())
        yield f"in the server, mean ms: {stages}"
    for name, value, what in (
        ("client", report.client_cpu_ms_per_image, ""),
        ("server", report.server_cpu_ms_per_image, _batch(report)),
    ):
        if value is not None:
            yield f"{name}: {value:.2f} CPU-ms per image{what}"
    for name, counts in (("requests failed", report.errors), ("images failed", report.item_errors)):
        if counts:
            yield f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    if report.settings.rate:
        yield f"sent late by this program: p99 {report.late_p99_ms:.1f} ms (counted in latency)"
    if report.not_sent:
        yield f"not sent: {report.not_sent} requests, as too many were unanswered; the server cannot sustain this rate"
    if report.unfinished:
        yield f"unanswered at the end: {report.unfinished} requests, whose latency is not included above"
    if report.is_interrupted:
        yield "interrupted: the numbers are those until then"


def _batch(report: Report) -> str:
    return f", {report.server_batch_images:.1f} images per run of the model" if report.server_batch_images else ""
