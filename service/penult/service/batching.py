"""Single images in, batches to the model: at once when it is idle, else as full as the limit allows.

There is no delay to tune. While every caller of the model is busy, images wait; the caller that becomes free takes
all that wait, up to `max_images`. Images whose request was cancelled or ran out of time are dropped before they cost
anything. Counting is in images, across requests.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.service.metrics import Metrics

RunModel = Callable[[Pixels], tuple[Floats, Floats]]


@dataclass(frozen=True)
class ModelOutput:
    """One image's rows of the model's outputs, and the seconds it waited and the model ran."""

    logits: Floats
    descriptor: Floats
    queue_seconds: float
    inference_seconds: float


@dataclass(frozen=True)
class _Item:
    pixels: Pixels
    answer: "asyncio.Future[ModelOutput]"
    since: float


class Batcher:
    """Feeds one model. All methods run on the event loop; the model runs on `callers` threads."""

    def __init__(self, run_model: RunModel, max_images: int, callers: int, metrics: Metrics) -> None:
        """Start with an empty queue."""
        self._run_model, self._max_images, self._callers, self._metrics = run_model, max_images, callers, metrics
        self._threads = ThreadPoolExecutor(callers, thread_name_prefix="model")
        self._waiting: deque[_Item] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, pixels: Pixels) -> ModelOutput:
        """Return the model's outputs for uint8 [crop, crop, 3]; the model's exceptions pass through."""
        loop = asyncio.get_running_loop()
        item = _Item(pixels, loop.create_future(), time.perf_counter())
        self._waiting.append(item)
        # Not at once: images that arrive in the same turn of the loop shall share a batch.
        loop.call_soon(self._start_batches)
        return await item.answer

    async def close(self) -> None:
        """Finish what was accepted, then stop the threads."""
        self._start_batches()
        while self._running:
            await asyncio.wait(self._running)
            await asyncio.sleep(0)  # a finished batch starts the next one in its callback
        self._threads.shutdown(wait=True)

    def _start_batches(self) -> None:
        while len(self._running) < self._callers and (batch := self._take()):
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._finished)
        self._metrics.queue_depth.set(len(self._waiting))

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._start_batches()

    def _take(self) -> list[_Item]:
        """Take the images of the next batch; those that nobody waits for any more are dropped."""
        batch: list[_Item] = []
        while self._waiting and len(batch) < self._max_images:
            item = self._waiting.popleft()
            if item.answer.done():
                self._metrics.dropped.labels("cancelled").inc()
            else:
                batch.append(item)
        return batch

    async def _run(self, batch: list[_Item]) -> None:
        started = time.perf_counter()
        self._metrics.batch_size.observe(len(batch))
        try:
            logits, descriptors = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._run_model, np.stack([item.pixels for item in batch])
            )
        except Exception as error:  # whatever the runtime raises belongs to the callers, who map it
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        seconds = time.perf_counter() - started
        self._metrics.phase_seconds.labels("inference").observe(seconds)
        for row, item in enumerate(batch):
            if not item.answer.done():
                self._metrics.phase_seconds.labels("queue").observe(started - item.since)
                item.answer.set_result(ModelOutput(logits[row], descriptors[row], started - item.since, seconds))
