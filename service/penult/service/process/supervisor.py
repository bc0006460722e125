"""`penult serve --workers N`: a supervisor that starts N servers on one gRPC port, and serves the one HTTP port itself.

Each worker is a process with its own event loop, interpreter lock, threads and copy of every model. The kernel spreads
connections over the workers (SO_REUSEPORT), not requests. The supervisor restarts a worker that dies, and stays ready
as long as one worker serves.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penult.bundle.errors import PenultError
from penult.process_limits import allow_open_files
from penult.service.auth.listeners import SecureListeners, follow
from penult.service.config import ServeConfig
from penult.service.http.port_conflicts import family, port_refused
from penult.service.http.server import HttpServer
from penult.service.http.status import Status
from penult.service.http.status_page import page_routes
from penult.service.observability.logs import switch_level
from penult.service.observability.multiprocess import WorkersMetrics
from penult.service.process.feedback import feedback_file
from penult.service.process.wiring import listener_security
from penult.service.process.worker import NUMBER, READY, STOP, VARIABLE, start_log_of

log = logging.getLogger(__name__)

_MAX_DEATHS = 4
_SERVED_WELL_S = 60.0
_RESTART_S = 0.5
# The supervisor ends a worker that reports nothing for so long. It waits for several silences: after a pause of the
# whole machine, the first one may be over before the worker has run.
_SILENCE_S, _SILENCES = 4.0, 3
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - tempfile makes a folder of its own in it  # nosec B108
_REASON = "penult: "


class WorkerError(PenultError):
    """A worker does not start, or ended too often."""


def supervise(config: ServeConfig) -> int:
    """Serve with several workers until SIGTERM or SIGINT; return the exit code.

    Raises:
        PenultError: a port is in use, or the workers do not start or keep ending.
    """
    start_log_of(config)
    allow_open_files()
    with _held_port(config) as port, _metrics_folder() as folder:
        return asyncio.run(Supervisor(config, port, folder).run())


@contextmanager
def _held_port(config: ServeConfig) -> Iterator[int]:
    """Hold the gRPC port for the workers, and yield its number; raise ConfigError if another program has it."""
    with socket.socket(family(config.host)) as holder:
        try:
            # As gRPC does: connections of a server that has ended do not count as its port in use.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((config.host, config.port))
        except OSError as error:
            raise port_refused(config.host, config.port, "--port", error) from error
        # Shared only now, so that the port of another penult, workers or not, was refused; and never listened on here,
        # so that no connection comes to this socket.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield holder.getsockname()[1]


@contextmanager
def _metrics_folder() -> Iterator[Path]:
    # In memory if possible: workers count by writing to mapped files, and should not wait for a disk.
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="penult-", dir=parent) as folder:
        yield Path(folder)


class Worker:
    """One worker, restarted as often as needed."""

    def __init__(self, number: int, command: list[str], environment: dict[str, str]) -> None:
        """Start nothing yet."""
        self.number, self.is_ready, self.has_served, self.ready_line, self.reason = number, False, False, "", ""
        self._command, self._environment = command, environment
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopping = False

    @property
    def pid(self) -> int:
        """The id of the running process, or 0 if there is none."""
        return self._process.pid if self._process else 0

    async def run(self, on_ready: Callable[["Worker"], None]) -> tuple[int, int]:
        """Run one process to its end; return its id and its exit code, negative for a signal."""
        self.has_served, self.reason = False, ""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment
        )
        self._process = process
        if self._is_stopping:
            self.stop()
        relaying = asyncio.create_task(self._relay(process))
        await self._listen(process, on_ready)
        self.is_ready = False
        code = await process.wait()
        self._process = None
        await relaying
        return process.pid, code

    def stop(self) -> None:
        """Ask it to drain and leave."""
        self._is_stopping = True
        if self._process and self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(STOP)

    def kill(self) -> None:
        """End it at once."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _listen(self, process: asyncio.subprocess.Process, on_ready: Callable[["Worker"], None]) -> None:
        """Read that it is ready, and then its heartbeats, until it ends; end it if it is silent."""
        assert process.stdout  # it is a pipe
        silences = 0
        while silences < _SILENCES:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), _SILENCE_S if self.has_served else None)
            except TimeoutError:
                silences += 1
                continue
            if not line:
                return
            silences = 0
            if line.startswith(READY):
                self.is_ready = self.has_served = True
                self.ready_line = line.decode().rstrip()
                on_ready(self)
        log.error("worker %d hangs: its event loop has been silent for %.0f s", self.number, _SILENCES * _SILENCE_S)
        self.kill()

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """Print its log, and keep the line with the reason why it ends."""
        assert process.stderr  # it is a pipe
        while True:
            try:
                line = (await process.stderr.readline()).decode(errors="replace")
            except ValueError:  # longer than the reader's buffer: dropped
                continue
            if not line:
                return
            if line.startswith(_REASON):
                self.reason = line.removeprefix(_REASON).rstrip()
            else:
                print(f"worker {self.number}: {line.rstrip()}", file=sys.stderr, flush=True)


