"""From photos to answers: admission → decode → batch → score. Knows models; knows nothing of gRPC.

A request crosses from the event loop to a thread once and back once. On CPUs the thread that decodes a photo also runs
the model on it and, for a request's last photo, scores it: there is nothing to gain from handing over between threads
that share the same cores. On a device, decoding threads feed the one thread that drives it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np

from penult.bundle.errors import ImageError, PenultError
from penult.bundle.guards import ImageLimits, PixelBudget
from penult.bundle.manifest import DENSE, SVM
from penult.bundle.scores import Floats
from penult.lookup.types import Hit
from penult.service.auth import identity
from penult.service.errors import LacksScorer, Overloaded, ServiceError
from penult.service.inference.admission import AdmissionControl
from penult.service.inference.batcher import Batcher, Item
from penult.service.inference.decoder import FORMATS, Decoder, Photo, RawPhoto, format_of, size_bytes
from penult.service.inference.drift import DriftMonitor
from penult.service.inference.fair_queue import FairExecutor
from penult.service.inference.model_stats import Statistics
from penult.service.inference.request import ModelOutput, Output, PendingRequest
from penult.service.inference.results import Answer, Outcome, Scored, Timings, rank
from penult.service.models.loader import ServedModel
from penult.service.observability.metrics import Metrics

Answered = TypeVar("Answered")

DEFAULT_TOP_K = 5
_MIN_RETRY_MS = 50


@dataclass(frozen=True)
class InferenceLimits:
    """How many threads, images, bytes, pixels (of 4 bytes) and seconds the pipeline may use.

    On CPUs a batch takes as long as its images one by one, and delays those that arrive after it began. In
    measurements, batches of 2 and 4 raised p99 by a fifth and throughput not at all (bench/RESULTS.md).
    """

    threads: int
    cpu_batch_images: int
    device_batch_images: int
    batch_delay_s: float
    queue_images: int
    queue_bytes: int
    decode_pixels: int
    image: ImageLimits

    def batch_images(self, model: ServedModel) -> int:
        """Return the most images per run of a model."""
        return self.cpu_batch_images if model.is_on_cpu else self.device_batch_images


@dataclass(frozen=True)
class _ModelInstance:
    """A model's own part of the pipeline.

    `driver`: the threads that only this model runs on, None where the thread that decodes runs the model too.
    """

    model: ServedModel
    batcher: Batcher
    driver: ThreadPoolExecutor | None
    signals: DriftMonitor
    statistics: Statistics = field(default_factory=Statistics)
    under_way: set[asyncio.Future[Any]] = field(default_factory=set)

    async def end(self) -> None:
        """Finish what was accepted, then stop the model's own threads."""
        while self.under_way:
            await asyncio.wait(self.under_way)
        self.batcher.close()
        if self.driver:
            await asyncio.to_thread(self.driver.shutdown)


