"""One request between the event loop and the threads: outputs arrive in any order, one answer leaves."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from penult.bundle.errors import PenultError
from penult.bundle.scores import Floats
from penult.service.inference.results import Timings
from penult.service.observability import tracing

Answered_co = TypeVar("Answered_co", covariant=True)


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """One image's rows of the model's outputs, and the seconds of its wait and of the run."""

    logits: Floats
    descriptor: Floats
    queue_seconds: float
    inference_seconds: float


Output = ModelOutput | PenultError


class PendingRequest(Generic[Answered_co]):
    """Collects one output per image, from any thread; the thread that puts the last one computes the answer.

    `answer` is awaited on the event loop that made the request. Threads skip the images of a request that is over.
    """

    def __init__(
        self, images: int, finish: Callable[[list[Output]], Answered_co], expires: float, client: str = ""
    ) -> None:
        """Wait for `images` outputs; `finish` computes the answer from them, in the images' order, on some thread.

        Args:
            images: how many outputs to wait for.
            finish: called once, with all outputs.
            expires: when the client stops waiting, by time.perf_counter().
            client: whose turn the images take in queues.

        """
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[tuple[Answered_co, Timings]] = self._loop.create_future()
        self.decode_seconds = 0.0
        self.started = time.perf_counter()
        self.trace = tracing.current()
        self.client = client
        self._outputs: list[Output | None] = [None] * images
        self._left = images
        self._finish = finish
        self._expires = expires
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether the client waits no longer."""
        return self._is_over or time.perf_counter() > self._expires

    def give_up(self) -> None:
        """Let the threads skip the remaining images."""
        self._is_over = True

    def put(self, place: int, output: Output) -> None:
        """Add the output of the image at `place`; the last one computes the answer and sends it to the loop."""
        with self._lock:
            self._outputs[place] = output
            self._left -= 1
            is_complete = not self._left
        if is_complete and not self._is_over:
            try:
                outputs = [output for output in self._outputs if output is not None]
                scoring = time.perf_counter()
                answer = self._finish(outputs)
                timings = self._timings(outputs, scoring)
            except BaseException as error:  # a bug, or an error of the scorer: the client gets it
                self.fail(error)
            else:
                self._send(lambda: self.answer.set_result((answer, timings)))

    def fail(self, error: BaseException) -> None:
        """Answer the whole request with an exception; threads skip its remaining images."""
        self._is_over = True
        self._send(lambda: self.answer.set_exception(error))

    def _timings(self, outputs: list[Output], scoring: float) -> Timings:
        now = time.perf_counter()
        if self.trace:
            self.trace.phase("score", scoring, now)
        ran = [output for output in outputs if isinstance(output, ModelOutput)]
        return Timings(
            decode=self.decode_seconds,
            queue=max((output.queue_seconds for output in ran), default=0.0),
            inference=max((output.inference_seconds for output in ran), default=0.0),
            score=now - scoring,
            total=now - self.started,
        )

    def _send(self, act: Callable[[], None]) -> None:
        def unless_done() -> None:
            if not self.answer.done():
                act()

        self._loop.call_soon_threadsafe(unless_done)
