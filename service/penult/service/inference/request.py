"""One request between its caller and the threads: outputs arrive in any order, one answer leaves."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from penult.bundle.errors import PenultError
from penult.bundle.scores import Floats
from penult.service.inference.class_maps import RequestMaps
from penult.service.inference.results import Timings
from penult.service.observability import tracing
from penult.service.suspension import Resume, is_on_event_loop, suspended

Answered_co = TypeVar("Answered_co", covariant=True)


@dataclass(slots=True)  # not frozen: such fields cost three times as much to set
class ModelOutput:
    """One image's rows of the model's outputs, float32 [1, …], and the seconds of its wait and of the run."""

    logits: Floats
    descriptor: Floats
    queue_seconds: float
    inference_seconds: float


Output = ModelOutput | PenultError


class PendingRequest(Generic[Answered_co]):
    """Collects one output per image, from any thread; the thread that puts the last one computes the answer.

    Await wait() once. If an event loop made the request, it continues there; else the caller continues on the thread
    that computed the answer. Threads skip the images of a request that is over.
    """

    def __init__(
        self, images: int, finish: Callable[[list[Output]], Answered_co], expires: float, client: str = "",
        maps: RequestMaps | None = None,
    ) -> None:  # fmt: skip
        """Wait for `images` outputs; `finish` computes the answer from them, in the images' order, on some thread.

        Args:
            images: how many outputs to wait for.
            finish: called once, with all outputs.
            expires: when the client stops waiting, by time.perf_counter().
            client: whose turn the images take in queues.
            maps: gets the class maps of the images, each before its output is put; None without maps.

        """
        self._future: asyncio.Future[tuple[Answered_co, Timings]] | None = None
        if is_on_event_loop():
            self._future = asyncio.get_running_loop().create_future()
        self._result: tuple[tuple[Answered_co, Timings] | None, BaseException | None] | None = None
        self._resume: Resume | None = None
        self.decode_seconds = 0.0
        self.started = time.perf_counter()
        self.trace = tracing.current()
        self.client, self.maps = client, maps
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

    async def wait(self) -> tuple[Answered_co, Timings]:
        """Return the answer and its timings; raise what fail() was given."""
        if self._future:
            return await self._future
        answered: tuple[Answered_co, Timings] = await suspended(self._park)
        return answered

    def _park(self, resume: Resume) -> None:
        with self._lock:
            result = self._result
            self._resume = resume
        if result:
            resume(*result)

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
                self._send((answer, timings), None)

    def fail(self, error: BaseException) -> None:
        """Answer the whole request with an exception; threads skip its remaining images."""
        self._is_over = True
        self._send(None, error)

    def _timings(self, outputs: list[Output], scoring: float) -> Timings:
        now = time.perf_counter()
        if self.trace:
            self.trace.phase("score", scoring, now)
        ran = [output for output in outputs if isinstance(output, ModelOutput)]
        return Timings(
            decode=self.decode_seconds,
            queue=max([output.queue_seconds for output in ran], default=0.0),
            inference=max([output.inference_seconds for output in ran], default=0.0),
            score=now - scoring,
            total=now - self.started,
        )

    def _send(self, answered: tuple[Answered_co, Timings] | None, error: BaseException | None) -> None:
        """Let the caller continue; only the first call counts."""
        if self._future:
            self._future.get_loop().call_soon_threadsafe(self._set, self._future, answered, error)
            return
        with self._lock:
            if self._result:
                return
            self._result = answered, error
            resume = self._resume
        if resume:
            resume(answered, error)

    @staticmethod
    def _set(future: "asyncio.Future[Any]", answered: object, error: BaseException | None) -> None:
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(answered)
