"""From photos to answers: admission → decode → batch → score. Knows models; knows nothing of gRPC."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np

from penult.bundle.errors import ImageError, PenultError
from penult.bundle.manifest import DENSE, SVM
from penult.bundle.scores import Floats
from penult.service.answers import Answer, Outcome, Scored, Timings, rank
from penult.service.batching import Batcher, ModelOutput
from penult.service.config import ServeConfig
from penult.service.decoding import Decoder, Photo, PixelBudget
from penult.service.errors import BadOutput, LacksScorer, Overloaded, ServiceError
from penult.service.metrics import Metrics
from penult.service.repository import ServedModel
from penult.service.session import CPU

DEFAULT_TOP_K = 5
_RETRY_MS = 200
_BATCH_IMAGES = {CPU: 8}
_BATCH_IMAGES_ON_DEVICE = 32


def batch_limit(config: ServeConfig, provider: str) -> int:
    """Return the most images per run: batches do not pay on CPUs (research/ceilings.md, section 2)."""
    return config.batch_max_images or _BATCH_IMAGES.get(provider, _BATCH_IMAGES_ON_DEVICE)


class Pipeline:
    """Answers photos with the models given to it. All methods run on the event loop."""

    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        """Serve no model yet."""
        self._config, self._metrics = config, metrics
        self._decoder = Decoder(config.cpu_threads, config.image_limits, PixelBudget(config.decode_max_pixels))
        # By version too: a request that began with one version ends with it.
        self._batchers: dict[tuple[str, int], Batcher] = {}
        self._in_flight = 0

    def serve(self, model: ServedModel) -> None:
        """Take up a model."""
        # On CPUs one caller per core, each with one thread; a device takes one batch at a time.
        callers = self._config.cpu_threads if model.session.provider == CPU else 1
        limit = batch_limit(self._config, model.session.provider)
        self._batchers[model.name, model.version] = Batcher(model.session.run, limit, callers, self._metrics)

    async def close(self) -> None:
        """Finish what was accepted, then stop all threads."""
        for batcher in self._batchers.values():
            await batcher.close()
        self._decoder.close()

    async def classify(
        self, model: ServedModel, photos: Sequence[Photo | ImageError], scorer: str | None, top_k: int
    ) -> tuple[str, list[Outcome], Timings]:
        """Return the scorer used and one outcome per photo, in order; `scorer` None stands for the model's default.

        Raises ServiceError where the request as a whole has no answer.
        """
        scorer = scorer or model.manifest.default_scorer
        _check_has(model, scorer)
        started = time.perf_counter()
        outputs = await self._run_all(model, photos)
        scoring = time.perf_counter()
        good = [output for _, output in outputs if isinstance(output, ModelOutput)]
        answers = iter(self._score(model, good, scorer, top_k)) if good else iter(())
        outcomes: list[Outcome] = [o if isinstance(o, PenultError) else next(answers) for _, o in outputs]
        return scorer, outcomes, self._timings(outputs, started, scoring)

    async def describe(self, model: ServedModel, photos: Sequence[Photo | ImageError]) -> tuple[list[Outcome], Timings]:
        """Return one outcome per photo, in order: a descriptor, and no classes. Raises ServiceError."""
        started = time.perf_counter()
        outputs = await self._run_all(model, photos)
        outcomes: list[Outcome] = [o if isinstance(o, PenultError) else Answer((), o.descriptor) for _, o in outputs]
        return outcomes, self._timings(outputs, started, time.perf_counter())

    def score(
        self, model: ServedModel, descriptors: Sequence[Floats | ServiceError], top_k: int
    ) -> tuple[list[Outcome], Timings]:
        """Score descriptors float32 [length] with the SVM; one outcome each, in order. Raises ServiceError."""
        _check_has(model, SVM)
        assert model.svm is not None  # it was checked just now
        started = time.perf_counter()
        good = [d for d in descriptors if not isinstance(d, PenultError)]
        ranked: Iterator[tuple[Scored, ...]] = iter(())
        if good:
            scores = model.svm(np.stack(good))
            ranked = iter(rank(scores, model.manifest.classes, model.manifest.temperatures[SVM], top_k))
        outcomes: list[Outcome] = [d if isinstance(d, PenultError) else Answer(next(ranked), d) for d in descriptors]
        seconds = time.perf_counter() - started
        self._metrics.phase_seconds.labels("score").observe(seconds)
        return outcomes, Timings(score=seconds, total=seconds)

    async def _run_all(
        self, model: ServedModel, photos: Sequence[Photo | ImageError]
    ) -> list[tuple[float, ModelOutput | PenultError]]:
        """Decode and run every photo at once; return (decode seconds, output or error) per photo."""
        with self._admitted(len(photos)):
            return list(await asyncio.gather(*(self._run(model, photo) for photo in photos)))

    async def _run(self, model: ServedModel, photo: Photo | ImageError) -> tuple[float, ModelOutput | PenultError]:
        if isinstance(photo, ImageError):
            return 0.0, photo
        try:
            pixels, seconds = await self._decoder.crop(photo, model.manifest.preprocess)
        except ImageError as error:
            self._metrics.dropped.labels("bad_image").inc()
            return 0.0, error
        self._metrics.phase_seconds.labels("decode").observe(seconds)
        output = await self._batchers[model.name, model.version].run(pixels)
        if not (np.isfinite(output.logits).all() and np.isfinite(output.descriptor).all()):
            return seconds, BadOutput("MODEL_NOT_FINITE", "the model gave no finite numbers for this image")
        return seconds, output

    @contextmanager
    def _admitted(self, images: int) -> Iterator[None]:
        """Count images in and out; raise Overloaded where they would be too many. A lone request always fits."""
        if self._in_flight and self._in_flight + images > self._config.queue_max_images:
            self._metrics.dropped.labels("queue_full").inc(images)
            raise Overloaded("QUEUE_FULL", "the server is busy; try again after the hint", retry_after_ms=_RETRY_MS)
        self._in_flight += images
        try:
            yield
        finally:
            self._in_flight -= images

    def _score(self, model: ServedModel, outputs: list[ModelOutput], scorer: str, top_k: int) -> list[Answer]:
        descriptors = np.stack([output.descriptor for output in outputs])
        if scorer == DENSE:
            scores = np.stack([output.logits for output in outputs])
        else:
            assert model.svm is not None  # `scorer` was checked against the model's
            scores = model.svm(descriptors)
        ranked = rank(scores, model.manifest.classes, model.manifest.temperatures[scorer], top_k)
        return [Answer(classes, cast("Floats", d)) for classes, d in zip(ranked, descriptors, strict=True)]

    def _timings(
        self, outputs: list[tuple[float, ModelOutput | PenultError]], started: float, scoring: float
    ) -> Timings:
        now = time.perf_counter()
        self._metrics.phase_seconds.labels("score").observe(now - scoring)
        ran = [output for _, output in outputs if isinstance(output, ModelOutput)]
        return Timings(
            decode=max((seconds for seconds, _ in outputs), default=0.0),
            queue=max((output.queue_seconds for output in ran), default=0.0),
            inference=max((output.inference_seconds for output in ran), default=0.0),
            score=now - scoring,
            total=now - started,
        )


def _check_has(model: ServedModel, scorer: str) -> None:
    if scorer not in model.scorers:
        raise LacksScorer(
            "SCORER_MISSING",
            f"{model.name} version {model.version} has no {scorer} scorer; ask for {' or '.join(model.scorers)}",
        )
