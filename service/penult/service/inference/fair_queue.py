"""Fairness between clients: each takes its turn, and none may fill the queue.

In turn, not in the order of arrival: whoever has one photo waiting behind another's thousand would else wait for all
of them. And a bound that shrinks as the room fills (dynamic thresholds: Choudhury and Hahne, 1998): a client alone may
have eight ninths of the queue, ten that flood it share almost all of it, and a newcomer always finds a place.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Entry = TypeVar("Entry")
T = TypeVar("T")

_TIMES_WHAT_IS_FREE = 8
# Of a smaller queue there is nothing to keep free.
_LEAST_SHARED = 10


class Turns(Generic[Entry]):
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


class FairPool:
    """Threads of a pool, on which clients take turns."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        """Use this pool; others may use it beside."""
        self._pool, self._lock = pool, threading.Lock()
        self._turns: Turns[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = Turns()

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


class Shares:
    """Counts what each client has in a queue of `most` places. Runs on the event loop; "" is nobody in particular."""

    def __init__(self, most: int) -> None:
        """Start empty."""
        self._most, self.total = most, 0
        self._by_client: dict[str, int] = {}

    def fits(self, client: str, amount: int) -> bool:
        """Tell whether a client may have so much more."""
        left, own = self._most - self.total - amount, self._by_client.get(client, 0)
        is_bounded = client and own and self._most >= _LEAST_SHARED
        return left >= 0 and not (is_bounded and own + amount > _TIMES_WHAT_IS_FREE * left)

    def ahead(self, client: str) -> int:
        """Return about how much is dealt with before what the client adds now: in turn, not all that is there."""
        own = self._by_client.get(client, 0)
        return min(self.total, (own + 1) * len(self._by_client)) if client else self.total

    def add(self, client: str, amount: int) -> None:
        """Count in."""
        self.total += amount
        self._by_client[client] = self._by_client.get(client, 0) + amount

    def remove(self, client: str, amount: int) -> None:
        """Count out."""
        self.total -= amount
        left = self._by_client[client] - amount
        if left:
            self._by_client[client] = left
        else:
            del self._by_client[client]
