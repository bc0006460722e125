"""Fair order between clients: round robin, instead of the order of arrival.

In the order of arrival, a client with one image would wait for all of another client's thousand.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Entry = TypeVar("Entry")
T = TypeVar("T")


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
        """Return what take() would take."""
        return next(iter(self._by_client.values()))[0]

    def take(self) -> Entry:
        """Take the entry whose turn it is; its client's next turn comes after everybody else's."""
        client = next(iter(self._by_client))
        waiting = self._by_client.pop(client)
        entry = waiting.popleft()
        if waiting:
            self._by_client[client] = waiting
        self._length -= 1
        return entry

    def clear(self) -> None:
        """Forget all."""
        self._by_client.clear()
        self._length = 0


class FairExecutor:
    """Threads of a pool, on which clients take turns."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        """Use this pool; others may use it beside."""
        self._pool, self._lock = pool, threading.Lock()
        self._turns: FairQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = FairQueue()

    def submit(self, client: str, act: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Run something when the client's turn comes."""
        future: Future[T] = Future()
        with self._lock:
            self._turns.add(client, [(future, act, arguments)])
        self._pool.submit(self._run_next)
        return future

    def _run_next(self) -> None:
        with self._lock:
            future, act, arguments = self._turns.take()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = act(*arguments)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
