"""The metrics port: /metrics, /livez, /readyz and the given routes, over HTTP, on the server's own event loop.

It shares the loop on purpose: if the loop hangs, the liveness probe must fail.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from penult.connection_limits import BoundedProtocol
from penult.service.http.port_conflicts import family, port_refused
from penult.service.observability.metrics import Exposition


class HttpServer:
    """Serves the probes and the metrics."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Exposition,
        is_ready: Callable[[], bool],
        more: Sequence[Route] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Bind the port; raise ConfigError if that fails."""
        try:
            self._socket = socket.create_server((host, port), family=family(host))
        except OSError as error:
            raise port_refused(host, port, "--metrics-port", error) from error
        # Headers and body are two writes: without this the second waits 40 ms for the first one's acknowledgement.
        # asyncio would set it, but not on sockets that were made without naming TCP. Accepted ones inherit it.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._socket.getsockname()[1]
        handlers = {HTTPException: _wrong_address}
        app = Starlette(routes=[*_routes(metrics, is_ready), *more], exception_handlers=handlers)
        # No log_config: its lines go where ours go, and in the same form.
        config = uvicorn.Config(
            app, http=BoundedProtocol, log_config=None, log_level="warning", lifespan="off", access_log=False
        )
        config.load()
        config.ssl = tls  # a context of our own, which reloads renewed certificates
        self._server = _Server(config)

    async def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not (self._server.started or self._task.done()):
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop answering."""
        self._server.should_exit = True
        await self._task


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the gRPC server's drain."""
        yield


async def _wrong_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"{request.method} {request.url.path[:128]}: {error.detail}"}, error.status_code)


def _routes(metrics: Exposition, is_ready: Callable[[], bool]) -> list[Route]:
    turn = asyncio.Lock()

    async def scrape(request: Request) -> Response:
        async with turn:  # a scrape takes milliseconds; other requests run between two
            body, content_type = metrics.exposition(request.headers.get("accept", ""))
            await asyncio.sleep(0)
        return Response(body, headers={"content-type": content_type})

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        return PlainTextResponse("ready\n") if is_ready() else PlainTextResponse("not ready\n", status_code=503)

    return [Route("/metrics", scrape), Route("/livez", livez), Route("/readyz", readyz)]
