"""/try: answers a photo dropped on the status page, through the same pipeline as every other request.

It runs a model for every client that can reach the port. So only this machine may use it, unless --try-photos on allows
more. No other web page can use it through a visitor's browser: the server checks Origin, Sec-Fetch-Site, content type
and Host.
"""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penult.bundle.class_map import ClassMap
from penult.bundle.errors import PenultError
from penult.bundle.manifest import DENSE, SVM, parse_version
from penult.bundle.map_support import why_none
from penult.service.errors import InvalidRequest, NotAllowed
from penult.service.http.responses import (
    answer_of,
    begin,
    is_from_own_page,
    read_body,
)
from penult.service.inference.abstaining import AnswerLimits, answer_limits
from penult.service.inference.class_maps import RequestMaps
from penult.service.inference.collections import Collections, Query
from penult.service.inference.decoder import EncodedPhoto
from penult.service.inference.pipeline import DEFAULT_TOP_K, Pipeline
from penult.service.inference.recent_answers import RecentAnswers
from penult.service.inference.results import Answer, Outcome
from penult.service.inference.scoring import ClassScores
from penult.service.models.loader import ServedModel
from penult.service.models.registry import ModelRegistry
from penult.service.observability.call import Envelope, Method

_PHOTO = "application/octet-stream"
_MAX_NEIGHBOURS = 5
_MAX_COLLECTIONS = 5
# Classes that the page offers as the right one.
_MAX_CLASSES = 1000
_WAIT_S = 30.0
# Clients store thumbnails as JPEGs; the page gets nothing else as a picture.
_JPEG, _THUMBNAIL_MAX_BYTES = b"\xff\xd8\xff", 1 << 16
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass(frozen=True)
class TrySettings:
    """Whether photos are answered, under which names of this server, and how many bytes each may have."""

    is_on: bool
    is_any_host: bool
    max_bytes: int
    # Whether the page may send feedback.
    can_judge: bool = True


