"""Fair order between clients: round robin, instead of the order of arrival.

In the order of arrival, a client with one image would wait for all of another client's thousand.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Entry = TypeVar("Entry")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class FairQueue(Generic[Entry]):
    """Entries that wait, each client's in order, the clients in turn. For one thread, or under its owner's lock."""

    def __init__(self) -> None:
        """Start empty."""
        self._by_client: dict[str, deque[Entry]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, client: str, entries: Iterable[Entry]) -> None:
        """Put entries behind those of the same client."""
        waiting = self._by_client.setdefault(client, deque())
        before = len(waiting)
        waiting.extend(entries)
        self._length += len(waiting) - before
        if not waiting:
            del self._by_client[client]

    def next(self) -> Entry:
        """Return what take() would return."""
        return next(iter(self._by_client.values()))[0]

    def take(self) -> Entry:
        """Remove and return the next entry; its client's next turn comes after all other clients'."""
        client = next(iter(self._by_client))
        waiting = self._by_client.pop(client)
        entry = waiting.popleft()
        if waiting:
            self._by_client[client] = waiting
        self._length -= 1
        return entry

    def clear(self) -> None:
        """Remove all entries."""
        self._by_client.clear()
        self._length = 0


@dataclass(frozen=True)
class _Job(Generic[T_co]):
    act: Callable[[], T_co]
    future: "Future[T_co]"

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.act()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Pool(Protocol):
    """Threads, such as those of a ThreadPoolExecutor."""

    def submit(self, act: Callable[[], object], /) -> object:
        """Run `act` on a thread."""
        ...


class FairExecutor:
    """Threads of a pool that the clients use in turn."""

    def __init__(self, pool: Pool) -> None:
        """Use this pool; others may use it too."""
        self._pool = pool
        self._lock = threading.Lock()
        self._queue: FairQueue[Callable[[], object]] = FairQueue()

    def submit(self, client: str, act: Callable[[], T]) -> "Future[T]":
        """Run `act` when it is the client's turn."""
        job = _Job(act, Future[T]())
        self.start(client, job.run)
        return job.future

    def start(self, client: str, act: Callable[[], object]) -> None:
        """Run `act`, which raises nothing, when it is the client's turn."""
        with self._lock:
            self._queue.add(client, [act])
        self._pool.submit(self._run_next)

    def _run_next(self) -> None:
        with self._lock:
            act = self._queue.take()
        act()
