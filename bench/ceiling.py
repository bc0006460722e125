"""The ceiling: the same graph in onnxruntime and the same decoder, in one process, without a service around them."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from penult.bundle.preprocess import crop_encoded
from penult.bundle.reader import Bundle
from penult.service.runtime.cpu_threads import CpuPlan
from penult.service.runtime.session import Session

CORES = len(os.sched_getaffinity(0))
_BATCHES = (1, 4, 8)
_TRY_S = 0.6


@dataclass(frozen=True)
class Rate:
    """Images per second and CPU-ms per image."""

    images_per_s: float
    cpu_ms: float


class Ceiling:
    """One model in this process, at the threads and batch that give the most images per second here."""

    def __init__(self, bundle: Bundle) -> None:
        """Try narrow and wide runs, alone and in batches, on made-up crops."""
        side = bundle.manifest.preprocess.crop
        self._spec = bundle.manifest.preprocess
        self._crops = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), dtype=np.uint8)
        tried = {}
        for plan in {CpuPlan(1, CORES), CpuPlan(CORES, 1)}:
            session = Session(bundle.onnx, bundle.manifest, "cpu", plan)
            for batch in _BATCHES:
                self._session, self.plan, self.batch = session, plan, batch
                tried[self.raw(_TRY_S).images_per_s] = (session, plan, batch)
        self._session, self.plan, self.batch = tried[max(tried)]

    def raw(self, seconds: float) -> Rate:
        """Run ready crops."""
        return self._measure(seconds, lambda turn: np.stack([self._crops[(turn + n) % 16] for n in range(self.batch)])
                             if self.batch > 1 else self._crops[turn % 16][None])  # fmt: skip

    def jpeg(self, seconds: float, photos: Sequence[bytes]) -> Rate:
        """Decode, resize, crop and run JPEGs."""
        return self._measure(seconds, lambda turn: np.stack(
            [crop_encoded(photos[(turn + n) % len(photos)], self._spec) for n in range(self.batch)]
        ))  # fmt: skip

    def single_ms(self, runs: int = 40) -> list[float]:
        """Return the milliseconds of lone calls with one image each, in order."""
        times = []
        for turn in range(runs):
            started = time.perf_counter()
            self._session.run(self._crops[turn % 16][None])
            times.append(1000 * (time.perf_counter() - started))
        return sorted(times)

    def _measure(self, seconds: float, images: Callable[[int], np.ndarray]) -> Rate:
        self._session.run(images(0))
        until = time.perf_counter() + seconds

        def caller(number: int) -> int:
            done = 0
            while time.perf_counter() < until:
                self._session.run(images(number * 7 + done))
                done += self.batch
            return done

        with ThreadPoolExecutor(self.plan.callers) as threads:
            started, cpu = time.perf_counter(), time.process_time()
            done = sum(threads.map(caller, range(self.plan.callers)))
            return Rate(done / (time.perf_counter() - started), 1000 * (time.process_time() - cpu) / done)
