"""The last events of models: loaded, refused, unloaded."""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from penult.service.observability.metric_window import steady_time

_MAX_EVENTS = 20


@dataclass(frozen=True)
class Event:
    """Something that happened to a version: loaded, refused (and why), retired; `time` in seconds since 1970."""

    time: float
    outcome: str
    model: str
    version: int
    reason: str = ""


class Events:
    """The last that happened to versions, newest first."""

    def __init__(self) -> None:
        """Begin with none."""
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)

    def add(self, outcome: str, model: str, version: int, reason: str = "") -> None:
        """Note one."""
        self._events.appendleft(Event(steady_time(), outcome, model, version, reason))

    def told(self) -> list[dict[str, Any]]:
        """Return them as plain values."""
        return [asdict(event) for event in self._events]
