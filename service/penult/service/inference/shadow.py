"""Shadows: a second version sees a share of the requests after their answers have gone, and its answers are compared.

The way of a request: its answers are remembered for feedback (recent_answers.py), and offered here with their photos.
By a hash of the request's id, a share of them is put in a bounded queue. When the call has ended and no other image is
in the pipeline, one thread of low priority takes one image, decodes it for the shadow, runs it and compares the class.
Feedback about the answer then counts for both versions. The shadow has no part in admission, queues, batches, drift or
statistics of what clients get. It is the first that is shed: a full queue drops its oldest image, a refused request and
a drain drop all.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from penult.bundle.errors import ImageError
from penult.bundle.manifest import DENSE
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import best_of
from penult.service.errors import one_line
from penult.service.inference.decoder import Decoder, Photo, RawPhoto, size_bytes
from penult.service.models.loader import ServedModel
from penult.service.observability.comparisons import ONLY_PRIMARY, ONLY_SHADOW, UNCLEAR, Comparison, what_it_says
from penult.service.observability.metrics import Metrics
from penult.service.observability.truths import Truth

log = logging.getLogger(__name__)

COMPARED, SHED, FAILED = OUTCOMES = ("compared", "shed", "failed")
_QUEUE_IMAGES, _QUEUE_BYTES = 256, 64 << 20
# Calls of streams end late, so the thread also looks by itself.
_LOOK_S = 0.2
# The thread's niceness, if the system has one for each thread: requests come first on the cores too. It is the lowest
# priority. With that of the others, a shadow that saw every request made a lone caller's p50 half as long again.
_NICE = 19
_HASHES = 1 << 32


@dataclass(slots=True)
class _Pair:
    """One answer of the primary, and what is known beside it."""

    comparison: Comparison
    key: tuple[str, int]
    label: str
    probability: float
    # Seconds to decode, run and score the image; 0 if unknown.
    seconds: float
    photo: Photo | None
    # The shadow's class, "" until it has answered.
    shadow: str = ""
    truth: Truth | None = None
    # What was counted of the feedback.
    found: str = ""


class Shadows:
    """The versions that are only compared, one for each name at most. Called from any thread."""

    def __init__(
        self,
        versions: Mapping[str, int],
        share: float,
        decoder: Decoder,
        is_idle: Callable[[], bool],
        metrics: Metrics,
        max_answers: int = 20_000,
    ) -> None:
        """Compare nothing yet.

        Args:
            versions: The shadow of each model, by name.
            share: The share of requests that shadows see, 0 to 1.
            decoder: Turns photos into pixels.
            is_idle: Returns whether no image of a request waits or runs.
            metrics: Where images and comparisons are counted.
            max_answers: The answers of shadows that are remembered for feedback.

        """
        self._versions, self._share, self._decoder, self._is_idle = versions, share, decoder, is_idle
        self._metrics, self._max_answers = metrics, max_answers
        self._models: dict[str, ServedModel] = {}
        self._waiting: deque[_Pair] = deque()
        self._bytes = 0
        self._pairs: OrderedDict[tuple[str, int], _Pair] = OrderedDict()
        self._lock = threading.Lock()
        # The models that failed at their last image; the thread's own.
        self._failing: set[str] = set()
        # Held while the thread works with a model.
        self._turn = threading.Lock()
        self._wake = threading.Event()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def has(self, name: str, version: int) -> bool:
        """Return whether a version is a shadow."""
        return self._versions.get(name) == version

    def serve(self, model: ServedModel) -> None:
        """Compare with a model from now on, and forget what was compared with its version before."""
        self._metrics.comparisons.forget(model.name, model.version)
        for outcome in OUTCOMES:
            self._count(model.name, model.version, outcome, 0)
        with self._lock:
            self._models[model.name] = model
        log.info(
            "%s version %d is a shadow: it sees %.3g %% of the requests after the answer, and its answers are compared",
            model.name, model.version, 100 * self._share,
        )  # fmt: skip

    async def unload(self, model: ServedModel) -> None:
        """Finish the image that runs, and release a model."""
        with self._lock:
            if self._models.get(model.name) is model:
                del self._models[model.name]
        if model.name not in self._models:
            self._shed(lambda pair: pair.comparison.model == model.name)
        await asyncio.to_thread(self._release, model)

    def _release(self, model: ServedModel) -> None:
        with self._turn:
            if model.session.driver:
                model.session.driver.shutdown()

    def wants(self, model: ServedModel, scorer: str, key: str) -> bool:
        """Return whether a shadow is to see the response `key` of a model; only default scorers are compared."""
        shadow = self._models.get(model.name)
        if shadow is None or scorer != model.manifest.default_scorer:
            return False
        return zlib.crc32(key.encode()) < self._share * _HASHES

    def offer(
        self, model: ServedModel, key: str, best: Sequence[tuple[str, float] | None],
        images: Sequence[Photo | ImageError], seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """Put the answers of a response that wants() chose into the queue.

        Args:
            model: What answered.
            key: The id of the response.
            best: The best class of each image and its probability; None for an image without an answer.
            images: The images.
            seconds: How long decoding, run and scoring took of a single image.

        """
        shadow = self._models.get(model.name)
        if shadow is None or self._is_closed:
            return
        comparison = self._metrics.comparisons.of(model.name, shadow.version, model.version)
        for index, (answer, image) in enumerate(zip(best, images, strict=True)):
            if answer and not isinstance(image, ImageError) and _fits(image, model, shadow):
                self._put(_Pair(comparison, (key, index), *answer, seconds if len(best) == 1 else 0.0, image))

    def _put(self, pair: _Pair) -> None:
        dropped: list[_Pair] = []
        with self._lock:
            assert pair.photo is not None
            self._waiting.append(pair)
            self._bytes += size_bytes(pair.photo)
            self._pairs[pair.key] = pair
            while len(self._pairs) > self._max_answers:
                self._pairs.popitem(last=False)
            while len(self._waiting) > _QUEUE_IMAGES or self._bytes > _QUEUE_BYTES:
                dropped.append(self._take())
        self._forget(dropped, SHED)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
                self._thread.start()

    def _take(self) -> _Pair:
        """Take the oldest image; under the lock."""
        pair = self._waiting.popleft()
        assert pair.photo is not None
        self._bytes -= size_bytes(pair.photo)
        return pair

    def wake(self) -> None:
        """Let the thread continue, at the end of a call."""
        if self._waiting and self._is_idle():
            self._wake.set()

    def shed(self) -> None:
        """Drop the images that wait: requests need the machine, or the server drains."""
        if self._waiting:
            self._shed(lambda pair: True)

    def _shed(self, is_meant: Callable[[_Pair], bool]) -> None:
        with self._lock:
            dropped = [pair for pair in self._waiting if is_meant(pair)]
            self._waiting = deque(pair for pair in self._waiting if not is_meant(pair))
            self._bytes = sum(size_bytes(pair.photo) for pair in self._waiting if pair.photo)
        self._forget(dropped, SHED)

    def close(self) -> None:
        """Drop what waits, and accept no more; an image that runs now is finished."""
        self._is_closed = True
        self.shed()
        self._wake.set()

    def judge(self, truth: Truth) -> None:
        """Count feedback about an answer for the shadow too, now or when the shadow has answered."""
        with self._lock:
            pair = self._pairs.get((truth.request_id, truth.index))
            if pair is None or (truth.version, truth.answered) != (pair.comparison.primary, pair.label):
                return
            pair.truth = truth
        self._join(pair)

    def _work(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not every system has a niceness for each thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        seen: _Pair | None = None
        while not self._is_closed:
            is_woken = self._wake.wait(_LOOK_S)
            self._wake.clear()
            oldest = self._waiting[0] if self._waiting else None
            # Without a call that ended, only what has waited since the last look: its answer has gone by now.
            while (is_woken or (oldest is not None and oldest is seen)) and self._compare_one():
                pass
            seen = oldest

    def _compare_one(self) -> bool:
        """Compare the oldest image if no request needs the machine; return whether there was one."""
        with self._turn:
            with self._lock:
                if not self._waiting or not self._is_idle():
                    return False
                pair = self._take()
                shadow = self._models.get(pair.comparison.model)
            photo, pair.photo = pair.photo, None
            if shadow is None or photo is None:
                self._forget([pair], SHED)
                return True
            # Of low priority, the thread often waits for the processor, which says nothing of the version.
            clock = time.thread_time if shadow.is_on_cpu else time.perf_counter
            started = clock()
            try:
                label, probability = _answer(shadow, self._decoder.crop(photo, shadow.manifest.preprocess))
            except Exception as error:  # of the decoder, or of onnxruntime, which has a dozen
                if shadow.name not in self._failing:  # a version that always fails must not fill the log
                    log.warning("shadow %s version %d fails: %s", shadow.name, shadow.version, one_line(error))
                self._failing.add(shadow.name)
                self._forget([pair], FAILED)
                return True
            seconds = clock() - started
            self._failing.discard(shadow.name)
        pair.comparison.add(label == pair.label, (pair.probability, probability), (pair.seconds, seconds))
        pair.shadow = label
        self._count(shadow.name, shadow.version, COMPARED, 1)
        self._join(pair)
        return True

    def _join(self, pair: _Pair) -> None:
        """Count what feedback says of a pair, once both are known."""
        with self._lock:
            if not pair.shadow or pair.truth is None:
                return
            found, before = what_it_says(pair.truth, pair.shadow), pair.found
            pair.found = found
        comparison = pair.comparison
        if comparison.judge(found, before):
            counts = comparison.now().found
            log.warning(
                "%s version %d, a shadow, is worse than version %d: of %d answers with feedback only version %d "
                "is right on %d, and only version %d on %d", comparison.model, comparison.version, comparison.primary,
                sum(counts.values()), comparison.primary, counts[ONLY_PRIMARY], comparison.version,
                counts[ONLY_SHADOW] + counts[UNCLEAR],
            )  # fmt: skip

    def _forget(self, pairs: Sequence[_Pair], outcome: str) -> None:
        """Drop pairs without an answer of the shadow."""
        with self._lock:
            for pair in pairs:
                pair.photo = None
                if self._pairs.get(pair.key) is pair:
                    del self._pairs[pair.key]
        for (name, version), count in Counter((p.comparison.model, p.comparison.version) for p in pairs).items():
            self._count(name, version, outcome, count)

    def _count(self, name: str, version: int, outcome: str, images: int) -> None:
        self._metrics.shadow_images.labels(name, str(version), outcome).inc(images)


def _fits(image: Photo, model: ServedModel, shadow: ServedModel) -> bool:
    """Return whether a shadow can look at an image: pixels that are cropped already fit one preprocessing only."""
    is_crop = isinstance(image, RawPhoto) and image.is_crop
    return not is_crop or model.manifest.preprocess == shadow.manifest.preprocess


def _answer(model: ServedModel, pixels: Pixels) -> tuple[str, float]:
    """Return the best class by the default scorer, and its probability; count nothing."""
    logits, descriptors = model.session.run_images([pixels])
    manifest = model.manifest
    scores = logits
    if manifest.default_scorer != DENSE:
        assert model.svm is not None  # the manifest's default scorer is there
        scores = model.svm(descriptors)
    places, probabilities = best_of(scores, manifest.temperatures[manifest.default_scorer])
    return manifest.classes[int(places[0])], float(probabilities[0])
