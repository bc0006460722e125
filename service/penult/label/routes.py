"""The HTTP interface of the labelling page: its files, the state, what comes next, answers, and pictures.

The session blocks: it writes to the disk before it returns. So its methods run on threads.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penult.bundle.errors import ImageError, PenultError
from penult.label.errors import Conflict, LabelError, LabelFileError
from penult.label.requests import BadRequest, body_of, read_answers, read_count, read_name, read_text
from penult.label.revisions import Revisions, encode
from penult.label.session import Session
from penult.label.shown_images import SHOWN, SIZES, ShownImages

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_MAX_NEXT, _MAX_GRID, _NEIGHBOURS = 50, 100, 5
# An address holds the digest of the photo's bytes, so a picture never changes.
_FOREVER = {"cache-control": "private, max-age=31536000, immutable"}


class Api:
    """Answers the page's requests for one session."""

    def __init__(self, session: Session, revisions: Revisions) -> None:
        """Show the photos of the session."""
        self._session, self._revisions = session, revisions
        self._images = ShownImages(session.photo_of)

    def routes(self) -> list[Route]:
        """Return all routes."""
        return [
            *_static(),
            Route("/api/state", self._state),
            Route("/api/next", self._next),
            Route("/api/grid", self._grid),
            Route("/api/neighbours", self._neighbours),
            Route("/api/label-studio", self._label_studio),
            Route("/api/labels", self._answer, methods=["POST"]),
            Route("/api/classes", self._add_class, methods=["POST"]),
            Route("/api/publish", self._publish, methods=["POST"]),
            Route("/image/{sha256}", self._image),
        ]

    async def _state(self, request: Request) -> Response:
        if "after" not in request.query_params:
            return await _json(self._session.state)
        body = await self._revisions.after(read_count(request, "after", 0, 1 << 53))
        return Response(body, media_type="application/json")

    async def _next(self, request: Request) -> Response:
        count = read_count(request, "count", 1, _MAX_NEXT)
        holding = request.query_params.getlist("holding")
        return await _items(partial(self._session.next, count, holding))

    async def _grid(self, request: Request) -> Response:
        label = read_text(request, "label")
        return await _items(partial(self._session.grid, label, read_count(request, "count", 20, _MAX_GRID)))

    async def _neighbours(self, request: Request) -> Response:
        return await _items(partial(self._session.neighbours, read_text(request, "id"), _NEIGHBOURS))

    async def _answer(self, request: Request) -> Response:
        return await _json(partial(self._session.answer, read_answers(await body_of(request))))

    async def _add_class(self, request: Request) -> Response:
        return await _json(partial(self._session.add_class, read_name(await body_of(request))))

    async def _publish(self, request: Request) -> Response:
        await body_of(request)
        return await _json(self._session.publish)

    async def _label_studio(self, request: Request) -> Response:
        data = await run_in_threadpool(self._session.label_studio)
        headers = {"content-disposition": 'attachment; filename="label-studio.json"'}
        return Response(data, media_type="application/json", headers=headers)

    async def _image(self, request: Request) -> Response:
        sha256, size = request.path_params["sha256"], read_count(request, "size", SHOWN, SHOWN)
        if size not in SIZES:
            raise BadRequest(400, f"size is one of {', '.join(map(str, SIZES))}")
        tag = f'"{sha256}-{size}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=_FOREVER | {"etag": tag})
        data = await run_in_threadpool(self._images.jpeg, sha256, size)
        if data is None:
            raise BadRequest(404, "no photo has this digest")
        return Response(data, media_type="image/jpeg", headers=_FOREVER | {"etag": tag})


def answers() -> Mapping[Any, Any]:
    """Return how errors are answered, with a status and one line."""
    return {PenultError: _failed, HTTPException: _wrong_address, Exception: _crashed}


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, PenultError)
    if isinstance(error, Conflict):
        return JSONResponse({"error": error.message, "id": error.image, "label": error.label}, 409)
    status = 503  # of the disk
    if isinstance(error, BadRequest):
        status = error.status
    elif isinstance(error, ImageError):
        status = 422
    elif isinstance(error, LabelError) and not isinstance(error, LabelFileError):
        status = 400
    return JSONResponse({"error": error.message}, status)


async def _wrong_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"{request.method} {request.url.path[:128]}: {error.detail}"}, error.status_code)


async def _crashed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "a fault in penult label; its lines in the terminal say where"}, 500)


def _static() -> list[Route]:
    """Return a route for each file of the page. No path is built from a request."""
    folder = files("penult.label") / "static"

    def serve(name: str, data: bytes) -> Route:
        kind = _TYPES["." + name.rpartition(".")[2]]

        async def answer(request: Request) -> Response:
            return Response(data, media_type=kind)

        return Route("/" if name == "index.html" else f"/static/{name}", answer)

    return [serve(file.name, file.read_bytes()) for file in sorted(folder.iterdir(), key=lambda file: file.name)]


async def _json(call: Callable[[], Any]) -> Response:
    return Response(encode(await run_in_threadpool(call)), media_type="application/json")


async def _items(call: Callable[[], Any]) -> Response:
    return Response(encode({"items": await run_in_threadpool(call)}), media_type="application/json")
