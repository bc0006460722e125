"""From images to answers: admission, decoding, batching, scoring. Knows models, and nothing of gRPC or HTTP.

A request crosses from the thread that received it to a worker, and is answered there (penult.service.suspension). Only
a request that began on the event loop crosses back. On CPUs, the thread that decodes an image also
runs the model and, for the last image of a request, scores it, because a handover between threads of the same cores
gains nothing. On a device, decoding threads feed the one thread that drives it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from penult.bundle.errors import ImageError, PenultError
from penult.bundle.guards import PixelBudget
from penult.bundle.manifest import NOVELTY, SVM
from penult.bundle.scores import Floats
from penult.lookup.types import Hit
from penult.service.errors import ModelReplaced, ServiceError
from penult.service.inference.abstaining import AnswerLimits
from penult.service.inference.admission import RequestAdmission
from penult.service.inference.batcher import Batcher, Item
from penult.service.inference.class_maps import RequestMaps
from penult.service.inference.decoder import FORMATS, Decoder, Photo, RawPhoto, format_of, size_bytes
from penult.service.inference.fair_queue import FairExecutor
from penult.service.inference.limits import InferenceLimits
from penult.service.inference.model_stats import Statistics
from penult.service.inference.request import ModelOutput, Output, PendingRequest
from penult.service.inference.results import Answer, Outcome, Timings
from penult.service.inference.scoring import Scoring, check_has, stacked
from penult.service.inference.unsure import UnsureImages
from penult.service.inference.workers import Workers, WorkTime
from penult.service.models.loader import ServedModel
from penult.service.observability.call import caller
from penult.service.observability.metrics import Metrics
from penult.service.suspension import InFlight

Answered = TypeVar("Answered")

DEFAULT_TOP_K = 5
_REPLACED_RETRY_MS = 100


@dataclass(frozen=True)
class _ModelInstance:
    """A model's own part of the pipeline.

    `driver`: the threads that only this model runs on, None if the thread that decodes also runs the model.
    """

    model: ServedModel
    batcher: Batcher
    driver: ThreadPoolExecutor | None
    scoring: Scoring
    statistics: Statistics = field(default_factory=Statistics)
    in_flight: InFlight = field(default_factory=InFlight)

    async def end(self) -> None:
        """Finish the accepted requests, then stop the model's own threads."""
        await self.in_flight.close()
        self.batcher.close()
        if self.driver:
            await asyncio.to_thread(self.driver.shutdown)


