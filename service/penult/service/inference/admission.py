"""Admission control: no client may fill the queue alone.

A client's bound shrinks as the queue fills (dynamic thresholds: Choudhury and Hahne, 1998). One client alone may have
eight ninths of the queue, ten clients that flood it share almost all of it, and a new client always finds a place.
"""

_TIMES_WHAT_IS_FREE = 8
# Of a smaller queue there is nothing to keep free.
_MIN_SHARED = 10


class AdmissionControl:
    """Counts what each client has in a queue of `most` places. Runs on the event loop; "" is nobody in particular."""

    def __init__(self, most: int) -> None:
        """Start empty."""
        self._most, self.total = most, 0
        self._by_client: dict[str, int] = {}

    def fits(self, client: str, amount: int) -> bool:
        """Tell whether a client may have so much more."""
        left, own = self._most - self.total - amount, self._by_client.get(client, 0)
        is_bounded = client and own and self._most >= _MIN_SHARED
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
