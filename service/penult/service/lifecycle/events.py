"""The last events of models: loaded, refused, unloaded."""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from penult.service.observability.metric_window import steady_time

_MAX_EVENTS = 20


@dataclass(frozen=True)
class Event:
    """An outcome of a version: loaded, refused (with the reason) or retired. `time` is in seconds since 1970."""

    time: float
    outcome: str
    model: str
    version: int
    reason: str = ""


class Events:
    """The last events, newest first."""

    def __init__(self) -> None:
        """Start empty."""
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)

    def add(self, outcome: str, model: str, version: int, reason: str = "") -> None:
        """Add an event with the current time."""
        self._events.appendleft(Event(steady_time(), outcome, model, version, reason))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the events as plain values."""
        return [asdict(event) for event in self._events]
