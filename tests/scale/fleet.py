"""Several replicas on one machine, each at an address of its own with the same port, and callers who never pause."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families

from penult.client import Client, RequestFailed

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
LEAD_S = 3
_CALLERS = 3
_PAUSE_S = 0.005
_PATIENCE_S = 60.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until something is true."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"did not happen in time: {what}"
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that is free at every address of the fleet."""
    while True:
        with socket.create_server((HOSTS[0], 0)) as first:
            port = first.getsockname()[1]
            try:
                for host in HOSTS[1:]:
                    socket.create_server((host, port)).close()
            except OSError:
                continue
        return port


class Fleet:
    """Three replicas; whichever a test ended is started anew at the same address by `restore`."""

    def __init__(self, start_server: Callable[..., object], models: Path, *options: str) -> None:
        """Start them all at once."""
        self.port, self.metrics_port = free_port(), free_port()
        self._start_server, self._models, self._options = start_server, models, options
        self.targets = [f"{host}:{self.port}" for host in HOSTS]
        self.processes: list[subprocess.Popen[str] | None] = [None] * len(HOSTS)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start, range(len(HOSTS))))

    def start(self, place: int) -> None:
        """Start one at its address, and wait until it is ready."""
        self.processes[place] = self._start_server(
            self._models, "--host", HOSTS[place], "--port", str(self.port), "--metrics-port", str(self.metrics_port),
            "--drain-lead", str(LEAD_S), "--threads", "1", "--cpu-mode", "throughput", *self._options,
        ).process  # fmt: skip

    def kill(self, place: int) -> None:
        """End one as a crash would."""
        self.processes[place].kill()
        self.processes[place].wait()

    def drain(self, place: int) -> None:
        """End one as an orchestrator would, and wait for it."""
        self.processes[place].send_signal(signal.SIGTERM)
        assert self.processes[place].wait(_PATIENCE_S) == 0

    def restore(self) -> None:
        """Start those that have ended."""
        for place, process in enumerate(self.processes):
            if process.poll() is not None:
                self.start(place)

    def served(self, place: int) -> float:
        """Return how many requests for classes one has answered with OK since its start."""
        text = httpx.get(f"http://{HOSTS[place]}:{self.metrics_port}/metrics").text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        of_calls = [s for s in samples if s.name == "penult_requests_total" and s.labels["method"].endswith("Classify")]
        return sum(s.value for s in of_calls if s.labels["code"] == "OK")


class Load:
    """Callers who ask for a photo's classes one after another while a `with` block runs; what failed is noted."""

    def __init__(self, ask: Callable[[], object]) -> None:
        """`ask` asks once; RequestFailed and RpcError are failures."""
        self._ask_once, self._stop = ask, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(_CALLERS)]
        self._lock = threading.Lock()
        self.answers, self.failures = 0, []

    def __enter__(self) -> Self:
        """Begin, and wait until all is in motion."""
        for thread in self._threads:
            thread.start()
        self.wait_for(50)
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the requests under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            try:
                self._ask_once()
            except (RequestFailed, grpc.RpcError) as error:
                self.failures.append(repr(error))
            with self._lock:
                self.answers += 1

    def wait_for(self, more: int) -> None:
        """Wait until so many more requests have ended, well or not."""
        goal = self.answers + more
        wait_for(lambda: self.answers >= goal, f"{more} more requests")


def asker(client: Client, photo: bytes) -> Callable[[], None]:
    """Return what asks once and looks at the answer."""

    def ask() -> None:
        assert client.classify([photo]).results[0].label == "bright"

    return ask
