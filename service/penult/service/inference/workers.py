"""Threads that decode images and run models."""

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

Act = Callable[[], object]


class Workers:
    """A fixed number of threads that run what is submitted, without a result; they start when they are needed."""

    def __init__(self, threads: int) -> None:
        """Allow so many threads."""
        self._acts: queue.SimpleQueue[Act | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._count = threads

    def submit(self, act: Act) -> None:
        """Run `act` on a thread; an exception is logged as a bug. Costs a tenth of what a ThreadPoolExecutor does."""
        if len(self._threads) < self._count:
            self._add_thread()
        self._acts.put(act)

    def shutdown(self) -> None:
        """Finish what was submitted, and wait for the threads to end."""
        for _ in self._threads:
            self._acts.put(None)
        for thread in self._threads:
            thread.join()

    def _add_thread(self) -> None:
        with self._lock:
            if len(self._threads) < self._count:
                name = f"worker_{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()

    def _work(self) -> None:
        while act := self._acts.get():
            try:
                act()
            except Exception:
                log.exception("a worker's task failed")
            del act  # it may hold an image, until the next one comes