class Pipeline:
    """Answers photos with the models given to it. All public methods run on the event loop."""

    def __init__(
        self,
        limits: InferenceLimits,
        metrics: Metrics,
        on_device: Callable[[ServedModel, bool], None] = lambda model, works: None,
    ) -> None:
        """Serve no model yet; threads come with the first photos.

        `on_device` hears, on the event loop, of models whose batches fail on the device, and that they work again.
        """
        self._on_device = on_device
        self._limits, self._metrics = limits, metrics
        self._decoder = Decoder(limits.image, PixelBudget(limits.decode_pixels))
        self._workers = ThreadPoolExecutor(limits.threads, thread_name_prefix="worker")
        self._fair = FairExecutor(self._workers)
        # By object: a request that began with one model ends with it, whatever took over its name and version.
        self._lanes: dict[ServedModel, _ModelInstance] = {}
        self._under_way: set[asyncio.Future[Any]] = set()
        self._shares, self._shares_bytes = (
            AdmissionControl(limits.queue_images),
            AdmissionControl(limits.queue_bytes),
        )
        self._formats = {name: metrics.images.labels(name) for name in FORMATS}
        self._decode_phase, self._score_phase = (metrics.phase_seconds.labels(p) for p in ("decode", "score"))

    def serve(self, model: ServedModel) -> None:
        """Take up a model."""
        driver = None
        # A thread that waits for company must not be one that could bring it.
        if not model.is_on_cpu or self._limits.batch_delay_s:
            # A session with a thread of its own is fast on that one only.
            driver = model.session.driver or ThreadPoolExecutor(model.session.callers, thread_name_prefix="driver")
        loop = asyncio.get_running_loop()

        def tell(works: bool) -> None:
            loop.call_soon_threadsafe(self._on_device, model, works)

        batcher = Batcher(
            model.session.run_images, self._limits.batch_images(model), model.session.callers, driver or self._workers,
            self._metrics, self._limits.batch_delay_s, tell,
        )  # fmt: skip
        self._lanes[model] = _ModelInstance(model, batcher, driver, DriftMonitor(self._metrics, model))

    async def unload(self, model: ServedModel) -> None:
        """Finish a model's requests, and let go of it; nobody may ask for it any more."""
        lane = self._lanes[model]
        await lane.end()
        del self._lanes[model]
        labels = model.name, model.version
        if labels not in {(other.name, other.version) for other in self._lanes}:  # it may have been replaced in place
            lane.signals.end()

    async def close(self) -> None:
        """Finish what was accepted, then stop all threads."""
        for lane in list(self._lanes.values()):
            await lane.end()
        while self._under_way:
            await asyncio.wait(self._under_way)
        await asyncio.to_thread(self._workers.shutdown)

    async def classify(
        self,
        model: ServedModel,
        photos: Sequence[Photo | ImageError],
        scorer: str | None,
        top_k: int,
        expires: float = math.inf,
    ) -> tuple[str, list[Outcome], Timings]:
        """Return the scorer used and one outcome per photo, in order; `scorer` None stands for the model's default.

        `expires` is when the client stops waiting, by time.perf_counter(). Raises ServiceError where the request as a
        whole has no answer.
        """
        chosen, signals = scorer or model.manifest.default_scorer, self._lanes[model].signals
        check_has(model, chosen)

        def finish(work: PendingRequest[Any], outputs: list[Output]) -> tuple[str, list[Outcome], Timings]:
            scoring = time.perf_counter()
            good = [output for output in outputs if isinstance(output, ModelOutput)]
            answers = iter(_score(model, good, chosen, top_k, signals) if good else ())
            outcomes: list[Outcome] = [o if isinstance(o, PenultError) else next(answers) for o in outputs]
            return chosen, outcomes, self._timings(work, outputs, scoring)

        return await self._answer(model, photos, finish, expires)

    async def describe(
        self, model: ServedModel, photos: Sequence[Photo | ImageError], expires: float = math.inf
    ) -> tuple[list[Outcome], Timings]:
        """Return one outcome per photo, in order: a descriptor, and no classes. Raises ServiceError."""
        signals = self._lanes[model].signals

        def finish(work: PendingRequest[Any], outputs: list[Output]) -> tuple[list[Outcome], Timings]:
            scoring = time.perf_counter()
            good = [Answer((), output.descriptor) for output in outputs if isinstance(output, ModelOutput)]
            judged = iter(signals.judged(good, np.stack([answer.descriptor for answer in good])) if good else ())
            outcomes: list[Outcome] = [o if isinstance(o, PenultError) else next(judged) for o in outputs]
            return outcomes, self._timings(work, outputs, scoring)

        return await self._answer(model, photos, finish, expires)

    async def infer(
        self,
        model: ServedModel,
        photos: Sequence[Photo | ImageError],
        make: Callable[[Floats, Floats], Answered],
        expires: float = math.inf,
    ) -> Answered:
        """Return what `make` makes, on a thread, of logits [N, logits_length] and descriptors [N, length].

        Raises ImageError for the first photo that cannot be used, and ServiceError.
        """
        signals = self._lanes[model].signals

        def finish(work: PendingRequest[Any], outputs: list[Output]) -> tuple[Answered, Timings]:
            scoring = time.perf_counter()
            rows = [_usable(place, output) for place, output in enumerate(outputs)]
            descriptors = np.stack([row.descriptor for row in rows])
            signals.novel(descriptors)
            made = make(np.stack([row.logits for row in rows]), descriptors)
            return made, self._timings(work, outputs, scoring)

        answered: Answered = (await self._answer(model, photos, finish, expires))[0]
        return answered

    def signals(self, model: ServedModel) -> DriftMonitor:
        """Return what counts a model's answers."""
        return self._lanes[model].signals

    def found_near(self, model: ServedModel, found: Sequence[Sequence[Hit]]) -> None:
        """Count how near the items are that a search found; of a model that has left meanwhile, nothing counts."""
        if lane := self._lanes.get(model):
            lane.signals.neighbours(found)

    def probe(self, model: ServedModel) -> None:
        """Run one image for nobody where the model has threads of its own, so that its device shows how it is."""
        lane = self._lanes.get(model)
        if lane and lane.driver:
            crop = model.manifest.preprocess.crop
            lane.driver.submit(lane.batcher.probe, np.zeros((crop, crop, 3), dtype=np.uint8))

    def statistics(self, model: ServedModel) -> tuple[Statistics, int]:
        """Return what a model has answered, and how often it ran."""
        lane = self._lanes[model]
        return lane.statistics, lane.batcher.runs

    async def score(
        self, model: ServedModel, descriptors: Sequence[Floats | ServiceError], top_k: int
    ) -> tuple[list[Outcome], Timings]:
        """Score descriptors float32 [length] with the SVM; one outcome each, in order. Raises ServiceError."""
        check_has(model, SVM)
        assert model.svm is not None  # it was checked just now
        good = [d for d in descriptors if not isinstance(d, PenultError)]
        started = time.perf_counter()
        ranked: Iterator[tuple[Scored, ...]] = iter(())
        if good:
            ranked = iter(await self._on_worker(_rank_all, model, model.svm, np.stack(good), top_k))
        outcomes: list[Outcome] = [d if isinstance(d, PenultError) else Answer(next(ranked), d) for d in descriptors]
        seconds = time.perf_counter() - started
        self._score_phase.observe(seconds)
        return outcomes, Timings(score=seconds, total=seconds)

    async def _on_worker(self, act: Any, *arguments: Any) -> Any:
        future = asyncio.wrap_future(self._fair.submit(identity.caller(), act, *arguments))
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return await future

    async def _answer(
        self, model: ServedModel, photos: Sequence[Photo | ImageError], finish: Any, expires: float
    ) -> Any:
        """Send every photo on its way and wait for the answer that `finish` makes of the outputs."""
        lane = self._lanes[model]
        with self._admitted(lane, photos, expires):
            work: PendingRequest[Any] = PendingRequest(len(photos), finish, expires)
            lane.under_way.add(work.answer)
            work.answer.add_done_callback(lane.under_way.discard)
            self._start(lane, work, photos)
            try:
                answer = await work.answer
                lane.statistics.succeeded(len(photos), answer[-1])
                return answer
            except BaseException as error:
                lane.statistics.failed(time.perf_counter() - work.started)
                if not isinstance(error, asyncio.CancelledError):
                    raise
                reason = "deadline" if work.is_over else "cancelled"
                work.give_up()
                self._metrics.dropped.labels(reason).inc(len(photos))
                raise

    def _start(self, lane: _ModelInstance, work: PendingRequest[Any], photos: Sequence[Photo | ImageError]) -> None:
        ready: list[Item] = []
        self._metrics.queue_depth.inc(sum(not isinstance(photo, ImageError) for photo in photos))
        for place, photo in enumerate(photos):
            if isinstance(photo, ImageError):
                work.put(place, photo)
                continue
            self._formats[format_of(photo)].inc()
            if isinstance(photo, RawPhoto) and photo.is_crop:
                ready += self._decoded(lane, work, place, photo)  # nothing to compute, so no thread is asked
            else:
                self._fair.submit(work.client, self._decode, lane, work, place, photo)
        if ready:
            lane.batcher.put(ready)

    def _decode(self, lane: _ModelInstance, work: PendingRequest[Any], place: int, photo: Photo) -> None:
        if work.is_over:
            self._metrics.queue_depth.dec()
            return
        try:
            lane.batcher.put(self._decoded(lane, work, place, photo), run_here=lane.driver is None)
        except BaseException as error:  # a bug: the caller must hear of it, and this thread go on
            work.fail(error)

    def _decoded(self, lane: _ModelInstance, work: PendingRequest[Any], place: int, photo: Photo) -> list[Item]:
        """Return the photo's item; none where it cannot be decoded, which is then its outcome."""
        started = time.perf_counter()
        try:
            pixels = self._decoder.crop(photo, lane.model.manifest.preprocess)
        except BaseException as error:
            self._metrics.queue_depth.dec()
            if not isinstance(error, ImageError):
                raise
            self._metrics.dropped.labels("bad_image").inc()
            # Without its traceback: that holds this frame, and with it the photo, until Python looks for cycles.
            work.put(place, error.with_traceback(None))
            return []
        decoding = time.perf_counter() - started
        self._decode_phase.observe(decoding)
        if work.trace:
            work.trace.phase("decode", started, started + decoding)
        work.decode_seconds = max(work.decode_seconds, decoding)
        # All that it waits counts as queueing, for a thread to decode it too.
        return [Item(pixels, work, place, work.started + decoding)]

    @contextmanager
    def _admitted(self, lane: _ModelInstance, photos: Sequence[Photo | ImageError], expires: float) -> Iterator[None]:
        """Count images and their bytes in and out; raise Overloaded if they are too many, or are answered too late.

        A lone request always fits.
        """
        client, shares, images = identity.caller(), self._shares, len(photos)
        held_bytes = sum(1 if isinstance(photo, ImageError) else size_bytes(photo) for photo in photos)
        if shares.total:
            wait = lane.batcher.wait_s(shares.ahead(client))
            hint = max(_MIN_RETRY_MS, int(1000 * wait / 2))
            if not (shares.fits(client, images) and self._shares_bytes.fits(client, held_bytes)):
                self._metrics.dropped.labels("queue_full").inc(images)
                raise Overloaded("QUEUE_FULL", "the server is busy; try again after the hint", retry_after_ms=hint)
            if time.perf_counter() + wait > expires:
                self._metrics.dropped.labels("too_late").inc(images)
                raise Overloaded(
                    "QUEUE_TOO_LONG", "the server is busy and would answer too late for the deadline; try again later",
                    retry_after_ms=hint,
                )  # fmt: skip
        shares.add(client, images)
        self._shares_bytes.add(client, held_bytes)
        try:
            yield
        finally:
            shares.remove(client, images)
            self._shares_bytes.remove(client, held_bytes)

    def _timings(self, work: PendingRequest[Any], outputs: list[Output], scoring: float) -> Timings:
        now = time.perf_counter()
        self._score_phase.observe(now - scoring)
        if work.trace:
            work.trace.phase("score", scoring, now)
        ran = [output for output in outputs if isinstance(output, ModelOutput)]
        return Timings(
            decode=work.decode_seconds,
            queue=max((output.queue_seconds for output in ran), default=0.0),
            inference=max((output.inference_seconds for output in ran), default=0.0),
            score=now - scoring,
            total=now - work.started,
        )


