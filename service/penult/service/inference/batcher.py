"""Single images in, batches to the model: at once when it is idle, else as full as the limit allows.

While every caller of the model is busy, images wait; the caller that becomes free takes its share of all that wait, up
to `max_images`, counted in images across requests, the clients in turn: what it leaves, the next one runs beside it.
Images whose request was cancelled or ran out of time are passed over before they cost anything. A batch that fails on
the device is tried once more, in halves. Everything here runs on threads, none of it on the event loop: the thread that
decoded a photo may run the model on it without handing it over.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.service.errors import BadOutput, device_error, one_line
from penult.service.inference.fair_queue import FairQueue
from penult.service.inference.request import ModelOutput, Output, PendingRequest
from penult.service.observability import tracing
from penult.service.observability.metrics import Metrics

log = logging.getLogger(__name__)

RunImages = Callable[[Sequence[Pixels]], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Item:
    """One photo's pixels, uint8 [crop, crop, 3], and where its output belongs; it has been waiting since `since`."""

    pixels: Pixels
    work: PendingRequest[Any]
    place: int
    since: float


class Batcher:
    """Feeds one model from any thread. It runs on threads of `pool`, on `callers` of them at a time at most."""

    def __init__(
        self,
        run_images: RunImages,
        max_images: int,
        callers: int,
        pool: ThreadPoolExecutor,
        metrics: Metrics,
        delay_s: float = 0.0,
        tell: Callable[[bool], object] = lambda works: None,
    ) -> None:
        """Start with an empty queue; an image waits up to `delay_s` for company, even where the model is idle.

        `tell` hears of every batch that could not be run, and of the first one that could after that.
        """
        self._tell, self._has_failed, self._events = tell, False, metrics.device_events
        self._run_images, self._max_images, self._callers, self._delay_s = run_images, max_images, callers, delay_s
        self._pool = pool
        self._waiting: FairQueue[Item] = FairQueue()
        self._running = self._called = self.runs = 0
        self._changed = threading.Condition()
        self._depth, self._batch_size = metrics.queue_depth, metrics.batch_size
        self._triggers = {name: metrics.batches.labels(name) for name in ("full", "idle", "delay")}
        self._queue_phase = metrics.phase_seconds.labels("queue")
        self._inference_phase = metrics.phase_seconds.labels("inference")
        self._seconds_per_image = 0.0
        self._is_closed = False

    def wait_s(self, images: int) -> float:
        """Return how long so many images take, by what the last dozen batches took, if all callers work on them."""
        return images * self._seconds_per_image / self._callers

    def put(self, items: Sequence[Item], run_here: bool = False) -> None:
        """Queue images of one request; with `run_here`, the calling thread, one of the pool's, runs the next batch.

        They count in penult_queue_depth already; taken for a run, or passed over, they no longer do.
        """
        with self._changed:
            if self._is_closed:
                self._depth.dec(len(items))
                return
            if items:
                self._waiting.add(items[0].work.client, items)
            if self._delay_s:
                self._changed.notify_all()  # a batch may be full now
        if run_here:
            self._run_one()
        self._call_threads()

    def close(self) -> None:
        """Pass over what waits and what still comes: its requests have been given up, the model is on its way out."""
        with self._changed:
            self._is_closed = True
            self._depth.dec(len(self._waiting))
            self._waiting.clear()

    def _call_threads(self) -> None:
        """Ask the pool for as many threads as there are batches waiting and callers free."""
        with self._changed:
            free = self._callers - self._running - self._called
            wanted = min(free, len(self._waiting) - self._called)
            self._called += max(0, wanted)
        for _ in range(wanted):  # none where it is negative
            self._pool.submit(self._run_called)

    def _run_called(self) -> None:
        with self._changed:
            self._called -= 1
        self._run_one()
        # Not in a loop: other work of the pool, decoding say, has its turn first.
        self._call_threads()

    def _run_one(self) -> None:
        """Run one batch, if a caller is free and an image waits."""
        with self._changed:
            if self._running >= self._callers:
                return
            self._running += 1
            batch = self._take()
            self.runs += bool(batch)
        try:
            if batch:
                self._run(batch)
        finally:
            with self._changed:
                self._running -= 1

    def _take(self) -> list[Item]:
        """Take the images of the next batch; those that nobody waits for any more are passed over."""
        while self._delay_s and 0 < len(self._waiting) < self._max_images:
            left = self._waiting.next().since + self._delay_s - time.perf_counter()
            if left <= 0:
                break
            self._changed.wait(left)
        batch: list[Item] = []
        before = len(self._waiting)
        share = min(self._max_images, -(-before // self._callers))
        while self._waiting and len(batch) < share:
            item = self._waiting.take()
            if not item.work.is_over:
                batch.append(item)
        self._depth.dec(before - len(self._waiting))
        return batch

    def probe(self, pixels: Pixels) -> None:
        """Run one image for nobody, on the calling thread, one of the pool's: whether the device still works."""
        try:
            self._run_images([pixels])
        except Exception as error:  # as in _run()
            self._note_failure(error)
        else:
            self._note_success()

    def _run(self, batch: list[Item]) -> None:
        self._batch_size.observe(len(batch))
        rest = "delay" if self._delay_s else "idle"
        self._triggers["full" if len(batch) >= self._max_images else rest].inc()
        try:
            self._run_once(batch)
        except Exception as error:  # onnxruntime has a dozen of its own
            log.error("a batch of %d images failed and is tried in halves: %s", len(batch), one_line(error))
            self._retry(batch)

    def _retry(self, batch: list[Item]) -> None:
        """Run a failed batch again, in halves: less memory is asked for, and a moment's fault may be over."""
        half = -(-len(batch) // 2)
        for part in (batch[:half], batch[half:]):
            try:
                if part:
                    self._run_once(part)
                    self._events.labels("batch_retried").inc()
            except Exception as error:  # as above
                self._note_failure(error)
                for item in part:
                    item.work.fail(device_error(error))

    def _run_once(self, batch: list[Item]) -> None:
        """Run a batch and hand out its rows; raise whatever the runtime raises."""
        started = time.perf_counter()
        logits, descriptors = self._run_images([item.pixels for item in batch])
        ended = time.perf_counter()
        self._note_success()
        seconds = ended - started
        self._inference_phase.observe(seconds)
        self._trace(batch, started, ended)
        self._learn(seconds / len(batch))
        is_finite = bool(np.isfinite(logits).all() and np.isfinite(descriptors).all())
        for row, item in enumerate(batch):
            waited = started - item.since
            self._queue_phase.observe(waited)
            output = ModelOutput(logits[row], descriptors[row], waited, seconds)
            item.work.put(item.place, output if is_finite else _checked(output))

    def _note_failure(self, error: Exception) -> None:
        log.error("the device failed: %s", one_line(error))
        self._events.labels("batch_failed").inc()
        self._has_failed = True
        self._tell(False)

    def _note_success(self) -> None:
        if self._has_failed:
            self._has_failed = False
            self._tell(True)

    def _trace(self, batch: Sequence[Item], started: float, ended: float) -> None:
        span = tracing.batch((item.work.trace for item in batch), started, ended, len(batch))
        for item in batch if span else ():
            if item.work.trace:
                item.work.trace.phase("queue", item.since, started)
                item.work.trace.ran(started, ended, span)

    def _learn(self, seconds: float) -> None:
        """Follow the time that an image takes, for admission: a moving average of the last dozen batches."""
        before = self._seconds_per_image
        self._seconds_per_image = before + (seconds - before) / 12 if before else seconds


def _checked(output: ModelOutput) -> Output:
    if np.isfinite(output.logits).all() and np.isfinite(output.descriptor).all():
        return output
    return BadOutput("MODEL_NOT_FINITE", "the model gave no finite numbers for this image")
