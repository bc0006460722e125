"""/report/NAME/VERSION: the report of a version that is served, for people on this machine.

The bundle contains the report, and the server has verified its digest with the other files. It shows test photos, so
the server answers with it on loopback only, under a name of this machine, and not if callers must authenticate.
"""

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penult.bundle.errors import PenultError
from penult.bundle.manifest import Manifest, parse_version
from penult.bundle.reader import read_file
from penult.service.errors import InvalidRequest, NotAllowed, NotFound
from penult.service.http.responses import names_loopback, status_of
from penult.service.models.registry import ModelRegistry

REPORT_NAME = "report/index.html"
# One file that holds its pictures and its style, and no script.
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Reports:
    """Serves reports of training."""

    def __init__(self, models: Path, registry: ModelRegistry, is_on: bool) -> None:
        """Serve the reports of the versions that `registry` serves from the folder `models`; none unless `is_on`."""
        self._models = models
        self._registry = registry
        self.is_on = is_on

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/report/{name}/{version}", self._answer)]

    async def _answer(self, request: Request) -> Response:
        try:
            data = await self._read(request)
        except PenultError as error:
            body = {"error": error.message, "reason": error.reason}
            return JSONResponse(body, status_of(error), _HEADERS)
        return Response(data, headers=_HEADERS, media_type="text/html")

    async def _read(self, request: Request) -> bytes:
        if not self.is_on:
            raise NotAllowed("REPORT_OFF", "reports are shown on loopback only, and not if callers must authenticate")
        # Under another name, the request may come from a foreign web page whose DNS names this address.
        if not names_loopback(request.headers.get("host", "")):
            raise NotAllowed("REPORT_FOREIGN", "reports are shown under this machine's own name only")
        version = parse_version(request.path_params["version"])
        if version is None:
            raise InvalidRequest("MODEL_VERSION", "a version is a whole number above 0")
        model = self._registry.get(request.path_params["name"], version)
        if not has_report(model.manifest):
            raise NotFound("REPORT_NONE", f"{model.name} version {version} has no report")
        folder = self._models / model.name / str(version)
        try:
            return await asyncio.to_thread(read_file, folder, model.manifest, REPORT_NAME)
        except (PenultError, OSError) as error:  # the message would name the folder
            raise NotFound(
                "REPORT_CHANGED",
                f"the report of {model.name} version {version} is gone, or not the one that was checked",
            ) from error


def has_report(manifest: Manifest) -> bool:
    """Return whether a bundle holds a report."""
    return REPORT_NAME in manifest.files
