"""What the page's requests hold, checked: bounded bodies of JSON, numbers, names and answers."""

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from penult.label.errors import LabelError
from penult.label.session import UNGIVEN, Answer

# A hundred answers, with the longest paths that Linux has.
_MAX_BODY_BYTES, _MAX_ANSWERS, _MAX_TEXT = 1 << 20, 200, 4096
_ARRIVAL_S = 10.0


class BadRequest(LabelError):
    """A request that the page does not send."""

    def __init__(self, status: int, message: str) -> None:
        """Keep the HTTP status."""
        super().__init__("REQUEST", message)
        self.status = status


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request holds; raise BadRequest.

    A form of another page cannot send this content type, and a script needs a CORS preflight, which fails here.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadRequest(415, "send JSON, with content-type: application/json")
    try:
        found = json.loads(await _bytes_of(request))
    except (ValueError, RecursionError):
        raise BadRequest(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise BadRequest(400, "the body is not an object of JSON")
    return found


async def _bytes_of(request: Request) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(_ARRIVAL_S):
            async for part in request.stream():
                data += part
                if len(data) > _MAX_BODY_BYTES:
                    raise BadRequest(413, f"the body exceeds {_MAX_BODY_BYTES:,} bytes; send fewer answers")
    except TimeoutError:
        raise BadRequest(408, f"the body did not arrive within {_ARRIVAL_S:.0f} s") from None
    except ClientDisconnect:
        raise BadRequest(400, "the connection ended") from None
    return bytes(data)


def read_answers(body: dict[str, Any]) -> list[Answer]:
    """Return the answers of a body, which is one or has `items`; raise BadRequest."""
    items = body.get("items", [body])
    if not isinstance(items, list) or not 1 <= len(items) <= _MAX_ANSWERS:
        raise BadRequest(400, f"items is a list of 1 to {_MAX_ANSWERS} answers")
    return [_answer(item) for item in items]


def _answer(item: Any) -> Answer:
    if not isinstance(item, dict):
        raise BadRequest(400, "an answer is an object")
    skip = item.get("skip", False)
    if not isinstance(skip, bool):
        raise BadRequest(400, "skip is true or false")
    if "label" not in item and not skip:
        raise BadRequest(400, "an answer has a label; null takes the last one back")
    return Answer(
        id=_text(item, "id"),
        label=_text(item, "label", None),
        skip=skip,
        was=_text(item, "was", None) if "was" in item else UNGIVEN,
        kind=_text(item, "kind", ""),
        guess=_text(item, "guess", ""),
    )


def read_name(body: dict[str, Any]) -> str:
    """Return the name of a new class; raise BadRequest."""
    return str(_text(body, "name"))


_NEEDED = object()


def _text(item: dict[str, Any], key: str, otherwise: Any = _NEEDED) -> Any:
    """Return a text of bounded length, or `otherwise` for null or if it is left out."""
    value = item.get(key)
    if value is None and otherwise is not _NEEDED:
        return otherwise
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise BadRequest(400, f"{key} is a text of at most {_MAX_TEXT} characters")
    return value


def read_count(request: Request, name: str, otherwise: int, most: int) -> int:
    """Return a whole number of the query, `otherwise` if it is left out; raise BadRequest."""
    text = request.query_params.get(name, str(otherwise))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and int(text) <= most):
        raise BadRequest(400, f"{name} is a whole number of at most {most}")
    return int(text)


def read_text(request: Request, name: str) -> str:
    """Return a text of the query; raise BadRequest if it is left out."""
    if name not in request.query_params:
        raise BadRequest(400, f"{name} is missing in the address")
    return request.query_params[name]
