"""The status page at / of the metrics port: its files, and /status.json, which its script draws."""

from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penult.service.http.reports import Reports
from penult.service.http.status import Status
from penult.service.http.try_photo import TryPhotoRoute

_TYPES = {
    "index.html": "text/html", "style.css": "text/css", "draw.js": "text/javascript", "script.js": "text/javascript",
    "looked.js": "text/javascript", "try.js": "text/javascript",
}  # fmt: skip
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_OFF = (
    "Off here, as on every server that others can reach. penult serve --try-photos on allows it; "
    "penult classify PHOTO works without."
)
_OFF_FOR_WORKERS = "Several workers answer over gRPC only: penult classify PHOTO asks them."


def page_routes(status: Status, tries: TryPhotoRoute | None = None, reports: Reports | None = None) -> list[Route]:
    """Return / with its files, /status.json, /try if photos may be tried, and /report if reports may be read."""
    folder = files("penult.service.http") / "static"

    def serve(name: str) -> Route:
        data = (folder / name).read_bytes()

        async def answer(request: Request) -> Response:
            return Response(data, headers=_HEADERS, media_type=_TYPES[name])

        return Route("/" if name == "index.html" else f"/{name}", answer)

    async def current(request: Request) -> Response:
        more = {"try": _try_told(tries), "has_reports": bool(reports and reports.is_on)}
        return JSONResponse(status.as_json() | more, headers=_HEADERS)

    routes = [*(serve(name) for name in _TYPES), Route("/status.json", current)]
    return [*routes, *(tries.routes() if tries else ()), *(reports.routes() if reports else ())]


def _try_told(tries: TryPhotoRoute | None) -> dict[str, Any]:
    """Return whether photos can be tried, and why not."""
    if tries is None:
        return {"is_on": False, "max_bytes": 0, "why": _OFF_FOR_WORKERS}
    state = tries.as_json()
    return state | {"why": "" if state["is_on"] else _OFF}