def _score(
    model: ServedModel, outputs: list[ModelOutput], scorer: str, top_k: int, signals: DriftMonitor
) -> list[Answer]:
    descriptors = np.stack([output.descriptor for output in outputs])
    if scorer == DENSE:
        scores = np.stack([output.logits for output in outputs])
    else:
        assert model.svm is not None  # `scorer` was checked against the model's
        scores = model.svm(descriptors)
    ranked = rank(scores, model.manifest.classes, model.manifest.temperatures[scorer], top_k)
    signals.named(scorer, ((classes[0].label, classes[0].probability) for classes in ranked))
    answers = [Answer(classes, cast("Floats", d)) for classes, d in zip(ranked, descriptors, strict=True)]
    return signals.judged(answers, descriptors)


def _rank_all(model: ServedModel, svm: Any, descriptors: Floats, top_k: int) -> list[tuple[Scored, ...]]:
    return rank(svm(descriptors), model.manifest.classes, model.manifest.temperatures[SVM], top_k)


def _usable(place: int, output: Output) -> ModelOutput:
    if isinstance(output, PenultError):
        raise type(output)(output.reason, f"image {place}: {output.message}")
    return output


def check_has(model: ServedModel, scorer: str) -> None:
    """Raise LacksScorer where a model has no such scorer."""
    if scorer not in model.scorers:
        raise LacksScorer(
            "SCORER_MISSING",
            f"{model.name} version {model.version} has no {scorer} scorer; ask for {' or '.join(model.scorers)}",
        )
