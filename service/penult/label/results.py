"""What the button Publish does: the next version of the model, then the labelled photos into a collection."""

import threading
from collections.abc import Callable
from typing import Any

from penult.bundle.errors import PenultError
from penult.client.types import RequestFailed
from penult.label.publishing import Publisher


class PublishThenStore:
    """Publishes, and stores once a version is published. It has the methods of Publisher that a session calls."""

    def __init__(self, publisher: Publisher, store: Callable[[int], str]) -> None:
        """Take the publisher, and a function that stores: it gets the version, and returns a line for the page."""
        self._publisher, self._store = publisher, store
        self._lock = threading.Lock()
        self._is_running = False
        self._line = ""

    def start(self) -> None:
        """Begin a job, unless one is running."""
        with self._lock:
            if self._is_running:
                return
            self._is_running, self._line = True, ""
            self._publisher.start()
            threading.Thread(target=self._run, name="publish and store", daemon=True).start()

    def state(self) -> dict[str, Any]:
        """Return what Publisher.state() returns, with the line of the storing after its own."""
        with self._lock:
            state = self._publisher.state()
            line = "; ".join(filter(None, (state["message"], self._line)))
            return state | {"is_running": self._is_running or state["is_running"], "message": line}

    def stop(self) -> None:
        """End the publishing, if it is running, and begin no other."""
        self._publisher.stop()

    def _run(self) -> None:
        self._publisher.wait()
        version = self._publisher.state()["version"]
        line = ""
        if version is not None:
            self._say("waiting for the server, to store the labels")
            try:
                line = self._store(version)
            except (RequestFailed, PenultError) as error:
                line = f"labels are not stored: {error.message}"
        with self._lock:
            self._is_running, self._line = False, line

    def _say(self, line: str) -> None:
        with self._lock:
            self._line = line
