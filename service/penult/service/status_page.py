"""The status page at / of the metrics port: its files, /status.json, and /try, which answers a photo dropped on it.

/try runs a model for whoever can reach the port, so it is for this machine alone unless --try-photos on says otherwise;
no other web page can use it through a visitor's browser (Origin, Sec-Fetch-Site, content type and Host are looked at).
"""

import ipaddress
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penult.bundle.errors import PenultError
from penult.service.answers import Answer, Outcome
from penult.service.config import ServeConfig
from penult.service.decoding import EncodedPhoto
from penult.service.errors import InvalidRequest, NotAllowed, code_of, presentable
from penult.service.gate import Gate
from penult.service.loading import ServedModel
from penult.service.lookups import Lookups, Query
from penult.service.pipeline import Pipeline
from penult.service.repository import Repository
from penult.service.status import Status

_TYPES = {"index.html": "text/html", "style.css": "text/css", "script.js": "text/javascript"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_PHOTO = "application/octet-stream"
_MOST_NEIGHBOURS = 5
_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "PERMISSION_DENIED": 403, "FAILED_PRECONDITION": 400,
           "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503}  # fmt: skip


def page_routes(status: Status, can_try: bool = False) -> list[Route]:
    """Return / with its files, and /status.json."""
    folder = files("penult.service") / "page"

    def serve(name: str) -> Route:
        data = (folder / name).read_bytes()

        async def answer(request: Request) -> Response:
            return Response(data, headers=_HEADERS, media_type=_TYPES[name])

        return Route("/" if name == "index.html" else f"/{name}", answer)

    async def told(request: Request) -> Response:
        return JSONResponse(status.told() | {"can_try": can_try}, headers=_HEADERS)

    return [*(serve(name) for name in _TYPES), Route("/status.json", told)]


class Try:
    """Answers one photo at a time, through the same pipeline as every other request."""

    def __init__(
        self, config: ServeConfig, repository: Repository, pipeline: Pipeline, lookups: Lookups, gate: Gate
    ) -> None:
        """Ask these."""
        self._config, self._repository, self._pipeline = config, repository, pipeline
        self._lookups, self._gate = lookups, gate

    def routes(self) -> list[Route]:
        """Return the route, below /try."""
        return [Route("/try", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        try:
            self._check(request)
            with self._gate.accepted():
                return JSONResponse(await self._tried(request, await self._body(request)), headers=_HEADERS)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as raised:
            error = presentable(raised, "", "try")
            status = 413 if error.reason == "BODY_SIZE" else _STATUS.get(code_of(error).name, 500)
            return JSONResponse({"error": error.message, "reason": error.reason}, status, headers=_HEADERS)

    def _check(self, request: Request) -> None:
        """Raise ServiceError unless this page sent it, to this machine."""
        if not self._config.has_try_photos:
            raise NotAllowed("TRY_OFF", "trying photos is off here; penult serve --try-photos on allows it")
        host, origin = request.headers.get("host", ""), request.headers.get("origin", "")
        is_ours = origin in ("", f"http://{host}", f"https://{host}")
        is_own = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
        is_photo = request.headers.get("content-type", "") == _PHOTO
        # A name that somebody else's DNS gave this address is no name of this machine.
        is_named = self._config.try_photos == "on" or _is_loopback(host)
        if not (is_ours and is_own and is_photo and is_named):
            raise NotAllowed("TRY_FOREIGN", f"only the status page itself may ask here, with a body of {_PHOTO}")

    async def _body(self, request: Request) -> bytes:
        most, parts, size = self._config.image_max_bytes, [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise InvalidRequest("BODY_SIZE", f"the photo is larger than {most:,} bytes")
            parts.append(part)
        return b"".join(parts)

    async def _tried(self, request: Request, data: bytes) -> dict[str, Any]:
        version = request.query_params.get("version", "0")
        model = self._repository.get(request.query_params.get("model", ""), int(version) if version.isdecimal() else 0)
        scored: dict[str, Answer] = {}
        for scorer in model.scorers:
            _, outcomes, _ = await self._pipeline.classify(model, [EncodedPhoto(data)], scorer, 5)
            scored[scorer] = _usable(outcomes)
        answer = scored[model.manifest.default_scorer]
        return {
            "model": model.name,
            "version": model.version,
            "default_scorer": model.manifest.default_scorer,
            "scorers": {name: [vars(each) for each in found.classes] for name, found in scored.items()},
            "novelty": answer.novelty,
            "is_novel": answer.is_novel,
            "novelty_threshold": model.baseline.threshold if model.baseline else None,
            "neighbours": await self._neighbours(model, answer),
        }

    async def _neighbours(self, model: ServedModel, answer: Answer) -> list[dict[str, Any]]:
        """Return the nearest items of all collections of the model's descriptors; none where there is no store."""
        if not self._lookups.is_there():
            return []
        try:
            specs = [each.spec for each in await self._lookups.all()]
            fitting = [spec.name for spec in specs if spec.fingerprint == model.fingerprint]
            found = [
                {"collection": name, "id": hit.id, "label": hit.label, "similarity": hit.similarity}
                for name in fitting[:_MOST_NEIGHBOURS]
                for (hits,) in [await self._lookups.find(Query(name, 5), [answer.descriptor], model.fingerprint)]
                for hit in hits
            ]
        except PenultError:
            return []
        return sorted(found, key=lambda each: -float(str(each["similarity"])))[:_MOST_NEIGHBOURS]


def _usable(outcomes: Sequence[Outcome]) -> Answer:
    (outcome,) = outcomes
    if isinstance(outcome, PenultError):
        raise outcome
    return outcome


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"
