"""Images become batches: at once when the model is idle, merged while it is busy, and nobody gets another's rows."""

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from penult.service.inference.batcher import Batcher, Item
from penult.service.inference.request import Output, PendingRequest
from penult.service.observability.metrics import Metrics


class Model:
    """Stands for a session: its logits repeat the pixel value; it waits for `go` where it is told to."""

    def __init__(self) -> None:
        """Run freely until `go` is cleared."""
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.fail: Exception | None = None
        self.threads: list[str] = []
        self._lock = threading.Lock()
        self.running = self.most_running = 0

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return (value, 10 * value) per image."""
        values = np.array([pixels[0, 0, 0] for pixels in images], dtype=np.float32)
        with self._lock:
            self.threads.append(threading.current_thread().name)
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
    """Make a batcher with threads of its own: batcher(max_images=4, callers=1, delay_s=0); they end with the test."""
    pools: list[ThreadPoolExecutor] = []

    def make(max_images: int = 4, callers: int = 1, delay_s: float = 0.0, budget_s: float = math.inf) -> Batcher:
        pools.append(ThreadPoolExecutor(callers, thread_name_prefix="model"))
        return Batcher(model, max_images, callers, pools[-1], metrics, delay_s, budget_s)

    yield make
    model.go.set()
    for pool in pools:
        pool.shutdown()


def image(value: int) -> np.ndarray:
    """Return a photo that is told from others by its value."""
    return np.full((2, 2, 3), value, dtype=np.uint8)


async def until(condition, seconds: float = 120.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def request(to: Batcher, *values: int, expires: float = math.inf) -> PendingRequest[list[Output]]:
    """Submit one request's photos without waiting for its answer, which is their outputs."""
    work = PendingRequest(len(values), lambda outputs: outputs, expires)
    to.put([Item(image(value), work, place, time.perf_counter()) for place, value in enumerate(values)])
    return work


async def values(*works: PendingRequest[list[Output]]) -> list[float]:
    """Wait for requests; return their photos' values, as the model saw them."""
    return [float(output.logits[0, 0]) for work in works for output in (await asyncio.wait_for(work.wait(), 20))[0]]


async def busy(to: Batcher, model: Model, value: int = 255) -> PendingRequest[list[Output]]:
    """Keep the model busy with one photo until model.go is set."""
    model.go.clear()
    before = len(model.batches)
    work = request(to, value)
    await until(lambda: len(model.batches) > before)
    return work


def test_an_idle_model_runs_at_once(batcher, model):
    """A single photo is not held back to wait for company."""

    async def scenario():
        ((output,), _) = await asyncio.wait_for(request(batcher(max_images=8), 7).wait(), 60)
        assert (output.logits.tolist(), output.descriptor.tolist()) == ([[7.0]], [[70.0]])
        assert output.queue_seconds >= 0
        assert output.inference_seconds > 0

    asyncio.run(scenario())
    assert model.batches == [[7]]


def test_photos_of_one_request_share_a_batch(batcher, model):
    """A request's photos go to an idle model as one batch, not as one and the rest."""

    async def scenario():
        assert await values(request(batcher(max_images=8), 1, 2, 3)) == [1, 2, 3]

    asyncio.run(scenario())
    assert model.batches == [[1, 2, 3]]


