"""One request between the loop and the threads: its photos' outputs come in any order, its answer goes out once."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from penult.bundle.errors import PenultError
from penult.bundle.scores import Floats
from penult.service.auth import identity
from penult.service.observability import tracing

Answered = TypeVar("Answered")


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """One image's rows of the model's outputs, and the seconds it waited and the model ran."""

    logits: Floats
    descriptor: Floats
    queue_seconds: float
    inference_seconds: float


Output = ModelOutput | PenultError


class PendingRequest(Generic[Answered]):
    """Collects one output per photo, from any thread; the thread that brings the last one makes the answer of them all.

    `answer` is awaited on the loop that the work was made on. `expires` is when nobody will want it any more, by
    time.perf_counter(). Once it is cancelled or expired, is_over tells every thread to leave it alone.
    """

    def __init__(
        self, photos: int, finish: Callable[["PendingRequest[Answered]", list[Output]], Answered], expires: float
    ) -> None:
        """Wait for `photos` outputs; `finish` turns them, in the photos' order, into the answer, on some thread."""
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answered] = self._loop.create_future()
        self.decode_seconds = 0.0
        self.started = time.perf_counter()
        self.trace = tracing.current()
        self.client = identity.caller()
        self._outputs: list[Output | None] = [None] * photos
        self._left, self._finish, self._expires = photos, finish, expires
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._is_over or time.perf_counter() > self._expires

    def give_up(self) -> None:
        """Let the threads pass over what is left of it."""
        self._is_over = True

    def put(self, place: int, output: Output) -> None:
        """Bring the output of the photo at `place`; with the last one, make the answer and send it to the loop."""
        with self._lock:
            self._outputs[place] = output
            self._left -= 1
            is_whole = not self._left
        if is_whole and not self._is_over:
            try:
                answer = self._finish(self, [output for output in self._outputs if output is not None])
            except BaseException as error:  # a bug, or what the scorer raises: the caller's to see
                self.fail(error)
            else:
                self._send(lambda: self.answer.set_result(answer))

    def fail(self, error: BaseException) -> None:
        """Answer the whole request with an exception; what is left of it is passed over."""
        self._is_over = True
        self._send(lambda: self.answer.set_exception(error))

    def _send(self, act: Callable[[], None]) -> None:
        def unless_done() -> None:
            if not self.answer.done():
                act()

        self._loop.call_soon_threadsafe(unless_done)