class TryPhotoRoute:
    """Answers one photo per request."""

    def __init__(
        self,
        settings: TrySettings,
        repository: ModelRegistry,
        pipeline: Pipeline,
        collections: Collections,
        envelope: Envelope,
        answers: RecentAnswers,
    ) -> None:
        """Answer with these models, this pipeline and these collections; `answers` remembers it for feedback."""
        self._settings = settings
        self._repository = repository
        self._pipeline = pipeline
        self._collections = collections
        self._answers = answers
        self._method = Method(envelope, "Try", "http.Try", "http/Try")

    def as_json(self) -> dict[str, Any]:
        """Return the settings that the page needs."""
        return {"is_on": self._settings.is_on, "max_bytes": self._settings.max_bytes}

    def routes(self) -> list[Route]:
        """Return the route, below /try."""
        return [Route("/try", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        response = None
        with begin(self._method, request) as call:
            self._check(request)
            call.admit()
            answer = await self._tried(request)
            call.answered_by = answer["model"], str(answer["version"])
            response = JSONResponse(answer | {"ms": 1000 * call.seconds}, headers=_HEADERS)
        return answer_of(call, response, _HEADERS)

    def _check(self, request: Request) -> None:
        """Raise ServiceError unless the status page sent the request, under an accepted name of this server."""
        if not self._settings.is_on:
            raise NotAllowed("TRY_OFF", "trying photos is off here; penult serve --try-photos on allows it")
        if not is_from_own_page(request, self._settings.is_any_host):
            raise NotAllowed("TRY_FOREIGN", "only the status page itself may ask here, under this machine's own name")
        # A form of another page cannot send this type, and a script needs a CORS preflight, which fails here.
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
        limits = {name: answer_limits(model, name) for name in scored}
        scorer = model.manifest.default_scorer
        key = self._answers.remember(model, [scored[scorer]], [EncodedPhoto(data)], scorer=scorer)
        return {
            "request_id": key,
            # Without a token the page may send feedback; a page of a server with tokens has none.
            "can_judge": self._settings.can_judge,
            "classes": model.manifest.classes[:_MAX_CLASSES],
            "model": model.name,
            "version": model.version,
            "default_scorer": model.manifest.default_scorer,
            "scorers": {name: [each._asdict() for each in found.classes] for name, found in scored.items()},
            # Why the answer of each scorer is withheld, and for which share of wrong answers.
            "abstained": {name: scored[name].abstained for name, each in limits.items() if each},
            "max_error": {name: each.max_error for name, each in limits.items() if each},
            "novelty": answer.novelty,
            "is_novel": answer.is_novel,
            "novelty_threshold": model.baseline.threshold if model.baseline else None,
            "novelty_limit": _limit(model),
            "neighbours": await self._neighbours(model, answer, asked.get("collection", "")),
            "maps": _maps(answer.maps, _map_scorer(model)),
            # Of the default scorer, "" if it has maps.
            "why_no_maps": why_none(model.manifest.class_maps, model.manifest.default_scorer),
        }

    async def _scored(self, model: ServedModel, data: bytes) -> tuple[Answer, dict[str, Answer]]:
        """Return the answer, and answers by scorer; the model runs once, and metrics count the default scorer's."""
        expires, one = time.perf_counter() + _WAIT_S, model.manifest.default_scorer
        explained = _map_scorer(model)
        maps = RequestMaps(model, explained, 1, top=DEFAULT_TOP_K) if explained else None
        limits = {name: answer_limits(model, name) for name in model.scorers}
        _, outcomes, _ = await self._pipeline.classify(
            model, [EncodedPhoto(data)], one, DEFAULT_TOP_K, expires, limits[one], maps
        )
        answer = _usable(outcomes)
        scored = {one: answer}
        for name in sorted({DENSE, SVM} & set(model.scorers) - {one}):
            if name == SVM:
                found, _ = await self._pipeline.score(model, [answer.descriptor], DEFAULT_TOP_K, limits[name])
                scored[name] = _usable(found)
            else:
                scored[name] = _by_dense_head(model, answer, limits[name])
        return answer, {name: scored[name] for name in sorted(scored)}

    async def _neighbours(self, model: ServedModel, answer: Answer, collection: str) -> list[dict[str, Any]]:
        """Return the nearest items of a collection, or else of all that hold the model's descriptors.

        Raises:
            PenultError: the lookup failed, and the client named a collection.
        """
        if collection:
            return await self._nearest(model, answer, collection)
        if not self._collections.is_there():
            return []
        found: list[dict[str, Any]] = []
        try:
            fitting = [e.spec.name for e in await self._collections.all() if e.spec.fingerprint == model.fingerprint]
            for name in fitting[:_MAX_COLLECTIONS]:
                found += await self._nearest(model, answer, name)
        except PenultError:  # the client asked for classes, and gets them
            return []
        return sorted(found, key=lambda each: -float(each["similarity"]))[:_MAX_NEIGHBOURS]

    async def _nearest(self, model: ServedModel, answer: Answer, collection: str) -> list[dict[str, Any]]:
        query = Query(collection, _MAX_NEIGHBOURS)
        (hits,) = await self._collections.find(query, [answer.descriptor], model.fingerprint)
        items = await self._collections.get(collection, [hit.id for hit in hits]) if hits else []
        thumbnails = {item.id: item.thumbnail for item in items}
        return [
            {"collection": collection, "id": hit.id, "label": hit.label, "similarity": hit.similarity,
             "thumbnail": _picture(thumbnails.get(hit.id, b""))}
            for hit in hits
        ]  # fmt: skip


def _map_scorer(model: ServedModel) -> str | None:
    """Return the scorer whose class maps are shown, the default one if it has exact maps; None if none has."""
    heads, default = model.mapper.heads if model.mapper else {}, model.manifest.default_scorer
    return default if default in heads else next(iter(heads), None)


def _maps(found: Sequence[ClassMap], scorer: str | None) -> dict[str, Any] | None:
    """Return the maps of one photo for the page; None without."""
    if not found:
        return None
    height, width = found[0].values.shape
    return {
        "scorer": scorer,
        "height": height,
        "width": width,
        "area": found[0].area,
        "classes": [{"label": e.label, "values": e.values.ravel().tolist(), "offset": e.offset} for e in found],
    }


def _limit(model: ServedModel) -> dict[str, Any] | None:
    """Return what the threshold means, as shares and a distance of held-out photos; None if unknown."""
    if not model.baseline:
        return None
    limit = model.baseline.limit
    return {"share_above": limit.share, "interval": limit.interval, "usual": limit.usual, "photos": limit.photos}


def _by_dense_head(model: ServedModel, answer: Answer, limits: AnswerLimits | None) -> Answer:
    """Return what the dense head says of a photo that another scorer answered; nothing is counted."""
    assert answer.logits is not None  # the network has run
    temperature = model.manifest.temperatures[DENSE]
    (classes,) = ClassScores.of(answer.logits, model.manifest.classes, temperature).ranked(DEFAULT_TOP_K)
    return replace(answer, classes=classes, abstained=limits.reason(classes[0], answer.is_novel) if limits else "")


def _usable(outcomes: Sequence[Outcome]) -> Answer:
    (outcome,) = outcomes
    if isinstance(outcome, PenultError):
        raise outcome
    return outcome


def _picture(thumbnail: bytes) -> str:
    is_one = thumbnail.startswith(_JPEG) and len(thumbnail) <= _THUMBNAIL_MAX_BYTES
    return base64.b64encode(thumbnail).decode() if is_one else ""
