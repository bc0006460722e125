"""What an attack is judged by: the server process's vital signs, and how a well-behaved client fares beside it."""

import contextlib
import http.client
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penult.client import Client, RequestFailed

PAGE_KIB = 4
_LOOK_S = 0.02
# Between two requests of the client that measures, so that it does not take the cores itself.
_PAUSE_S = 0.005


class Vitals(NamedTuple):
    """A process's memory, threads and open files."""

    rss_mib: float
    threads: int
    descriptors: int


def vitals(pid: int) -> Vitals:
    """Read them; raises FileNotFoundError where the process is gone."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    threads, descriptors = (sum(1 for _ in (process / name).iterdir()) for name in ("task", "fd"))
    return Vitals(pages * PAGE_KIB / 1024, threads, descriptors)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@contextlib.contextmanager
def peak_rss_mib(pid: int) -> Iterator[list[float]]:
    """Look at a process's memory again and again; the list's one number is the highest seen."""
    peak, stop = [vitals(pid).rss_mib], threading.Event()

    def look() -> None:
        with contextlib.suppress(FileNotFoundError):
            while not stop.wait(_LOOK_S):
                peak[0] = max(peak[0], vitals(pid).rss_mib)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def health(target: str) -> int:
    """Ask for the server's health, on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status


class Asker(ABC):
    """Asks one thing after another while a `with` block runs, and notes how long each took."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.latencies_ms: list[float] = []

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the request under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.perf_counter()
            self._ask()
            self.latencies_ms.append(1000 * (time.perf_counter() - started))
            time.sleep(_PAUSE_S)

    @abstractmethod
    def _ask(self) -> None:
        """Ask once, and note what came of it."""

    def wait_for(self, more: int, seconds: float = 60.0) -> None:
        """Wait until it has asked that many times more."""
        goal = len(self.latencies_ms) + more
        wait_for(lambda: len(self.latencies_ms) >= goal, seconds)


class Bystander(Asker):
    """A client that asks for classes of one photo."""

    def __init__(self, target: str, photo: bytes, retries: int = 4, timeout_s: float = 30.0) -> None:
        super().__init__()
        self._client, self._photo = Client(target, timeout_s=timeout_s, retries=retries), photo
        self.codes: Counter[str] = Counter()
        self.messages: set[str] = set()

    def __exit__(self, *_: object) -> None:
        """Wait for the request under way."""
        super().__exit__()
        self._client.close()

    def _ask(self) -> None:
        try:
            label = self._client.classify([self._photo]).results[0].label
            self.codes["OK" if label == "bright" else f"WRONG {label}"] += 1
        except RequestFailed as error:
            self.codes[error.code] += 1
            self.messages.add(error.message)

    def percentile_ms(self, share: float) -> float:
        """Return the latency that this share of the requests stayed below."""
        return percentile(self.latencies_ms, share)


def percentile(values: list[float], share: float) -> float:
    """Return a percentile, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


class Prober(Asker):
    """Asks /livez, /readyz and /metrics of http://HOST:PORT in turn, on new connections."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._host, _, port = address.removeprefix("http://").rpartition(":")
        self._port = int(port)
        self.answers: Counter[str] = Counter()

    def _ask(self) -> None:
        path = ("/livez", "/readyz", "/metrics")[len(self.latencies_ms) % 3]
        connection = http.client.HTTPConnection(self._host, self._port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            self.answers[str(response.status)] += 1
        except OSError as error:
            self.answers[type(error).__name__] += 1
        finally:
            connection.close()
