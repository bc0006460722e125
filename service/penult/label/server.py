"""The HTTP server of the labelling page: on loopback only, for the browsers that know the token."""

import asyncio
import errno
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from threadpoolctl import threadpool_limits

from penult.bundle.refusals import why
from penult.connection_limits import BoundedProtocol
from penult.label.errors import LabelError
from penult.label.revisions import Revisions
from penult.label.routes import Api, answers
from penult.label.session import Session
from penult.label.visitors import OnlyOwnPage

HOST = "127.0.0.1"
_TOKEN_BYTES = 24
# A request that is being answered gets so long when the server stops.
_GRACE_S = 1


class LabelServer:
    """Serves the page of one session."""

    def __init__(self, session: Session, port: int = 0) -> None:
        """Bind a port of 127.0.0.1, any free one for 0; raise LabelError if that fails."""
        try:
            self._socket = socket.create_server((HOST, port))
        except OSError as error:
            raise _refused(port, error) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # see penult.service.http.server
        self.port: int = self._socket.getsockname()[1]
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._revisions = Revisions(session)
        api = Api(session, self._revisions)
        app = OnlyOwnPage(Starlette(routes=api.routes(), exception_handlers=answers()), self.port, self.token)
        self._server = _Server(
            uvicorn.Config(
                app, http=BoundedProtocol, ws="none", log_config=None, log_level="warning", lifespan="off",
                access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE_S,
            )
        )  # fmt: skip

    @property
    def url(self) -> str:
        """The address of the page, with the token."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def run(self) -> None:
        """Serve until stop() is called, or Ctrl-C raises KeyboardInterrupt here."""
        # Threads of linear algebra spin while they wait for each other. On a busy machine that took ten times the CPU
        # time of a fit and of a choice (bench/RESULTS.md).
        with self._socket, threadpool_limits(1):
            asyncio.run(self._serve())

    def stop(self) -> None:
        """Let run() return; any thread may call it."""
        self._revisions.close()
        self._server.should_exit = True

    async def _serve(self) -> None:
        self._revisions.follow(asyncio.get_running_loop())
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        try:
            await asyncio.shield(serving)
        finally:  # Ctrl-C cancels: what is being answered gets its answer, and pages that wait get theirs at once
            self.stop()
            await serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave Ctrl-C to the command."""
        yield


def _refused(port: int, error: OSError) -> LabelError:
    if error.errno == errno.EADDRINUSE:
        reason = "another program has it; choose another one with --port (0 picks a free one)"
    elif error.errno == errno.EACCES:
        reason = "only root may listen below 1024; choose another one with --port (0 picks a free one)"
    else:
        reason = why(error)
    return LabelError("PORT", f"port {port} of {HOST} cannot be used: {reason}")
