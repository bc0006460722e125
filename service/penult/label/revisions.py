"""The state as it changes, for any number of waiting pages. One thread waits for the session, however many they are."""

import asyncio
import json
import threading
from typing import Any

from penult.label.session import Session

# The thread asks again after so long, and notices that the server stops.
_STEP_S = 1.0
# A page that waits gets an answer after so long, changed or not.
_WAIT_S = 25.0
_MAX_WAITING = 100


class Revisions:
    """Lets coroutines wait for the next revision of a session's state."""

    def __init__(self, session: Session) -> None:
        """Follow nothing yet."""
        self._session = session
        self._revision = -1
        self._body = b""
        self._waiting = 0
        self._changed: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = threading.Event()

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to follow the session, for coroutines of `loop`."""
        self._changed, self._loop = asyncio.Event(), loop
        threading.Thread(target=self._watch, args=(loop,), name="revisions", daemon=True).start()

    def close(self) -> None:
        """Answer those that wait, and follow no more; any thread may call it."""
        self._closed.set()
        if self._loop:
            _call(self._loop, self._publish, self._revision, self._body)

    async def after(self, revision: int) -> bytes:
        """Return the first state after a revision as JSON, or the present one if none comes in time."""
        if self._waiting >= _MAX_WAITING and self._body:
            return self._body
        self._waiting += 1
        try:
            async with asyncio.timeout(_WAIT_S):
                while not self._body or (self._revision == revision and not self._closed.is_set()):
                    assert self._changed is not None  # follow() has made it
                    await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        return self._body

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run on the thread: wait for revisions, and pass each on to the loop."""
        state: dict[str, Any] = self._session.state()
        while not self._closed.is_set():
            if state["revision"] != self._revision and not _call(loop, self._publish, state["revision"], encode(state)):
                return
            state = self._session.wait(state["revision"], _STEP_S)

    def _publish(self, revision: int, body: bytes) -> None:
        self._revision, self._body = revision, body
        assert self._changed is not None  # follow() has made it
        self._changed.set()
        self._changed = asyncio.Event()


def encode(value: Any) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _call(loop: asyncio.AbstractEventLoop, function: Any, *arguments: Any) -> bool:
    """Run a function on the loop; return False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True
