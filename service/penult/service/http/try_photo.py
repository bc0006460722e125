"""/try: answers a photo dropped on the status page, through the same pipeline as every other request.

It runs a model for whoever can reach the port, so it is for this machine alone unless --try-photos on says otherwise;
no other web page can use it through a visitor's browser (Origin, Sec-Fetch-Site, content type and Host are looked at).
"""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penult.bundle.errors import PenultError
from penult.bundle.manifest import DENSE, SVM, parse_version
from penult.service.errors import InvalidRequest, NotAllowed
from penult.service.http.responses import begin, hints, names_loopback, read_body, status_of
from penult.service.inference.collections import Collections, Query
from penult.service.inference.decoder import EncodedPhoto
from penult.service.inference.pipeline import DEFAULT_TOP_K, Pipeline
from penult.service.inference.results import Answer, Outcome
from penult.service.models.loader import ServedModel
from penult.service.models.registry import ModelRegistry
from penult.service.observability.call import Envelope, Method

_PHOTO = "application/octet-stream"
_MAX_NEIGHBOURS = 5
_MAX_COLLECTIONS = 5
_WAIT_S = 30.0
# Thumbnails are JPEGs that somebody stored; nothing else is passed on as a picture.
_JPEG, _THUMBNAIL_MAX_BYTES = b"\xff\xd8\xff", 1 << 16
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass(frozen=True)
class TrySettings:
    """Whether photos are answered, under which names of this server, and how many bytes each may have."""

    is_on: bool
    is_any_host: bool
    max_bytes: int


class TryPhotoRoute:
    """Answers one photo per request."""

    def __init__(
        self,
        settings: TrySettings,
        repository: ModelRegistry,
        pipeline: Pipeline,
        lookups: Collections,
        envelope: Envelope,
    ) -> None:
        """Ask these."""
        self._settings = settings
        self._repository = repository
        self._pipeline = pipeline
        self._lookups = lookups
        self._method = Method(envelope, "Try", "http.Try", "http/Try")

    def told(self) -> dict[str, Any]:
        """Return what the page has to know."""
        return {"is_on": self._settings.is_on, "max_bytes": self._settings.max_bytes}

    def routes(self) -> list[Route]:
        """Return the route, below /try."""
        return [Route("/try", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        with begin(self._method, request) as call:
            self._check(request)
            call.admit()
            answer = await self._tried(request)
            call.answered_by = answer["model"], str(answer["version"])
            response = JSONResponse(answer | {"ms": 1000 * call.seconds}, headers=_HEADERS)
        if error := call.error:
            body = {"error": error.message, "reason": error.reason}
            response = JSONResponse(body, status_of(error), _HEADERS | hints(error))
        response.headers["penult-request-id"] = call.id
        return response

    def _check(self, request: Request) -> None:
        """Raise ServiceError unless this page sent it, to this machine."""
        if not self._settings.is_on:
            raise NotAllowed("TRY_OFF", "trying photos is off here; penult serve --try-photos on allows it")
        host, origin = request.headers.get("host", ""), request.headers.get("origin", "")
        is_ours = origin in ("", f"http://{host}", f"https://{host}")
        is_own = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
        # A name that somebody else's DNS gave this address is no name of this machine.
        is_named = self._settings.is_any_host or names_loopback(host)
        if not (is_ours and is_own and is_named):
            raise NotAllowed("TRY_FOREIGN", "only the status page itself may ask here, under this machine's own name")
        # A form of another page cannot send this type, and a script not without being asked for leave first.
        if request.headers.get("content-type", "") != _PHOTO:
            raise InvalidRequest("CONTENT_TYPE", f"send the photo's bytes, with content-type: {_PHOTO}")

    async def _tried(self, request: Request) -> dict[str, Any]:
        asked = request.query_params
        version = parse_version(asked["version"]) if asked.get("version") else 0
        if version is None:
            raise InvalidRequest("MODEL_VERSION", "a version is a whole number above 0, or left out for the newest")
        model = self._repository.get(asked.get("model", ""), version)
        data = await read_body(request, self._settings.max_bytes, "send a smaller photo")
        answer, scored = await self._scored(model, data)
        return {
            "model": model.name,
            "version": model.version,
            "default_scorer": model.manifest.default_scorer,
            "scorers": {name: [vars(each) for each in found.classes] for name, found in scored.items()},
            "novelty": answer.novelty,
            "is_novel": answer.is_novel,
            "novelty_threshold": model.baseline.threshold if model.baseline else None,
            "novelty_limit": _limit(model),
            "neighbours": await self._neighbours(model, answer, asked.get("collection", "")),
        }

    async def _scored(self, model: ServedModel, data: bytes) -> tuple[Answer, dict[str, Answer]]:
        """Return the answer, and answers by scorer: one run of the model, and one photo in what is counted."""
        expires = time.perf_counter() + _WAIT_S
        one = DENSE if DENSE in model.scorers else SVM
        _, outcomes, _ = await self._pipeline.classify(model, [EncodedPhoto(data)], one, DEFAULT_TOP_K, expires)
        answer = _usable(outcomes)
        scored = {one: answer}
        if SVM in model.scorers and one != SVM:
            scored[SVM] = _usable((await self._pipeline.score(model, [answer.descriptor], DEFAULT_TOP_K))[0])
        return answer, scored

    async def _neighbours(self, model: ServedModel, answer: Answer, collection: str) -> list[dict[str, Any]]:
        """Return the nearest items of a collection, or else of all that hold the model's descriptors.

        Raises PenultError only where a collection was asked for.
        """
        if collection:
            return await self._nearest(model, answer, collection)
        if not self._lookups.is_there():
            return []
        found: list[dict[str, Any]] = []
        try:
            fitting = [e.spec.name for e in await self._lookups.all() if e.spec.fingerprint == model.fingerprint]
            for name in fitting[:_MAX_COLLECTIONS]:
                found += await self._nearest(model, answer, name)
        except PenultError:  # whoever asked for classes has them
            return []
        return sorted(found, key=lambda each: -float(each["similarity"]))[:_MAX_NEIGHBOURS]

    async def _nearest(self, model: ServedModel, answer: Answer, collection: str) -> list[dict[str, Any]]:
        query = Query(collection, _MAX_NEIGHBOURS)
        (hits,) = await self._lookups.find(query, [answer.descriptor], model.fingerprint)
        items = await self._lookups.get(collection, [hit.id for hit in hits]) if hits else []
        thumbnails = {item.id: item.thumbnail for item in items}
        return [
            {"collection": collection, "id": hit.id, "label": hit.label, "similarity": hit.similarity,
             "thumbnail": _picture(thumbnails.get(hit.id, b""))}
            for hit in hits
        ]  # fmt: skip


def _limit(model: ServedModel) -> dict[str, Any] | None:
    """Return what the threshold stands for: shares and a distance of photos that were held out; None if unknown."""
    if not model.baseline:
        return None
    limit = model.baseline.limit
    return {"share_above": limit.share, "interval": limit.interval, "usual": limit.usual, "photos": limit.photos}


def _usable(outcomes: Sequence[Outcome]) -> Answer:
    (outcome,) = outcomes
    if isinstance(outcome, PenultError):
        raise outcome
    return outcome


def _picture(thumbnail: bytes) -> str:
    is_one = thumbnail.startswith(_JPEG) and len(thumbnail) <= _THUMBNAIL_MAX_BYTES
    return base64.b64encode(thumbnail).decode() if is_one else ""