class Pipeline:
    """Answers images with the models given to it. Requests may begin on any thread.

    serve(), unload(), close() and score() run on the event loop.
    """

    def __init__(
        self,
        limits: InferenceLimits,
        metrics: Metrics,
        on_device_result: Callable[[ServedModel, bool], None] = lambda model, ok: None,
        unsure: UnsureImages | None = None,
    ) -> None:
        """Serve no model yet; threads start with the first images.

        `on_device_result` is called on the event loop with False when a model's batch failed twice on the device. It is
        called with True when the model works again. `unsure` keeps images that a model is unsure of.
        """
        self._limits = limits
        self._metrics = metrics
        self._on_device_result, self._unsure = on_device_result, unsure
        self._decoder = Decoder(limits.image, PixelBudget(limits.decode_pixels))
        self._workers = Workers(limits.threads)
        self._work_time = WorkTime(self._workers)
        self._fair = FairExecutor(self._workers)
        # By object: a request that began with one model ends with it, even if another replaced its name and version.
        self._instances: dict[ServedModel, _ModelInstance] = {}
        self._scoring: set[asyncio.Future[list[Answer]]] = set()
        self.admission = RequestAdmission(limits.queue_images, limits.queue_bytes, metrics)
        self._formats = {name: metrics.counting(metrics.images.labels(name)) for name in FORMATS}
        self._depth = metrics.gauging(metrics.queue_depth)
        self._decode_phase = metrics.observing(metrics.phase_seconds.labels("decode"))
        self._score_phase = metrics.observing(metrics.phase_seconds.labels("score"))

    def serve(self, model: ServedModel) -> None:
        """Serve a model from now on."""
        driver = None
        # A thread that waits for more images must not be one that could decode them.
        if not model.is_on_cpu or self._limits.batch_delay_s:
            # A session with a thread of its own is fast on that one only.
            driver = model.session.driver or ThreadPoolExecutor(model.session.callers, thread_name_prefix="driver")
        loop = asyncio.get_running_loop()
        batcher = Batcher(
            model.session.run_images,
            self._limits.batch_images(model),
            model.session.callers,
            driver or self._workers,
            self._metrics,
            self._limits.batch_delay_s,
            self._limits.batch_s(model),
            lambda ok: loop.call_soon_threadsafe(self._on_device_result, model, ok),
            self._work_time.count,
            model.session.run_features,
        )
        self._instances[model] = _ModelInstance(model, batcher, driver, Scoring(model, self._metrics))

    async def unload(self, model: ServedModel) -> None:
        """Finish a model's requests and release it; the caller sends it no more requests."""
        instance = self._instances[model]
        await instance.end()
        del self._instances[model]
        labels = model.name, model.version
        if labels not in {(other.name, other.version) for other in self._instances}:  # it may have been replaced
            instance.scoring.drift.end()

    async def close(self) -> None:
        """Finish the accepted requests, then stop all threads."""
        for instance in list(self._instances.values()):
            await instance.end()
        while self._scoring:
            await asyncio.wait(self._scoring)
        await asyncio.to_thread(self._workers.shutdown)

    async def classify(
        self,
        model: ServedModel,
        images: Sequence[Photo | ImageError],
        scorer: str | None,
        top_k: int,
        expires: float = math.inf,
        limits: AnswerLimits | None = None,
        maps: RequestMaps | None = None,
    ) -> tuple[str, list[Outcome], Timings]:
        """Return the scorer used and one outcome per image, in order.

        Args:
            model: the model to run.
            images: what to classify.
            scorer: dense, svm or novelty; None for the model's default.
            top_k: classes per image.
            expires: when the client stops waiting, by time.perf_counter().
            limits: which answers are withheld.
            maps: the class maps to return; made for this model, scorer and number of images.

        Raises:
            ServiceError: the request as a whole has no answer.

        """
        chosen = scorer or model.manifest.default_scorer
        check_has(model, chosen)
        scoring = self._instance(model).scoring
        finish = partial(scoring.classify, chosen, top_k, limits)
        if self._unsure:
            finish = partial(self._unsure.watch, scoring, images, finish)
        outcomes, timings = await self._run(model, images, finish, expires, maps)
        return chosen, maps.added(outcomes) if maps else outcomes, timings

    async def describe(
        self, model: ServedModel, images: Sequence[Photo | ImageError], expires: float = math.inf
    ) -> tuple[list[Outcome], Timings]:
        """Return one outcome per image, in order: a descriptor, and no classes. Raises ServiceError."""
        scoring = self._instance(model).scoring
        finish = scoring.describe
        if self._unsure:
            finish = partial(self._unsure.watch, scoring, images, finish)
        return await self._run(model, images, finish, expires)

    async def infer(
        self,
        model: ServedModel,
        images: Sequence[Photo | ImageError],
        make: Callable[[Scoring, Floats, Floats, Floats | None], Answered],
        expires: float = math.inf,
        maps: RequestMaps | None = None,
    ) -> Answered:
        """Return what `make` computes, on a thread, from logits, descriptors and novelty of N images.

        `maps` gets the class maps of the images before.

        Raises:
            ImageError: for the first image that cannot be used.
            ServiceError: the request has no answer.

        """
        scoring = self._instance(model).scoring

        def finish(outputs: Sequence[Output]) -> Answered:
            rows = [_usable(place, output) for place, output in enumerate(outputs)]
            descriptors = stacked([row.descriptor for row in rows])
            distances = scoring.novelty(descriptors)
            novelty = [] if distances is None else scoring.drift.record_novelty(distances)
            if self._unsure:
                self._unsure.watch_rows(scoring, images, rows, novelty)
            return make(scoring, stacked([row.logits for row in rows]), descriptors, distances)

        return (await self._run(model, images, finish, expires, maps))[0]

    def record_neighbours(self, model: ServedModel, found: Sequence[Sequence[Hit]]) -> None:
        """Count the distances of a search's nearest items; a model that has been unloaded counts nothing."""
        if instance := self._instances.get(model):
            instance.scoring.drift.record_neighbours(found)

    def probe(self, model: ServedModel) -> None:
        """Run one image without a request if the model has threads of its own, to test its device."""
        instance = self._instances.get(model)
        if instance and instance.driver:
            crop = model.manifest.preprocess.crop
            instance.driver.submit(instance.batcher.probe, np.zeros((crop, crop, 3), dtype=np.uint8))

    def statistics(self, model: ServedModel) -> tuple[Statistics, int]:
        """Return the counts of a model's requests, and of its runs."""
        instance = self._instances[model]
        return instance.statistics, instance.batcher.runs

    async def score(
        self,
        model: ServedModel,
        descriptors: Sequence[Floats | ServiceError],
        top_k: int,
        limits: AnswerLimits | None = None,
    ) -> tuple[list[Outcome], Timings]:
        """Score descriptors float32 [length] with the SVM, or by novelty if the model has one class.

        Returns one outcome each, in order. Raises ServiceError.
        """
        check_has(model, NOVELTY if model.manifest.has_one_class else SVM)
        good = [d for d in descriptors if not isinstance(d, PenultError)]
        started = time.perf_counter()
        ranked: list[Answer] = []
        if good:
            act = partial(self._rank, self._instance(model).scoring, np.stack(good), top_k, limits)
            future = asyncio.wrap_future(self._fair.submit(caller(), act))
            self._scoring.add(future)
            future.add_done_callback(self._scoring.discard)
            ranked = await future
        answers = iter(ranked)
        outcomes: list[Outcome] = [d if isinstance(d, PenultError) else next(answers) for d in descriptors]
        seconds = time.perf_counter() - started
        self._score_phase.observe(seconds)
        return outcomes, Timings(score=seconds, total=seconds)

    def _rank(self, scoring: Scoring, descriptors: Floats, top_k: int, limits: AnswerLimits | None) -> list[Answer]:
        """Score descriptors on a worker, which must not count as time for images."""
        started = time.perf_counter()
        try:
            return scoring.rank_descriptors(descriptors, top_k, limits)
        finally:
            self._work_time.leave_out(time.perf_counter() - started)

    async def _run(
        self,
        model: ServedModel,
        images: Sequence[Photo | ImageError],
        finish: Callable[[list[Output]], Answered],
        expires: float,
        maps: RequestMaps | None = None,
    ) -> tuple[Answered, Timings]:
        """Decode and run every image, and return the answer that `finish` computes from the outputs."""
        instance, client, count = self._instance(model), caller(), len(images)
        held_bytes = sum([1 if isinstance(image, ImageError) else size_bytes(image) for image in images])
        self.admission.admit(client, count, held_bytes, partial(self._wait_s, instance), expires)
        if not instance.in_flight.enter():
            self.admission.release(client, count, held_bytes)
            raise _replaced(model)
        request = PendingRequest(count, finish, expires, client, maps)
        try:
            self._start(instance, request, images)
            answer, timings = await request.wait()
            instance.statistics.succeeded(count, timings)
            self._score_phase.observe(timings.score)
            return answer, timings
        except BaseException as error:
            instance.statistics.failed(time.perf_counter() - request.started)
            if isinstance(error, asyncio.CancelledError):
                reason = "deadline" if request.is_over else "cancelled"
                request.give_up()
                self._metrics.dropped.labels(reason).inc(count)
            raise
        finally:
            self.admission.release(client, count, held_bytes)
            instance.in_flight.leave()

    def check_early(self, client: str, expires: float) -> None:
        """Refuse a request by its headers if the queue is full; raise Overloaded."""
        if not self.admission.is_empty:
            self.admission.check_early(client, self._work_time.wait_s, expires)

    def _wait_s(self, instance: _ModelInstance, images: int) -> float:
        """Return the seconds for so many images; a device works beside the workers."""
        return max(self._work_time.wait_s(images), instance.batcher.wait_s(images) if instance.driver else 0.0)

    def _instance(self, model: ServedModel) -> _ModelInstance:
        """Return a model's part; raise ModelReplaced if it has ended since the caller looked the model up."""
        if instance := self._instances.get(model):
            return instance
        raise _replaced(model)

    def _start(
        self, instance: _ModelInstance, request: PendingRequest[object], images: Sequence[Photo | ImageError]
    ) -> None:
        ready: list[Item] = []
        self._depth.inc(sum([not isinstance(image, ImageError) for image in images]))
        for place, image in enumerate(images):
            if isinstance(image, ImageError):
                request.put(place, image)
                continue
            self._formats[format_of(image)].inc()
            if isinstance(image, RawPhoto) and image.is_crop:
                ready += self._decoded(instance, request, place, image)  # nothing to compute, so no thread is needed
            else:
                self._fair.start(request.client, partial(self._decode, instance, request, place, image))
        if ready:
            instance.batcher.put(ready)

    def _decode(self, instance: _ModelInstance, request: PendingRequest[object], place: int, image: Photo) -> None:
        if request.is_over:
            self._depth.dec()
            return
        try:
            instance.batcher.put(self._decoded(instance, request, place, image), run_here=instance.driver is None)
        except BaseException as error:  # a bug: the client gets an error, and this thread continues
            request.fail(error)

    def _decoded(
        self, instance: _ModelInstance, request: PendingRequest[object], place: int, image: Photo
    ) -> list[Item]:
        """Return the image's item; none if it cannot be decoded, and then the error is its output."""
        started = time.perf_counter()
        try:
            on_size = partial(request.maps.saw, place) if request.maps else None
            pixels = self._decoder.crop(image, instance.model.manifest.preprocess, on_size)
        except BaseException as error:
            self._depth.dec()
            if not isinstance(error, ImageError):
                raise
            self._metrics.dropped.labels("bad_image").inc()
            self._work_time.count(1)
            # Without its traceback, which holds this frame and the image until Python collects cycles.
            request.put(place, error.with_traceback(None))
            return []
        decoding = time.perf_counter() - started
        self._decode_phase.observe(decoding)
        if request.trace:
            request.trace.phase("decode", started, started + decoding)
        request.decode_seconds = max(request.decode_seconds, decoding)
        # The wait for a thread counts as queueing too.
        return [Item(pixels, request, place, request.started + decoding)]


def _replaced(model: ServedModel) -> ModelReplaced:
    return ModelReplaced("MODEL_REPLACED", f"{model.name} was unloaded just now; try again", _REPLACED_RETRY_MS)


def _usable(place: int, output: Output) -> ModelOutput:
    if isinstance(output, PenultError):
        raise type(output)(output.reason, f"image {place}: {output.message}")
    return output