def test_while_it_is_busy_photos_merge_up_to_the_limit(batcher, model):
    """What waits is merged across requests, in order of arrival, in batches of at most max_images."""

    async def scenario():
        b = batcher(max_images=4)
        works = [await busy(b, model), *(request(b, *photos) for photos in ((1, 2), (3,), (4, 5, 6)))]
        model.go.set()
        assert await values(*works) == [255, 1, 2, 3, 4, 5, 6]

    asyncio.run(scenario())
    assert model.batches == [[255], [1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize(("budget_s", "sizes"), [(1e-9, [1, 1, 1, 1, 1, 1]), (3600, [1, 1, 4])])
def test_a_batch_keeps_within_its_time(batcher, model, budget_s, sizes):
    """Of a slow model each image runs alone, of a quick one several together, once its time is known."""

    async def scenario():
        b = batcher(max_images=4, budget_s=budget_s)
        await values(request(b, 1))
        first = await busy(b, model)
        rest = request(b, 2, 3, 4, 5)
        model.go.set()
        await values(first, rest)

    asyncio.run(scenario())
    assert [len(batch) for batch in model.batches] == sizes


def test_callers_share_what_waits(batcher, model):
    """A caller leaves the others their share, so that no photo waits for a batch that another could have run."""

    async def scenario():
        b = batcher(max_images=8, callers=2)
        model.go.clear()
        work = request(b, 1, 2, 3, 4, 5)
        await until(lambda: model.running == 2)
        model.go.set()
        assert await values(work) == [1, 2, 3, 4, 5]

    asyncio.run(scenario())
    assert sorted(map(len, model.batches)) == [1, 1, 3]


def test_a_delay_waits_for_company(batcher, model):
    """With a delay, photos that come within it share a run even where the model is idle, and a full batch waits no more."""

    async def scenario():
        b = batcher(max_images=3, delay_s=1.0)
        started = time.perf_counter()
        first, second = request(b, 1), request(b, 2)
        assert await values(first, second) == [1, 2]
        assert time.perf_counter() - started > 0.95
        patient = batcher(max_images=3, delay_s=600)
        async with asyncio.timeout(30):
            await values(request(patient, 3, 4), request(patient, 5))

    asyncio.run(scenario())
    assert model.batches == [[1, 2], [3, 4, 5]]


def test_batch_sizes_are_measured(batcher, samples, metrics):
    """penult_batch_size observes each run once, with its number of photos; phases are timed beside it."""

    async def scenario():
        await values(request(batcher(max_images=2), 1, 2, 3))

    asyncio.run(scenario())
    found = samples(metrics)
    assert (found[("penult_batch_size_count",)], found[("penult_batch_size_sum",)]) == (2, 3)
    assert found[("penult_batch_size_bucket", ("le", "1.0"))] == 1
    assert found[("penult_phase_seconds_count", ("phase", "inference"))] == 2
    assert found[("penult_phase_seconds_count", ("phase", "queue"))] == 3


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_photos_that_nobody_waits_for_are_never_run(batcher, model, end):
    """A photo whose caller left, or whose time is over, costs no run, and its neighbours are answered."""

    async def scenario():
        b = batcher()
        first = await busy(b, model)
        expires = time.perf_counter() + 0.01 if end == "expired" else math.inf
        works = [request(b, 1), request(b, 2, expires=expires), request(b, 3)]
        if end == "cancelled":
            works[1].give_up()
        await asyncio.sleep(0.02)
        model.go.set()
        assert await values(first, works[0], works[2]) == [255, 1, 3]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(works[1].wait(), 0.05)

    asyncio.run(scenario())
    assert model.batches == [[255], [1, 3]]


def test_cancelled_photos_leave_room_in_the_batch(batcher, model):
    """Photos passed over do not count towards max_images."""

    async def scenario():
        b = batcher(max_images=2)
        first = await busy(b, model)
        works = [request(b, value) for value in (1, 2, 3, 4)]
        works[0].give_up()
        works[1].give_up()
        model.go.set()
        await values(first, *works[2:])

    asyncio.run(scenario())
    assert model.batches == [[255], [3, 4]]


def test_leaving_while_the_model_runs_harms_nobody(batcher, model):
    """A caller that leaves during the run takes nothing from the others of its batch."""

    async def scenario():
        b = batcher()
        first = await busy(b, model)
        works = [request(b, 1), request(b, 2)]
        model.go.set()
        await values(first)
        works[0].give_up()
        assert await values(works[1], request(b, 3)) == [2, 3]

    asyncio.run(scenario())


def test_an_exception_reaches_all_callers_and_the_next_batch_works(batcher, model):
    """A batch that fails, and whose halves fail, is told to each of its callers, and to no caller of the next."""

    async def scenario():
        b = batcher()
        first = await busy(b, model)
        works = [request(b, 1), request(b, 2, 3)]
        model.fail = RuntimeError("CUDA error: out of memory")
        model.go.set()
        answers = (first.wait(), *(work.wait() for work in works))
        failed = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 20)
        assert [error.reason for error in failed] == ["DEVICE_MEMORY"] * 3
        model.fail = None
        assert await values(request(b, 4)) == [4]

    asyncio.run(scenario())
    assert model.batches == [[255], [255], [1, 2, 3], [1, 2], [3], [4]]


def test_results_are_never_swapped(batcher, model):
    """Two hundred concurrent requests, some given up, on three callers: each gets its own rows."""

    async def scenario():
        b = batcher(max_images=7, callers=3)
        works = []
        for value in range(200):
            works.append(request(b, value, 255 - value))
            if value % 5 == 0:
                await asyncio.sleep(0)
        given_up = works[3::20]
        for work in given_up:
            work.give_up()
        for value, work in enumerate(works):
            if work not in given_up:
                assert await values(work) == [value, 255 - value]

    asyncio.run(scenario())
    assert max(map(len, model.batches)) <= 7


@pytest.mark.parametrize("callers", [1, 3])
def test_no_more_callers_than_allowed(batcher, model, callers):
    """As many runs as callers go on at once, no more and no fewer."""

    async def scenario():
        b = batcher(max_images=1, callers=callers)
        model.go.clear()
        works = [request(b, value) for value in range(6)]
        await until(lambda: model.running == callers)
        await asyncio.sleep(0.02)
        assert model.running == callers
        model.go.set()
        await values(*works)

    asyncio.run(scenario())
    assert model.most_running == callers


def test_the_thread_that_brings_a_photo_runs_it(batcher, model):
    """With run_here, a batch goes on the thread that put it, where a caller is free."""

    async def scenario():
        b = batcher()
        work = PendingRequest(1, lambda outputs: outputs, math.inf)
        item = Item(image(9), work, 0, time.perf_counter())
        thread = threading.Thread(target=b.put, args=([item],), kwargs={"run_here": True}, name="bringer")
        thread.start()
        assert await values(work) == [9]
        thread.join(120)

    asyncio.run(scenario())
    assert model.threads == ["bringer"]


def test_time_per_image_is_followed(batcher, model):
    """What admission reckons with is the time of a run, shared by its photos and by the callers."""

    async def scenario():
        b = batcher(max_images=8)
        assert b.wait_s(1) == 0  # nothing is known yet
        model.go.clear()
        work = request(b, 1, 2, 3, 4)
        await asyncio.sleep(0.2)
        model.go.set()
        await values(work)
        assert 0.04 < b.wait_s(1) < 1
        assert b.wait_s(10) == pytest.approx(10 * b.wait_s(1))

    asyncio.run(scenario())
