"""Notes are added up late and in bulk, and a reader sees all that was noted before it reads."""

import asyncio
import threading

import pytest
from prometheus_client import CollectorRegistry

from penult.service.observability.metrics import FILES, Metrics
from penult.service.observability.notes import NotedCounter


@pytest.fixture
def metrics():
    """Metrics of this test."""
    return Metrics(CollectorRegistry())


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return a sample's value as a scrape reads it."""
    return metrics.registry.get_sample_value(name, labels)


def test_a_scrape_adds_the_notes_first(metrics):
    """Counters, gauges and histograms show what was noted before, in a scrape and in samples()."""
    images = metrics.counting(metrics.images.labels("jpeg"))
    depth, seconds = metrics.gauging(metrics.queue_depth), metrics.observing(metrics.request_seconds.labels("Classify"))
    images.inc()
    images.inc(2)
    depth.inc(5)
    depth.dec(3)
    seconds.observe_all([0.02, 0.2])
    seconds.observe(2.0)
    assert value(metrics, "penult_images_total", format="jpeg") == 3
    assert value(metrics, "penult_queue_depth") == 2
    assert value(metrics, "penult_request_seconds_count", method="Classify") == 3
    assert value(metrics, "penult_request_seconds_bucket", method="Classify", le="0.25") == 2
    images.inc()
    assert [number for name, _, number in metrics.samples(["penult_images"]) if name == "penult_images_total"] == [4]
    images.inc()
    assert b'penult_images_total{format="jpeg"} 5.0' in metrics.exposition("")[0]


def test_nothing_is_lost_between_threads(metrics):
    """Threads that note and threads that read at the same time: the sum is exact."""
    counter, stop = metrics.counting(metrics.images.labels("png")), threading.Event()

    def note() -> None:
        for _ in range(3000):
            counter.inc()

    def read() -> None:
        while not stop.is_set():
            metrics.notes.fold(7)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=note) for _ in range(4)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert value(metrics, "penult_images_total", format="png") == 12_000


def test_notes_do_not_pile_up(metrics):
    """The event loop adds the notes in pieces, without a scrape."""
    counter = metrics.counting(metrics.images.labels("webp"))

    async def scenario() -> None:
        for _ in range(1000):
            counter.inc()
        folding = asyncio.create_task(metrics.notes.fold_regularly())
        async with asyncio.timeout(20):
            while metrics.notes.fold(0):
                await asyncio.sleep(0)
        folding.cancel()

    asyncio.run(scenario())
    assert value(metrics, "penult_images_total", format="webp") == 1000


def test_workers_count_at_once(metrics, monkeypatch):
    """Other processes read a worker's files at any time, so it counts without notes."""
    assert isinstance(metrics.counting(metrics.images.labels("jpeg")), NotedCounter)
    monkeypatch.setenv(FILES, "anywhere")
    counter = metrics.counting(metrics.images.labels("jpeg"))
    assert counter is metrics.images.labels("jpeg")
    seconds = metrics.observing(metrics.request_seconds.labels("Score"))
    seconds.observe_all([0.1, 0.2])
    assert not metrics.notes.fold(0)
    assert value(metrics, "penult_request_seconds_count", method="Score") == 2
