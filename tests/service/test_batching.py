"""Images become batches: at once when the model is idle, merged while it is busy, and nobody gets another's rows."""

import asyncio
import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from penult.service.batching import Batcher
from penult.service.metrics import Metrics


class Model:
    """Stands for a session: its logits repeat the pixel value; it waits for `go` where it is told to."""

    def __init__(self) -> None:
        """Run freely until `go` is cleared."""
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.fail: Exception | None = None
        self._lock = threading.Lock()
        self.running = self.most_running = 0

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (value, 10 * value) per image."""
        values = pixels[:, 0, 0, 0].astype(np.float32)
        with self._lock:
            self.batches.append([int(value) for value in values])
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        assert self.go.wait(20)
        with self._lock:
            self.running -= 1
        if self.fail:
            raise self.fail
        return values[:, None], 10 * values[:, None]


@pytest.fixture
def model():
    """A model that runs at once."""
    return Model()


@pytest.fixture
def metrics():
    """Metrics of this test."""
    return Metrics(CollectorRegistry())


@pytest.fixture
def batcher(model, metrics):
    """Make a batcher inside a running loop: batcher(max_images=4, callers=1)."""
    return lambda max_images=4, callers=1: Batcher(model, max_images, callers, metrics)


def image(value: int) -> np.ndarray:
    """Return a photo that is told from others by its value."""
    return np.full((2, 2, 3), value, dtype=np.uint8)


async def until(condition, seconds: float = 10.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def submit(to: Batcher, *values: int) -> list[asyncio.Task]:
    """Submit photos without waiting for their answers."""
    return [asyncio.ensure_future(to.run(image(value))) for value in values]


async def busy(to: Batcher, model: Model, value: int = 255) -> asyncio.Task:
    """Keep the model busy with one photo until model.go is set."""
    model.go.clear()
    before = len(model.batches)
    (task,) = submit(to, value)
    await until(lambda: len(model.batches) > before)
    return task


def test_an_idle_model_runs_at_once(batcher, model):
    """A single photo is not held back to wait for company."""

    async def scenario():
        output = await asyncio.wait_for(batcher(max_images=8).run(image(7)), 5)
        assert (output.logits.tolist(), output.descriptor.tolist()) == ([7.0], [70.0])
        assert 0 <= output.queue_seconds < 1
        assert output.inference_seconds > 0

    asyncio.run(scenario())
    assert model.batches == [[7]]


def test_photos_that_arrive_together_share_a_batch(batcher, model):
    """Photos of one turn of the loop go to an idle model as one batch, not as one and the rest."""

    async def scenario():
        await asyncio.gather(*submit(batcher(max_images=8), 1, 2, 3))

    asyncio.run(scenario())
    assert model.batches == [[1, 2, 3]]


def test_while_it_is_busy_photos_merge_up_to_the_limit(batcher, model):
    """What waits is merged across requests, in order of arrival, in batches of at most max_images."""

    async def scenario():
        b = batcher(max_images=4)
        tasks = [await busy(b, model)]
        for request in ((1, 2), (3,), (4, 5, 6)):  # three requests, six photos
            tasks += submit(b, *request)
            await asyncio.sleep(0.01)
        model.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert model.batches == [[255], [1, 2, 3, 4], [5, 6]]


def test_queue_depth_counts_the_waiting_photos(batcher, model, samples, metrics):
    """penult_queue_depth is the number of photos that wait for the model, and falls back to 0."""

    async def scenario():
        b = batcher()
        tasks = [await busy(b, model), *submit(b, 1, 2, 3)]
        await asyncio.sleep(0.01)
        assert samples(metrics)[("penult_queue_depth",)] == 3
        model.go.set()
        await asyncio.gather(*tasks)
        assert samples(metrics)[("penult_queue_depth",)] == 0

    asyncio.run(scenario())


def test_batch_sizes_are_measured(batcher, samples, metrics):
    """penult_batch_size observes each run once, with its number of photos; phases are timed beside it."""

    async def scenario():
        b = batcher(max_images=2)
        await asyncio.gather(*submit(b, 1, 2, 3))

    asyncio.run(scenario())
    found = samples(metrics)
    assert (found[("penult_batch_size_count",)], found[("penult_batch_size_sum",)]) == (2, 3)
    assert found[("penult_batch_size_bucket", ("le", "1.0"))] == 1
    assert found[("penult_phase_seconds_count", ("phase", "inference"))] == 2
    assert found[("penult_phase_seconds_count", ("phase", "queue"))] == 3


def test_cancelled_photos_are_never_run(batcher, model, samples, metrics):
    """A photo whose caller left while it waited costs no run, is counted, and its neighbours are answered."""

    async def scenario():
        b = batcher()
        first = await busy(b, model)
        tasks = submit(b, 1, 2, 3)
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        model.go.set()
        outputs = await asyncio.gather(first, tasks[0], tasks[2])
        assert [float(output.logits[0]) for output in outputs] == [255, 1, 3]

    asyncio.run(scenario())
    assert model.batches == [[255], [1, 3]]
    assert samples(metrics)[("penult_dropped_total", ("reason", "cancelled"))] == 1


def test_cancelled_photos_leave_room_in_the_batch(batcher, model):
    """Dropped photos do not count towards max_images."""

    async def scenario():
        b = batcher(max_images=2)
        first = await busy(b, model)
        tasks = submit(b, 1, 2, 3, 4)
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0)
        model.go.set()
        await asyncio.gather(first, *tasks[2:])

    asyncio.run(scenario())
    assert model.batches == [[255], [3, 4]]


def test_leaving_while_the_model_runs_harms_nobody(batcher, model):
    """A caller that leaves during the run takes nothing from the others of its batch."""

    async def scenario():
        b = batcher()
        model.go.clear()
        tasks = submit(b, 1, 2)
        await until(lambda: model.batches)
        tasks[0].cancel()
        model.go.set()
        assert float((await tasks[1]).logits[0]) == 2
        assert float((await b.run(image(3))).logits[0]) == 3

    asyncio.run(scenario())


def test_an_exception_reaches_all_callers_and_the_next_batch_works(batcher, model):
    """What the model raises goes to every caller of that batch, and to no caller of the next."""

    async def scenario():
        b = batcher()
        model.fail = RuntimeError("no memory left")
        failed = await asyncio.gather(*submit(b, 1, 2, 3), return_exceptions=True)
        assert [str(error) for error in failed] == ["no memory left"] * 3
        model.fail = None
        assert float((await b.run(image(4))).logits[0]) == 4

    asyncio.run(scenario())
    assert model.batches == [[1, 2, 3], [4]]


def test_results_are_never_swapped(batcher, model):
    """Two hundred concurrent photos, some cancelled, on three callers: each gets its own row."""

    async def scenario():
        b = batcher(max_images=7, callers=3)
        tasks = []
        for value in range(200):
            tasks += submit(b, value)
            if value % 5 == 0:
                await asyncio.sleep(0)
        for value in range(3, 200, 20):
            tasks[value].cancel()
        outputs = await asyncio.gather(*tasks, return_exceptions=True)
        for value, output in enumerate(outputs):
            if not isinstance(output, asyncio.CancelledError):
                assert (output.logits.tolist(), output.descriptor.tolist()) == ([value], [10 * value])
        assert sum(isinstance(output, asyncio.CancelledError) for output in outputs) < 200 // 10

    asyncio.run(scenario())
    assert max(map(len, model.batches)) <= 7


@pytest.mark.parametrize("callers", [1, 3])
def test_no_more_callers_than_allowed(batcher, model, callers):
    """As many runs as callers go on at once, no more and no fewer."""

    async def scenario():
        b = batcher(max_images=1, callers=callers)
        model.go.clear()
        tasks = submit(b, *range(6))
        await until(lambda: model.running == callers)
        await asyncio.sleep(0.02)
        assert model.running == callers
        model.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert model.most_running == callers


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_closing_finishes_accepted_work(batcher, model, turns):
    """close() answers all that was submitted before it, running, waiting or not yet begun, and then ends the threads."""

    async def scenario():
        b = batcher(max_images=2)
        tasks = submit(b, *range(5))
        for _ in range(turns + 1):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await b.close()
        outputs = await asyncio.gather(*tasks)
        assert [float(output.logits[0]) for output in outputs] == [0, 1, 2, 3, 4]

    asyncio.run(scenario())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("model")]
