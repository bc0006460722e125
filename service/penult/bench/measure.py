"""From one row per request to the numbers of a report: rates, percentiles, errors, CPU time.

Rates and CPU time count the requests answered within the window, so that those at its two edges cancel out. Latencies
and errors count the requests that were due within it, however late the answer, so that the slowest are included.
"""

import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from penult.bench.settings import BenchError, LoadSettings
from penult.proxies import proxy_for

OK = "OK"
_QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p99_9_ms": 0.999}
_METRICS_TIMEOUT_S = 5.0
_CPU = "process_cpu_seconds_total"
_BATCHES, _BATCHED = "penult_batch_size_count", "penult_batch_size_sum"


class Row(NamedTuple):
    """One request: when it was due, sent and over (seconds of one clock), its gRPC code, its images."""

    due_s: float
    sent_s: float
    over_s: float
    code: str
    images: int
    failed_images: int


@dataclass(frozen=True)
class Model:
    """The model that answers, from GetModel."""

    name: str
    version: int
    fingerprint: str
    architecture: str
    provider: str
    crop: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds from due to answered, over `requests` requests; percentiles are values that occurred."""

    requests: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float


@dataclass(frozen=True)
class Load:
    """The rows of all requests, counts of what has no row, and the limits of the window."""

    rows: Sequence[Row]
    start_s: float
    end_s: float
    unfinished: int
    not_sent: int
    is_interrupted: bool
    item_errors: Counter[str]
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class Usage:
    """CPU seconds of this process, and of the server if its metrics are known, at one moment."""

    client_s: float
    server: dict[str, float] | None


@dataclass(frozen=True)
class Report:
    """One measured load. Rates are per second of the window; times are ms, `rows` in seconds from its start."""

    settings: LoadSettings
    model: Model
    photos: str
    message_bytes: float
    window_s: float
    requests: int
    images_per_s: float
    good_images_per_s: float
    requests_per_s: float
    latency: Latency | None
    rejected: Latency | None
    errors: dict[str, int]
    item_errors: dict[str, int]
    unfinished: int
    not_sent: int
    is_interrupted: bool
    stages_ms: dict[str, float]
    late_p99_ms: float
    client_cpu_ms_per_image: float | None
    server_cpu_ms_per_image: float | None
    server_batch_images: float | None
    rows: Sequence[Row]


def usage(metrics: str | None) -> Usage:
    """Read the CPU clocks; `metrics` is the URL of the server's metrics. Raises BenchError if it does not answer."""
    return Usage(time.process_time(), _scrape(metrics) if metrics else None)


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return an opener of http and https URLs only, unlike urlopen(), through the proxies that all our clients use."""
    opener = urllib.request.OpenerDirector()
    proxy = proxy_for(url)
    handlers = [urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), urllib.request.UnknownHandler()]
    for handler in [*handlers, *([urllib.request.ProxyHandler({urlsplit(url).scheme: proxy})] if proxy else [])]:
        opener.add_handler(handler)
    return opener


def _scrape(url: str) -> dict[str, float]:
    """Return the unlabelled samples of a Prometheus page that are used here."""
    try:
        with _opener(url).open(url, timeout=_METRICS_TIMEOUT_S) as answer:
            lines = answer.read().decode().splitlines()
        found = dict(line.split()[:2] for line in lines if line.startswith((_CPU, _BATCHES, _BATCHED)))
        return {name: float(found[name]) for name in (_CPU, _BATCHES, _BATCHED)}
    except HTTPException as error:
        raise BenchError(f"--metrics {url}: this is no HTTP server; penult serve prints the address") from error
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(
            f"--metrics {url} gives no metrics of penult ({error}); penult serve prints its address"
        ) from error


def report(
    settings: LoadSettings, model: Model, photos: str, message_bytes: float, load: Load, before: Usage, after: Usage
) -> Report:
    """Compute the report. Raises BenchError if no request was due within the window."""
    window_s = load.end_s - load.start_s
    due = [row for row in load.rows if load.start_s <= row.due_s and row.due_s <= load.end_s]
    if window_s <= 0 or not (due or load.unfinished):
        raise BenchError("ended before anything was measured; measure longer, or shorten --warmup")
    within = [row for row in load.rows if load.start_s <= row.over_s <= load.end_s and row.code == OK]
    images = sum(row.images for row in within)
    rows = [
        row._replace(due_s=row.due_s - load.start_s, sent_s=row.sent_s - load.start_s, over_s=row.over_s - load.start_s)
        for row in due
    ]
    server_ms, batch = _server(before, after, images)
    return Report(
        settings, model, photos, message_bytes, window_s, len(due),
        images_per_s=images / window_s,
        good_images_per_s=(images - sum(row.failed_images for row in within)) / window_s,
        requests_per_s=len(within) / window_s,
        latency=latency([row for row in due if row.code == OK]),
        rejected=latency([row for row in due if row.code != OK]),
        errors=dict(Counter(row.code for row in due if row.code != OK)),
        item_errors=dict(load.item_errors), unfinished=load.unfinished, not_sent=load.not_sent,
        is_interrupted=load.is_interrupted, stages_ms=load.stages_ms,
        late_p99_ms=1000 * _quantile(np.sort([row.sent_s - row.due_s for row in due] or [0.0]), 0.99),
        client_cpu_ms_per_image=1000 * (after.client_s - before.client_s) / images if images else None,
        server_cpu_ms_per_image=server_ms, server_batch_images=batch, rows=rows,
    )  # fmt: skip


def _server(before: Usage, after: Usage, images: int) -> tuple[float | None, float | None]:
    """Return the server's CPU-ms per image and its mean batch, if its metrics are known."""
    if before.server is None or after.server is None:
        return None, None
    used = {name: after.server[name] - before.server[name] for name in before.server}
    cpu = 1000 * used[_CPU] / images if images else None
    return cpu, used[_BATCHED] / used[_BATCHES] if used[_BATCHES] else None


def latency(rows: Sequence[Row]) -> Latency | None:
    """Return the latencies from due to over; None without rows."""
    if not rows:
        return None
    times = np.sort([1000 * (row.over_s - row.due_s) for row in rows])
    quantiles = {name: _quantile(times, quantile) for name, quantile in _QUANTILES.items()}
    return Latency(requests=len(rows), mean_ms=float(times.mean()), max_ms=float(times[-1]), **quantiles)


def _quantile(ordered: NDArray[np.float64], quantile: float) -> float:
    """Return the smallest value that `quantile` of all do not exceed, which is one of them."""
    return float(np.quantile(ordered, quantile, method="inverted_cdf"))
