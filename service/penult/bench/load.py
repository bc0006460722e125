"""Send the load and record one row per request. This is the only module here that uses gRPC.

In the closed loop, each worker sends when its request is answered. In the open loop, requests are sent on a schedule.
There, latency counts from the time that a request was due, so that a slow server cannot hide its queue. One asyncio
loop takes 0.34 to 0.41 CPU-ms per request of 150 KB. Callbacks on gRPC's threads take 0.32 to 0.39, a thread per worker
0.44 to 0.46.
"""

import asyncio
import gc
import signal
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import grpc

from penult.bench import requests
from penult.bench.measure import OK, Load, Model, Report, Row, report, usage
from penult.bench.pace import Watch, Window, gaps, sleep_until, tick
from penult.bench.requests import Requests
from penult.bench.settings import BenchError, LoadSettings
from penult.client import AsyncClient
from penult.client.channel import aio_channel_with

# An open loop that the server cannot follow must end before this machine's memory does.
_MAX_OUTSTANDING = 4096
_MAX_OUTSTANDING_BYTES = 512 << 20
# After a failure a worker waits as long as the server asks, else this long. Immediate retries would measure how fast
# the server rejects requests.
_PAUSE_S = 0.05
_GRPC_DETAILS, _CODE_LOST = "Internal error from Core", "STREAM_ENDED"
_TICK_S = 0.2
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A pool of its own per channel, so that every channel is a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
)


async def run(settings: LoadSettings, prepared: Requests | None = None, watch: Watch | None = None) -> Report:
    """Run the load and measure it; SIGINT ends it early, with the numbers until then.

    Args:
        settings: The load.
        prepared: The messages; None: make them.
        watch: Called several times a second with the progress.

    Raises:
        BenchError: The settings do not fit the model, or nothing was measured.
        RequestFailed: No server answers.
    """
    model = await _ask_model(settings)
    # The resolved name and version, so that one version answers all requests.
    prepared = prepared or requests.prepare(replace(settings, model=model.name, version=model.version), model.crop)
    usage(settings.metrics)  # reports a wrong address before the load
    gc.freeze()  # keeps the garbage collector from scanning existing objects during the measurement
    async with _calls(settings, prepared) as calls:
        sender = _Sender(settings, prepared, calls)
        with _interruptible(sender.window.stopped.set):
            before, after = await _measure(sender, watch)
    return report(settings, model, prepared.what, prepared.mean_bytes, sender.load(), before, after)


async def _ask_model(settings: LoadSettings) -> Model:
    async with AsyncClient(settings.target, settings.timeout_s, security=settings.security) as client:
        model = await client.get_model(settings.model, settings.version)
    version = model.version
    if settings.scorer and settings.scorer not in (names := requests.scorer_names(model.scorers)):
        raise BenchError(f"{version.name} has no {settings.scorer} scorer; use --scorer {' or '.join(names)}")
    return Model(
        version.name, version.version, version.fingerprint, model.architecture, model.provider, model.preprocess.crop
    )


@asynccontextmanager
async def _calls(settings: LoadSettings, prepared: Requests) -> AsyncIterator[list[Any]]:
    """Open the connections; yield the method to call on each, from bytes to bytes."""
    channels = [aio_channel_with(settings.target, _OPTIONS, settings.security) for _ in range(settings.connections)]
    try:
        if settings.is_stream:
            yield [channel.stream_stream(prepared.path) for channel in channels]
        else:
            yield [channel.unary_unary(prepared.path) for channel in channels]
    finally:
        for channel in channels:
            await channel.close()


