"""Which request counts where, and what a percentile is."""

from collections import Counter

import pytest

from penult.bench.measure import Load, Model, Row, Usage, latency, report
from penult.bench.settings import BenchError, LoadSettings


def summarise(*rows: Row, start_s: float = 10.0, end_s: float = 12.0, **more: object):
    gathered = Load(
        rows, start_s, end_s, more.get("unfinished", 0), 0, is_interrupted=False, item_errors=Counter(), stages_ms={}
    )
    model = Model("m", 1, "f" * 64, "tiny5", "CPUExecutionProvider", 32)
    return report(LoadSettings(), model, "", 1.0, gathered, Usage(1.0, None), Usage(1.5, None))


def test_percentiles_are_values_that_occurred():
    """p50 of 1..100 is 50, p99 is 99, p99.9 the slowest; nothing in between is made up."""
    found = latency([Row(0.0, 0.0, ms / 1000, "OK", 1, 0) for ms in range(100, 0, -1)])
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((50, 90, 99))
    assert (found.p99_9_ms, found.max_ms, found.mean_ms) == pytest.approx((100, 100, 50.5))
    assert latency([]) is None


def test_rates_count_answers_and_latency_counts_what_was_due():
    """An answer after the end is in the latency and not in the rate; one from before the start the other way round."""
    found = summarise(
        Row(9.5, 9.5, 10.5, "OK", 2, 0), Row(11.0, 11.0, 11.5, "OK", 2, 1), Row(11.9, 11.9, 14.9, "OK", 2, 0)
    )
    assert found.images_per_s == pytest.approx((2 + 2) / 2.0)
    assert found.good_images_per_s == pytest.approx((2 + 1) / 2.0)
    assert (found.requests, found.latency.max_ms) == (2, pytest.approx(3000))
    assert found.client_cpu_ms_per_image == pytest.approx(500 / 4)
    assert [row.due_s for row in found.rows] == pytest.approx([1.0, 1.9])


def test_failures_are_apart():
    """Refused requests have a latency of their own, and no share in rates."""
    found = summarise(Row(10.0, 10.0, 10.1, "OK", 1, 0), Row(10.2, 10.2, 10.201, "RESOURCE_EXHAUSTED", 0, 0))
    assert (found.latency.requests, found.rejected.requests) == (1, 1)
    assert found.rejected.max_ms == pytest.approx(1)
    assert (found.requests_per_s, found.errors) == (0.5, {"RESOURCE_EXHAUSTED": 1})


def test_an_empty_window_says_so():
    """Nothing due, nothing to report: one line says what to change."""
    with pytest.raises(BenchError, match="before anything was measured"):
        summarise(Row(9.0, 9.0, 9.1, "OK", 1, 0))
