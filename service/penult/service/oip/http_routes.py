"""/v2: the Open Inference Protocol v2 over HTTP, with Triton's extensions that clients use.

The routes share the core, drain gate and metrics with gRPC. One thread reads and writes JSON, one body at a time. A
large body cannot block the event loop, and several cannot use up the memory.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penult.service.auth.tokens import Tokens, right_of
from penult.service.errors import ClientGone, InvalidRequest, TooLate
from penult.service.http.responses import begin, hints, read_body, status_of
from penult.service.observability.call import Envelope, Method, set_caller
from penult.service.oip import dataplane
from penult.service.oip.dataplane import DataPlane
from penult.service.oip.json_codec import get, read_object, read_request, write_answer

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

# The protocol requires 4xx, not 503, for a server or model that is not ready.
_NOT_READY = 400
_LENGTH = "inference-header-content-length"


class OipRoutes:
    """The routes and their endpoints."""

    def __init__(self, core: DataPlane, envelope: Envelope, body_max_bytes: int, tokens: Tokens | None = None) -> None:
        """Answer with `core`; with `tokens`, only callers that have one."""
        self._core = core
        self._envelope = envelope
        self._body_max_bytes = body_max_bytes
        self._tokens = tokens
        self._codec = ThreadPoolExecutor(1, "json")

    def routes(self) -> list[Route]:
        """Return the routes, below /v2."""
        found = [
            self._get("", "ServerMetadata", self._server),
            self._get("/health/live", "ServerLive", self._live),
            self._get("/health/ready", "ServerReady", self._ready),
            self._post("/repository/index", "RepositoryIndex", self._index),
            self._post("/repository/models/{name}/load", "RepositoryModelLoad", self._load),
            self._post("/repository/models/{name}/unload", "RepositoryModelUnload", self._unload),
            self._get("/models/stats", "ModelStatistics", self._stats),
        ]
        for model in ("/models/{name}", "/models/{name}/versions/{version}"):
            found += [
                self._get(model, "ModelMetadata", self._metadata),
                self._get(f"{model}/ready", "ModelReady", self._model_ready),
                self._get(f"{model}/config", "ModelConfig", self._config),
                self._get(f"{model}/stats", "ModelStatistics", self._stats),
                self._post(f"{model}/infer", "ModelInfer", self._infer),
            ]
        return found

    # -- metadata ----------------------------------------------------------------------------------------------------

    async def _server(self, request: Request) -> Response:
        return JSONResponse(asdict(dataplane.server_metadata()))

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        is_ready = self._core.is_ready()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else _NOT_READY)

    async def _model_ready(self, request: Request) -> Response:
        name, version = _named(request)
        is_ready = self._core.is_model_ready(name, version)
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else _NOT_READY)

    async def _metadata(self, request: Request) -> Response:
        return JSONResponse(asdict(self._core.metadata(*_named(request))))

    async def _config(self, request: Request) -> Response:
        return JSONResponse(asdict(self._core.config(*_named(request))))

    async def _stats(self, request: Request) -> Response:
        return JSONResponse({"model_stats": [asdict(each) for each in self._core.statistics(*_named(request))]})

    async def _index(self, request: Request) -> Response:
        entries = self._core.index(get(read_object(await self._body(request)), "ready", False))
        return JSONResponse(
            [{"name": e.name, "version": str(e.version), "state": e.state, "reason": e.reason} for e in entries]
        )

    # -- what is done ------------------------------------------------------------------------------------------------

    async def _load(self, request: Request) -> Response:
        fields = read_object(await self._body(request))
        await self._core.load(_named(request)[0], bool(get(fields, "parameters", {})))
        return JSONResponse({})

    async def _unload(self, request: Request) -> Response:
        await self._core.unload(_named(request)[0])
        return JSONResponse({})

    async def _infer(self, request: Request) -> Response:
        name, version = _named(request)
        body, length = await self._body(request), _json_bytes(request)
        asked = await self._aside(lambda: read_request(body, length, name, version))
        until = time.perf_counter() + asked.timeout_s if math.isfinite(asked.timeout_s) else math.inf
        try:
            async with asyncio.timeout(asked.timeout_s if math.isfinite(asked.timeout_s) else None):
                answer = await _unless_gone(request, self._core.infer(asked.infer, until))
        except TimeoutError:
            raise TooLate("", "no answer within the timeout") from None
        content, json_bytes = await self._aside(lambda: write_answer(answer, asked))
        request.state.answered_by = (answer.model.name, str(answer.model.version))
        if json_bytes is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={_LENGTH: str(json_bytes)})

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codec, work)

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._body_max_bytes, "send fewer images at a time")

    # -- around every request ------------------------------------------------------------------------------------------

    def _get(self, path: str, method: str, endpoint: Endpoint) -> Route:
        return Route(f"/v2{path}", self._answering(endpoint, method), methods=["GET"])

    def _post(self, path: str, method: str, endpoint: Endpoint) -> Route:
        return Route(f"/v2{path}", self._answering(endpoint, method), methods=["POST"])

    def _answering(self, endpoint: Endpoint, name: str) -> Endpoint:
        """Wrap an endpoint in the envelope of a call, with errors as JSON."""
        method = Method(self._envelope, name, f"http.{name}", f"http/{name}")

        async def answer(request: Request) -> Response:
            with begin(method, request) as call:
                if self._tokens and not method.is_probe:
                    set_caller(self._tokens.check(request.headers.get("authorization", ""), right_of(name)))
                call.admit()
                response = await endpoint(request)
                call.answered_by = getattr(request.state, "answered_by", ("", ""))
            if error := call.error:
                response = JSONResponse({"error": error.message}, status_of(error), hints(error))
            response.headers["penult-request-id"] = call.id
            if not self._core.is_ready():
                response.headers["connection"] = "close"  # the next request should find another server
            return response

        return answer


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for an answer; cancel the work and raise ClientGone if the client disconnects."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("", "the client closed its connection")
        return task.result()
    finally:
        watch.cancel()
        task.cancel()


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _json_bytes(request: Request) -> int | None:
    text = request.headers.get(_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InvalidRequest("JSON_SIZE", "Inference-Header-Content-Length is not the size of the JSON part")
    return int(text)