@contextmanager
def _interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first SIGINT call `stop`; a second one ends the program as usual."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    try:
        loop.add_signal_handler(signal.SIGINT, first)
    except (ValueError, RuntimeError):  # not in the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _measure(sender: "_Sender", watch: Watch | None) -> Any:
    """Run the load to its end; return the CPU clocks at both edges of the window."""
    work = asyncio.create_task(sender.work())
    ticking = asyncio.create_task(tick(sender.window, sender.rows, watch)) if watch else None
    stopped = asyncio.create_task(sender.window.stopped.wait())
    metrics = sender.settings.metrics
    try:
        await _first((work, stopped), sender.window.start_s)
        before = await asyncio.to_thread(usage, metrics)
        await _first((work, stopped), sender.window.end_s)
        sender.window.close()
        after = await asyncio.to_thread(usage, metrics)
        await _first((work, stopped), None)  # the requests in flight
        if work.done():
            work.result()
        return before, after
    finally:
        tasks = [task for task in (work, ticking, stopped) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first(tasks: Sequence["asyncio.Task[Any]"], until_s: float | None) -> None:
    """Wait for one of the tasks, or for the time on the clock."""
    timeout = None if until_s is None else max(0.0, until_s - time.perf_counter())
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


class _Sender:
    """Sends requests as the settings say, and keeps the rows."""

    def __init__(self, settings: LoadSettings, prepared: Requests, calls: Sequence[Any]) -> None:
        self.settings = settings
        self._requests = prepared
        self._calls = calls
        self.window = Window(settings)
        self.rows: list[Row] = []
        self._turn = 0
        self._answered = 0
        self._outstanding = 0
        self._not_sent = 0
        self._item_errors: Counter[str] = Counter()
        self._stage_sums = [0.0] * len(requests.stage_names())

    def load(self) -> Load:
        """Return the rows and counts."""
        window = self.window
        over = sum(window.counts(row.due_s) for row in self.rows)
        means = {
            name: total / self._answered if self._answered else 0.0
            for name, total in zip(requests.stage_names(), self._stage_sums, strict=True)
        }
        return Load(
            self.rows, window.start_s, window.closed_s, window.due - over - self._not_sent, self._not_sent,
            window.stopped.is_set(), self._item_errors, means,
        )  # fmt: skip

    async def work(self) -> None:
        """Send everything and wait for the answers."""
        if self.settings.rate:
            await self._open_loop(self.settings.rate)
            return
        worker = self._streaming_worker if self.settings.is_stream else self._worker
        workers = range(self.settings.concurrency)
        await asyncio.gather(*(worker(self._calls[n % len(self._calls)]) for n in workers))

    def _message(self) -> bytes:
        self._turn += 1
        return self._requests.messages[self._turn % len(self._requests.messages)]

    # -- closed loop ---------------------------------------------------------------------------------------------------

    async def _worker(self, call: Any) -> None:
        while self.window.may_send(now := time.perf_counter()):
            if pause_s := await self._one(call, now):
                await asyncio.sleep(pause_s)

    async def _one(self, call: Any, due_s: float) -> float:
        """Send one request and record its outcome; return the seconds to wait before the next."""
        sent_s = time.perf_counter()
        try:
            answer = await call(self._message(), timeout=self.settings.timeout_s)
        except grpc.aio.AioRpcError as error:
            self._record_failure(due_s, sent_s, error.code().name)
            return _pause_s(error)
        self._record(due_s, sent_s, answer)
        return 0.0

    async def _streaming_worker(self, call: Any) -> None:
        """Keep one stream with a few requests in flight; open another when it fails."""
        in_flight: deque[float] = deque()
        while not self.window.stopped.is_set():
            stream = call()
            try:
                async with asyncio.timeout(None) as patience:
                    await self._stream(stream, in_flight, patience)
                return
            except TimeoutError as error:
                code, pause_s = "DEADLINE_EXCEEDED", _pause_s(error)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                # InvalidStateError means that the stream ended while it was written to.
                code, pause_s = await _stream_code(stream), _pause_s(error)
            for sent_s in in_flight:
                self._record_failure(sent_s, sent_s, code)
            in_flight.clear()
            await asyncio.sleep(pause_s)

    async def _stream(self, stream: Any, in_flight: "deque[float]", patience: asyncio.Timeout) -> None:
        """Keep the window full until everything is sent and answered."""
        while True:
            while len(in_flight) < self.settings.window and self.window.may_send(now := time.perf_counter()):
                in_flight.append(now)
                await stream.write(self._message())
            if not in_flight:
                await stream.done_writing()
            patience.reschedule(asyncio.get_running_loop().time() + self.settings.timeout_s)
            answer = await stream.read()
            if answer is grpc.aio.EOF:
                return
            sent_s = in_flight.popleft()
            self._record(sent_s, sent_s, answer)

    # -- open loop -----------------------------------------------------------------------------------------------------

    async def _open_loop(self, rate: float) -> None:
        """Send on schedule, whatever is unanswered."""
        limit = min(_MAX_OUTSTANDING, max(1, int(_MAX_OUTSTANDING_BYTES / self._requests.mean_bytes)))
        due_s = self.window.begun_s
        async with asyncio.TaskGroup() as waiting:
            for gap_s in gaps(self.settings, rate):
                due_s += gap_s
                await sleep_until(min(due_s, self.window.end_s or due_s))
                if not self.window.may_send(due_s):
                    break
                if self._outstanding < limit:
                    self._outstanding += 1
                    waiting.create_task(self._one_of_many(self._calls[self._turn % len(self._calls)], due_s))
                else:
                    self._not_sent += self.window.counts(due_s)

    async def _one_of_many(self, call: Any, due_s: float) -> None:
        await self._one(call, due_s)
        self._outstanding -= 1

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _record(self, due_s: float, sent_s: float, data: bytes) -> None:
        over_s = time.perf_counter()
        answer = requests.read(data, self._requests.is_describe)
        self.rows.append(Row(due_s, sent_s, over_s, OK, answer.images, len(answer.reasons)))
        if self.window.counts(due_s):
            self._item_errors.update(answer.reasons)
            self._answered += 1
            for place, value in enumerate(answer.stages_ms):
                self._stage_sums[place] += value

    def _record_failure(self, due_s: float, sent_s: float, code: str) -> None:
        self.rows.append(Row(due_s, sent_s, time.perf_counter(), code, 0, 0))


async def _stream_code(stream: Any) -> str:
    """Return the code of a stream's end. If it ended during a write, grpc.aio replaces the code by INTERNAL."""
    code = (await stream.code()).name
    return _CODE_LOST if code == "INTERNAL" and await stream.details() == _GRPC_DETAILS else code


def _pause_s(error: Exception) -> float:
    if isinstance(error, grpc.aio.AioRpcError):
        hint = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
        if hint is not None:
            return float(hint) / 1000
    return _PAUSE_S
