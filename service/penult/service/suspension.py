"""Coroutines that need no event loop: the thread that finishes a request's work also continues its coroutine.

A handover to the event loop and back costs more than the rest of a small request. A transport may therefore run a
coroutine on any thread. It stops only at `suspended` and `on_event_loop`, and continues where its work ended. The same
coroutine also runs as an asyncio task.
"""

import asyncio
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

# Continues a suspended coroutine with a result, or with an exception; for any thread, and only the first call counts.
Resume = Callable[[Any, BaseException | None], None]
# Is called once with a Resume, after the coroutine has stopped.
Park = Callable[[Resume], None]


def move_to_event_loop(resume: Resume) -> None:
    """Stand for a move to the event loop; transports compare with it, and never call it."""
    raise AssertionError("a transport moves the coroutine itself")


@types.coroutine
def suspended(park: Park) -> Generator[Park, Any, Any]:
    """Stop the coroutine, call `park` and return the result that its Resume gets. Not for asyncio tasks."""
    return (yield park)


async def on_event_loop() -> None:
    """Continue on the event loop, where asyncio works; a coroutine that is there already goes on at once."""
    if not is_on_event_loop():
        await suspended(move_to_event_loop)


def is_on_event_loop() -> bool:
    """Return whether the calling thread runs an event loop now."""
    return asyncio._get_running_loop() is not None


Steps = Coroutine[Park, Any, Any]


class InFlight:
    """Counts the work that is in flight, on any thread, until it is closed."""

    def __init__(self) -> None:
        """Accept work."""
        self._lock = threading.Lock()
        self._count = 0
        self._is_closed = False
        self._on_idle: Callable[[], object] | None = None

    def enter(self) -> bool:
        """Count work in; return False, and do not count it, after close()."""
        with self._lock:
            if self._is_closed:
                return False
            self._count += 1
            return True

    def leave(self) -> None:
        """Count work out."""
        with self._lock:
            self._count -= 1
            on_idle = None if self._count else self._on_idle
        if on_idle:
            on_idle()

    async def close(self) -> None:
        """Accept no more work, and wait until all that was accepted is over. On the event loop."""
        loop, idle = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._is_closed = True
            self._on_idle = lambda: loop.call_soon_threadsafe(idle.set)
            if not self._count:
                idle.set()
        await idle.wait()
