"""Single images in, batches to the model: at once if it is idle, else as full as the limit allows.

While all callers of the model are busy, images wait. The caller that becomes free takes its share of the waiting
images, at most `max_images`, across requests and with the clients in turn; the next caller runs the rest beside it.
Images of cancelled or expired requests are skipped before they cost anything. A batch that fails on the device is run
again, in halves. Everything here runs on threads, not on the event loop. The thread that decoded an image may also run
the model.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.service.errors import BadOutput, device_error, one_line
from penult.service.inference.fair_queue import FairQueue, Pool
from penult.service.inference.request import ModelOutput, Output, PendingRequest
from penult.service.observability import tracing
from penult.service.observability.metrics import Metrics

log = logging.getLogger(__name__)

RunImages = Callable[[Sequence[Pixels]], tuple[Floats, Floats]]
RunFeatures = Callable[[Sequence[Pixels]], tuple[Floats, Floats, Floats]]


@dataclass(slots=True)  # not frozen: such fields cost three times as much to set
class Item:
    """The pixels of one image, uint8 [crop, crop, 3], and the place of its output in a request.

    `since` is when its wait began, by time.perf_counter().
    """

    pixels: Pixels
    request: PendingRequest[object]
    place: int
    since: float


class Batcher:
    """Feeds one model from any thread, on at most `callers` threads of `pool` at a time."""

    def __init__(
        self,
        run_images: RunImages,
        max_images: int,
        callers: int,
        pool: Pool,
        metrics: Metrics,
        delay_s: float = 0.0,
        budget_s: float = math.inf,
        on_result: Callable[[bool], object] = lambda ok: None,
        on_images: Callable[[int], object] = lambda images: None,
        run_features: RunFeatures | None = None,
    ) -> None:
        """Start with an empty queue.

        Args:
            run_images: the model.
            max_images: images per run.
            callers: runs at a time.
            pool: the threads that run the model.
            metrics: where runs are counted.
            delay_s: how long an idle model waits for more images.
            budget_s: how long a run of more than one image may take, as estimated from the last ones.
            on_images: called with the number of images of each run, before it.
            on_result: called with False after a batch that failed twice, with True after the next one that succeeds.
            run_features: the model with its feature map, for batches in which a request asks for class maps.

        """
        self._run_images, self._run_features = run_images, run_features
        self._max_images = max_images
        self._callers = callers
        self._pool = pool
        self._delay_s = delay_s
        self._budget_s = budget_s
        self._on_result = on_result
        self._on_images = on_images
        self._has_failed = False
        self._waiting: FairQueue[Item] = FairQueue()
        self._running = 0
        self._called = 0
        self.runs = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._seconds_per_image = 0.0
        self._is_closed = False
        self._events = metrics.device_events
        self._depth = metrics.gauging(metrics.queue_depth)
        self._batch_size = metrics.observing(metrics.batch_size)
        triggers = ("full", "idle", "delay")
        self._triggers = {name: metrics.counting(metrics.batches.labels(name)) for name in triggers}
        self._queue_phase = metrics.observing(metrics.phase_seconds.labels("queue"))
        self._inference_phase = metrics.observing(metrics.phase_seconds.labels("inference"))

    def wait_s(self, images: int) -> float:
        """Return the seconds for so many images on all callers, estimated from the last dozen batches."""
        return images * self._seconds_per_image / self._callers

    def put(self, items: Sequence[Item], run_here: bool = False) -> None:
        """Queue images of one request; with `run_here`, the calling thread, one of the pool's, runs the next batch.

        penult_queue_depth counts them already, and no longer once they are taken for a run or skipped.
        """
        with self._lock:
            if self._is_closed:
                self._depth.dec(len(items))
                return
            if items:
                self._waiting.add(items[0].request.client, items)
            if self._delay_s:
                self._changed.notify_all()  # a batch may be full now
        if run_here:
            self._run_one()
        self._call_threads()

    def close(self) -> None:
        """Skip the images that wait and that still come: their requests were given up, and the model ends."""
        with self._lock:
            self._is_closed = True
            self._depth.dec(len(self._waiting))
            self._waiting.clear()

    def _call_threads(self) -> None:
        """Ask the pool for as many threads as there are batches waiting and callers free."""
        with self._lock:
            free = self._callers - self._running - self._called
            wanted = min(free, len(self._waiting) - self._called) if free > 0 else 0
            self._called += max(0, wanted)
        for _ in range(wanted):  # none if it is negative
            self._pool.submit(self._run_called)

    def _run_called(self) -> None:
        with self._lock:
            self._called -= 1
        self._run_one()
        # Not in a loop: other work of the pool, such as decoding, goes first.
        self._call_threads()

    def _run_one(self) -> None:
        """Run one batch, if a caller is free and an image waits."""
        with self._lock:
            if self._running >= self._callers:
                return
            self._running += 1
            batch = self._take()
            self.runs += bool(batch)
        try:
            if batch:
                self._run(batch)
        finally:
            with self._lock:
                self._running -= 1

    def _take(self) -> list[Item]:
        """Take the images of the next batch; skip those of requests that are over."""
        while self._delay_s and 0 < len(self._waiting) < self._max_images:
            left = self._waiting.next().since + self._delay_s - time.perf_counter()
            if left <= 0:
                break
            self._changed.wait(left)
        batch: list[Item] = []
        left_over = before = len(self._waiting)
        share = min(self._most(), -(-before // self._callers))
        while left_over and len(batch) < share:
            item = self._waiting.take()
            left_over -= 1
            if not item.request.is_over:
                batch.append(item)
        self._depth.dec(before - left_over)
        return batch

    def _most(self) -> int:
        """Return the most images of the next run."""
        if math.isinf(self._budget_s) or self._max_images == 1:
            return self._max_images
        if not self._seconds_per_image:
            return 1
        return max(1, min(self._max_images, int(self._budget_s / self._seconds_per_image)))

    def probe(self, pixels: Pixels) -> None:
        """Run one image without a request, on the calling thread, one of the pool's, to test the device."""
        try:
            self._run_images([pixels])
        except Exception as error:  # as in _run()
            self._record_failure(error)
        else:
            self._record_success()

    def _run(self, batch: list[Item]) -> None:
        self._batch_size.observe(len(batch))
        self._on_images(len(batch))
        rest = "delay" if self._delay_s else "idle"
        self._triggers["full" if len(batch) >= self._max_images else rest].inc()
        try:
            self._run_once(batch)
        except Exception as error:  # onnxruntime has a dozen of its own
            log.error("a batch of %d images failed, retrying it in halves: %s", len(batch), one_line(error))
            self._retry(batch)

    def _retry(self, batch: list[Item]) -> None:
        """Run a failed batch again, in halves: they need less memory, and the fault may be over."""
        half = -(-len(batch) // 2)
        for part in (batch[:half], batch[half:]):
            try:
                if part:
                    self._run_once(part)
                    self._events.labels("batch_retried").inc()
            except Exception as error:  # as above
                self._record_failure(error)
                for item in part:
                    item.request.fail(device_error(error))

    def _run_once(self, batch: list[Item]) -> None:
        """Run a batch and hand out its rows; raise the runtime's error if it fails."""
        started = time.perf_counter()
        logits, descriptors = self._outputs(batch)
        ended = time.perf_counter()
        if self._has_failed:
            self._record_success()
        seconds = ended - started
        self._inference_phase.observe(seconds)
        for item in batch:
            if item.request.trace:
                self._trace(batch, started, ended)
                break
        # A moving average of the last dozen batches, for admission.
        before, per_image = self._seconds_per_image, seconds / len(batch)
        self._seconds_per_image = before + (per_image - before) / 12 if before else per_image
        # A sum is finite only if all its numbers are; of rare large ones it may not be, so the rows decide.
        is_finite = math.isfinite(np.add.reduce(logits, axis=None)) and math.isfinite(
            np.add.reduce(descriptors, axis=None)
        )
        self._queue_phase.observe_all([started - item.since for item in batch])
        for row, item in enumerate(batch):
            output = ModelOutput(logits[row : row + 1], descriptors[row : row + 1], started - item.since, seconds)
            item.request.put(item.place, output if is_finite else _checked(output))

    def _outputs(self, batch: list[Item]) -> tuple[Floats, Floats]:
        """Run the model; make the class maps that requests ask for, if any does."""
        images = [item.pixels for item in batch]
        for item in batch:
            if item.request.maps and self._run_features:
                break
        else:
            return self._run_images(images)
        logits, descriptors, features = self._run_features(images)
        rows = item.request.maps.mapper.rows(features)
        for row, each in enumerate(batch):
            if each.request.maps:
                each.request.maps.add(each.place, logits[row], descriptors[row], rows[:, row])
        return logits, descriptors

    def _record_failure(self, error: Exception) -> None:
        log.error("the device failed: %s", one_line(error))
        self._events.labels("batch_failed").inc()
        self._has_failed = True
        self._on_result(False)

    def _record_success(self) -> None:
        if self._has_failed:
            self._has_failed = False
            self._on_result(True)

    def _trace(self, batch: Sequence[Item], started: float, ended: float) -> None:
        span = tracing.batch((item.request.trace for item in batch), started, ended, len(batch))
        for item in batch if span else ():
            if item.request.trace:
                item.request.trace.phase("queue", item.since, started)
                item.request.trace.ran(started, ended, span)


def _checked(output: ModelOutput) -> Output:
    if np.isfinite(output.logits).all() and np.isfinite(output.descriptor).all():
        return output
    return BadOutput("MODEL_NOT_FINITE", "the model gave no finite numbers for this image")
