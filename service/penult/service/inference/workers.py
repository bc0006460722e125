"""Threads that decode images and run models."""

import logging
import queue
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Act = Callable[[], object]
# Images between two measurements.
_MIN_IMAGES = 16


class Workers:
    """A fixed number of threads that run what is submitted, without a result; they start when they are needed."""

    def __init__(self, threads: int) -> None:
        """Allow so many threads."""
        self._acts: queue.SimpleQueue[Act | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.count = threads
        # Seconds that each thread has worked; written by that thread only.
        self._busy_s = [0.0] * threads

    def submit(self, act: Act) -> None:
        """Run `act` on a thread; an exception is logged as a bug. Costs a tenth of what a ThreadPoolExecutor does."""
        if len(self._threads) < self.count:
            self._add_thread()
        self._acts.put(act)

    @property
    def busy_s(self) -> float:
        """Return the seconds that all threads have worked."""
        return sum(self._busy_s)

    def shutdown(self) -> None:
        """Finish what was submitted, and wait for the threads to end."""
        for _ in self._threads:
            self._acts.put(None)
        for thread in self._threads:
            thread.join()

    def _add_thread(self) -> None:
        with self._lock:
            if len(self._threads) < self.count:
                name = f"worker_{len(self._threads)}"
                place = (len(self._threads),)
                self._threads.append(threading.Thread(target=self._work, args=place, name=name, daemon=True))
                self._threads[-1].start()

    def _work(self, place: int) -> None:
        while act := self._acts.get():
            started = time.perf_counter()
            try:
                act()
            except Exception:
                log.exception("a worker's task failed")
            self._busy_s[place] += time.perf_counter() - started
            del act  # it may hold an image, until the next one comes


class WorkTime:
    """How long workers work for an image, decoding included: a moving average, from any thread."""

    def __init__(self, workers: Workers) -> None:
        """Know nothing yet."""
        self._workers = workers
        self._lock = threading.Lock()
        # Since the last measurement: images, and seconds of work that was not for images.
        self._images, self._other_s = 0, 0.0
        self._busy_s = 0.0
        self._per_image_s = 0.0

    def count(self, images: int) -> None:
        """Count images that workers have worked for, whether they were run or could not be used."""
        with self._lock:
            self._images += images

    def leave_out(self, seconds: float) -> None:
        """Count seconds that a worker has worked for something else than images."""
        with self._lock:
            self._other_s += seconds

    def wait_s(self, images: int) -> float:
        """Return the seconds for so many images on all workers."""
        with self._lock:
            if self._images >= _MIN_IMAGES or (self._images and not self._per_image_s):
                self._measure()
            return images * self._per_image_s / self._workers.count

    def _measure(self) -> None:
        busy_s = self._workers.busy_s
        found = max(0.0, busy_s - self._busy_s - self._other_s) / self._images
        # Half of it is older, so that one slow moment does not decide.
        self._per_image_s = (self._per_image_s + found) / 2 if self._per_image_s else found
        self._images, self._other_s, self._busy_s = 0, 0.0, busy_s
