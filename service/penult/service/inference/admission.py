"""Admission control: no client can fill the queue alone.

A client's bound shrinks as the queue fills (dynamic thresholds: Choudhury and Hahne, 1998). One client alone may have
eight ninths of the queue. Ten clients that flood it share almost all of it, and a new client always finds a place.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from penult.service.errors import Overloaded
from penult.service.observability.metrics import Metrics

_TIMES_WHAT_IS_FREE = 8
# A smaller queue keeps nothing free.
_MIN_SHARED = 10
_MIN_RETRY_MS = 50
# Under overload images take longer than they did just before; an accepted request that expires costs others their turn.
_LATE_BY = 1.2
_REMEMBERED_REQUESTS, _REMEMBERED_CLIENTS = 8, 1024
# The reasons of refusals in penult_dropped_total.
_DROPPED_AS = {"QUEUE_FULL": "queue_full", "QUEUE_TOO_LONG": "too_late"}


class AdmissionControl:
    """Counts what each client has in a queue of `most` places; the client "" has no bound of its own.

    For one thread, or under its owner's lock.
    """

    def __init__(self, most: int) -> None:
        """Start empty."""
        self._most = most
        self.total = 0
        self._by_client: dict[str, int] = {}

    def fits(self, client: str, amount: int) -> bool:
        """Return whether a client may add this amount."""
        left, own = self._most - self.total - amount, self._by_client.get(client, 0)
        is_bounded = client and own and self._most >= _MIN_SHARED
        return left >= 0 and not (is_bounded and own + amount > _TIMES_WHAT_IS_FREE * left)

    def ahead(self, client: str) -> int:
        """Return about how much is served before what the client adds now; the clients take turns."""
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


class RequestAdmission:
    """Bounds the images of accepted requests, and their bytes, from any thread."""

    def __init__(self, images: int, bytes_: int, metrics: Metrics) -> None:
        """Allow so many images and bytes at a time."""
        self._lock = threading.Lock()
        self._images = AdmissionControl(images)
        self._bytes = AdmissionControl(bytes_)
        self._dropped = metrics.dropped
        # Are called after a refusal, on its thread.
        self.listeners: list[Callable[[], object]] = []
        # Of clients whose requests found others waiting: images and bytes of their last requests.
        self._sizes: dict[str, deque[tuple[int, int]]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was admitted that is not over."""
        return not self._images.total

    def admit(self, client: str, images: int, bytes_: int, wait_s: Callable[[int], float], expires: float) -> None:
        """Count a request in. A request that finds the queue empty is always admitted.

        Args:
            client: the caller.
            images: images of the request.
            bytes_: bytes that they keep in memory.
            wait_s: returns the seconds that a number of images takes.
            expires: when the client stops waiting, by time.perf_counter().

        Raises:
            Overloaded: the queue is full, or the answer would be too late.

        """
        with self._lock:
            refusal = self._refusal(client, images, bytes_, wait_s, expires) if self._images.total else None
            if self._images.total:
                self._remember(client, images, bytes_)
            if refusal is None:
                self._images.add(client, images)
                self._bytes.add(client, bytes_)
        if refusal:
            self._refuse(refusal, images)

    def check_early(self, client: str, wait_s: Callable[[int], float], expires: float) -> None:
        """Refuse a request whose size is not known yet if one like the client's smallest last ones would be refused.

        Its message then needs no reading, which costs more than all else of a refusal. Raises Overloaded.
        """
        if not self._images.total:
            return
        with self._lock:
            sizes = self._sizes.get(client)
            if not sizes or not self._images.total:
                return
            images, bytes_ = min(sizes)
            refusal = self._refusal(client, images, bytes_, wait_s, expires)
        if refusal:
            self._refuse(refusal, images)

    def release(self, client: str, images: int, bytes_: int) -> None:
        """Count a request out."""
        with self._lock:
            self._images.remove(client, images)
            self._bytes.remove(client, bytes_)

    def _remember(self, client: str, images: int, bytes_: int) -> None:
        sizes = self._sizes.pop(client, None) or deque(maxlen=_REMEMBERED_REQUESTS)
        sizes.append((images, bytes_))
        self._sizes[client] = sizes
        if len(self._sizes) > _REMEMBERED_CLIENTS:
            del self._sizes[next(iter(self._sizes))]  # the one that asked longest ago

    def _refusal(
        self, client: str, images: int, bytes_: int, wait_s: Callable[[int], float], expires: float
    ) -> Overloaded | None:
        wait = wait_s(self._images.ahead(client))
        hint = max(_MIN_RETRY_MS, int(1000 * wait / 2))
        if not (self._images.fits(client, images) and self._bytes.fits(client, bytes_)):
            return Overloaded("QUEUE_FULL", "the server is busy; try again after the hint", retry_after_ms=hint)
        if time.perf_counter() + _LATE_BY * (wait + wait_s(images)) > expires:
            message = "the server is busy and would answer too late for the deadline; try again later"
            return Overloaded("QUEUE_TOO_LONG", message, retry_after_ms=hint)
        return None

    def _refuse(self, refusal: Overloaded, images: int) -> NoReturn:
        self._dropped.labels(_DROPPED_AS[refusal.reason]).inc(images)
        for listener in self.listeners:
            listener()
        raise refusal