class Supervisor:
    """Keeps the workers running, reports their metrics and readiness, and ends with them."""

    def __init__(self, config: ServeConfig, port: int, folder: Path) -> None:
        """Bind the HTTP port; raise ConfigError if that fails. `folder` is for the workers' metrics."""
        self._folder = folder
        self._metrics = WorkersMetrics(folder, self._pids, lambda: sum(worker.is_ready for worker in self._workers))
        self._metrics.read_truths = feedback_file(config, folder, self._metrics.truths).read
        self._status = Status(self._metrics, self._state)
        self._listeners = SecureListeners(listener_security(config))
        self._http = HttpServer(
            config.host, config.metrics_port, self._metrics, self._is_ready, page_routes(self._status),
            self._listeners.http_context,
        )  # fmt: skip
        environment = os.environ | self._metrics.worker_environment | {VARIABLE: str(folder)}
        # As a variable: it may hold a password, and all users of the machine can read command lines.
        environment["PENULT_LOOKUP"] = config.lookup_place
        # -P: nothing in the current folder may stand in for a module.
        program = [sys.executable, "-P", "-m", "penult.cli", "serve"]
        self._workers = [
            Worker(
                number,
                [*program, *config.of_worker(number, port, self._http.port).as_flags("lookup")],
                environment | {NUMBER: str(number)},
            )
            for number in range(1, config.workers + 1)
        ]
        self._is_started = False
        self._stop = asyncio.Event()
        self._failure: WorkerError | None = None

    async def run(self) -> int:
        """Start the workers and keep them until asked to stop; return the exit code. Raises WorkerError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._poll_now)
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGUSR1, self._switch_level, logging.getLogger("penult").level
        )
        await self._http.start()
        beside = [asyncio.create_task(work) for work in (self._status.run(), follow(self._listeners))]
        try:
            codes = await asyncio.gather(*(self._keep(worker) for worker in self._workers))
        finally:
            for task in beside:
                task.cancel()
            self._kill_all()  # none is left, unless by a bug
            await self._http.stop()
        if self._failure:
            raise self._failure
        log.info("stopped")
        return 1 if any(codes) else 0

    def _state(self) -> str:
        return "draining" if self._stop.is_set() else "ready" if self._is_ready() else "loading"

    def _pids(self) -> list[int]:
        return [worker.pid for worker in self._workers if worker.pid]

    def _is_ready(self) -> bool:
        return self._is_started and not self._stop.is_set() and any(worker.is_ready for worker in self._workers)

    def _signalled(self) -> None:
        if self._stop.is_set():
            log.warning("second signal: leaving at once")
            self._kill_all()
            shutil.rmtree(self._folder, ignore_errors=True)
            os._exit(1)
        log.info("draining: not ready from now on, waiting for %d workers", len(self._pids()))
        self._stop_all()

    def _poll_now(self) -> None:
        self._listeners.check()
        self._signal(signal.SIGHUP)

    def _switch_level(self, usual: int) -> None:
        switch_level(usual)
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.is_ready and worker.pid:  # one that is starting does not listen yet, and would end
                os.kill(worker.pid, number)

    def _stop_all(self) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.stop()

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _worker_is_ready(self, worker: Worker) -> None:
        log.info("worker %d is ready, process %d", worker.number, worker.pid)
        first = next(worker.ready_line for worker in self._workers if worker.ready_line)
        if worker.ready_line != first:
            log.warning("worker %d serves other models than those before: %s", worker.number, worker.ready_line)
        if not self._is_started and all(worker.is_ready for worker in self._workers):
            self._is_started = True
            print(first, flush=True)

    async def _keep(self, worker: Worker) -> int:
        """Run a worker until the server stops, and restart it if it dies; return 0 if it ended well."""
        deaths = 0
        while True:
            started = time.monotonic()
            pid, code = await worker.run(self._worker_is_ready)
            self._metrics.forget(pid)
            cause = worker.reason or _cause(code)
            if self._stop.is_set():
                if code and worker.has_served and not self._failure:
                    log.error("worker %d did not end well: %s", worker.number, cause)
                return code if worker.has_served else 0
            if not self._is_started:
                self._give_up(WorkerError("WORKER", worker.reason or f"worker {worker.number} did not start: {cause}"))
                self._kill_all()
                return 1
            served_well = worker.has_served and time.monotonic() - started > _SERVED_WELL_S
            deaths = 1 if served_well else deaths + 1
            self._metrics.deaths += 1
            log.error("worker %d ended unasked (%d of %d): %s", worker.number, deaths, _MAX_DEATHS, cause)
            if deaths >= _MAX_DEATHS:
                self._give_up(WorkerError("WORKER", f"worker {worker.number} ended {deaths} times in a row: {cause}"))
                return 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _RESTART_S * 2 ** (deaths - 1))
            if self._stop.is_set():
                return 0

    def _give_up(self, failure: WorkerError) -> None:
        self._failure = self._failure or failure
        self._stop_all()


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
