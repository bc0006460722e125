"""/feedback: verdicts about answers, as JSON, from the status page and from other clients.

Without tokens, only the status page may send them. --http allows other clients too.
"""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penult.bundle.errors import PenultError
from penult.service.auth.tokens import Tokens, right_of
from penult.service.errors import InvalidRequest, NotAllowed, code_of
from penult.service.http.responses import (
    answer_of,
    begin,
    is_from_own_page,
    read_body,
)
from penult.service.http.try_photo import TrySettings
from penult.service.inference.feedback import MAX_TRUTHS, ClaimedAnswer, FeedbackDesk, Finding, Judged
from penult.service.observability.call import Envelope, Method, caller, set_caller

_JSON = "application/json"
_MAX_BYTES = 1 << 20
_MAX_NUMBER = 2**32 - 1
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class FeedbackRoute:
    """Answers requests of feedback."""

    def __init__(
        self, page: TrySettings, has_api: bool, desk: FeedbackDesk, envelope: Envelope, tokens: Tokens | None
    ) -> None:
        """Give verdicts to `desk`.

        Args:
            page: Whether the status page may ask, and under which names of this server.
            has_api: Whether other clients may ask too.
            desk: Counts them.
            envelope: What all calls share.
            tokens: The tokens that callers need; None for none.

        """
        self._page, self._has_api, self._desk, self._tokens = page, has_api, desk, tokens
        self._method = Method(envelope, "Feedback", "http.Feedback", "http/Feedback")

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/feedback", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        response = None
        with begin(self._method, request) as call:
            self._check(request)
            call.admit()
            findings = _findings(await read_body(request, _MAX_BYTES, "send fewer verdicts at a time"))
            results = await self._desk.give(findings, caller())
            response = JSONResponse({"results": [_result(each) for each in results]}, headers=_HEADERS)
        return answer_of(call, response, _HEADERS)

    def _check(self, request: Request) -> None:
        """Raise ServiceError unless the client may send feedback."""
        if self._tokens:
            set_caller(self._tokens.check(request.headers.get("authorization", ""), right_of("Feedback")))
        elif not (self._has_api or self._page.is_on):
            raise NotAllowed("FEEDBACK_OFF", "feedback over HTTP is off here; penult serve --http allows it")
        is_any_host = bool(self._tokens) or self._has_api or self._page.is_any_host
        if not is_from_own_page(request, is_any_host):
            raise NotAllowed("FEEDBACK_FOREIGN", "no other web page may send feedback through a visitor's browser")
        # A form of another page cannot send this type, and a script needs a CORS preflight, which fails here.
        if request.headers.get("content-type", "").partition(";")[0].strip() != _JSON:
            raise InvalidRequest("CONTENT_TYPE", f"send a JSON object, with content-type: {_JSON}")


def _findings(body: bytes) -> list[Finding]:
    """Return the findings of a body; raise InvalidRequest."""
    try:
        entries = json.loads(body)["truths"]
        found = [_finding(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        form = '{"truths": [{"request_id": TEXT, "index": NUMBER, "label": TEXT}]}'
        raise InvalidRequest("FEEDBACK_JSON", f"send {form} (docs/feedback.md)") from error
    if not 1 <= len(found) <= MAX_TRUTHS:
        raise InvalidRequest("REQUEST_COUNT", f"a request takes 1 to {MAX_TRUTHS} truths; this one has {len(found)}")
    return found


def _finding(entry: dict[str, Any]) -> Finding:
    """Return one finding; raise ValueError or AttributeError if a field has the wrong type."""
    given = entry.get("answer")
    claim = given and ClaimedAnswer(_text(given, "model"), _number(given, "version"), _text(given, "label"))
    return Finding(
        _text(entry, "request_id"), _number(entry, "index"), _text(entry, "image_id"), _text(entry, "label"),
        _text(entry, "verdict"), claim or None,
    )  # fmt: skip


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name, "")
    if not isinstance(value, str):
        raise ValueError(name)
    return value


def _number(entry: dict[str, Any], name: str) -> int:
    value = entry.get(name, 0)
    if not isinstance(value, int) or not 0 <= value <= _MAX_NUMBER:
        raise ValueError(name)
    return value


def _result(found: Judged | PenultError) -> dict[str, Any]:
    if isinstance(found, PenultError):
        return {"error": {"code": code_of(found), "reason": found.reason, "message": found.message}}
    truth = found.truth
    return {
        "outcome": truth.outcome,
        "answer": {"model": truth.model, "version": truth.version, "label": truth.answered},
        "is_repeated": found.is_repeated,
        "is_photo_kept": found.is_photo_kept,
    }
