"""Shared parts of HTTP routes: bounded bodies, and errors as statuses with hints when to retry."""

import asyncio
import math
from collections.abc import Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from penult.bundle.errors import PenultError
from penult.proxies import host_and_port, is_loopback
from penult.service.errors import ClientGone, InvalidRequest, ServiceError, Unauthenticated, code_of
from penult.service.observability.call import Call, Method

# Seconds that a body may take to arrive: more than an honest client needs for the largest one.
_ARRIVAL_S = 60.0
_STATUS = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429, "INTERNAL": 500, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "CANCELLED": 499,  # as in nginx
}  # fmt: skip
_STATUS_OF_REASON = {"BODY_LATE": 408, "BODY_SIZE": 413, "CONTENT_ENCODING": 415, "CONTENT_TYPE": 415}


async def read_body(request: Request, most_bytes: int, advice: str) -> bytes:
    """Return the body of a request.

    Raises:
        InvalidRequest: the body is compressed, exceeds `most_bytes` (the message ends with `advice`) or is too slow.
        ClientGone: the client closed its connection.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise InvalidRequest("CONTENT_ENCODING", "send the body as it is; photos do not shrink by compression")
    parts, size = [], 0
    try:
        async with asyncio.timeout(_ARRIVAL_S):
            async for part in request.stream():
                size += len(part)
                if size > most_bytes:
                    raise InvalidRequest("BODY_SIZE", f"the body exceeds {most_bytes} bytes; {advice}")
                parts.append(part)
    except ClientDisconnect:
        raise ClientGone("", "the client closed its connection") from None
    except TimeoutError:
        raise InvalidRequest("BODY_LATE", f"the body did not arrive within {_ARRIVAL_S:.0f} s") from None
    return b"".join(parts)


def begin(method: Method, request: Request) -> Call:
    """Begin the call of a request."""
    return Call(method, lambda: request.client.host if request.client else "", lambda: request.headers)


def status_of(error: PenultError) -> int:
    """Return the HTTP status of an error."""
    return _STATUS_OF_REASON.get(error.reason) or _STATUS.get(code_of(error), 500)


def hints(error: PenultError) -> dict[str, str]:
    """Return headers: the stable reason, the authentication scheme and the delay before a retry, if they apply."""
    headers = {"penult-reason": error.reason} if error.reason else {}
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, ServiceError) and error.retry_after_ms is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_ms / 1000))
        headers["retry-after-ms"] = str(error.retry_after_ms)
    return headers


def answer_of(call: Call, response: Response | None, headers: Mapping[str, str]) -> Response:
    """Return what a call of the status page ended with: its response, or its error as JSON with `headers`."""
    if error := call.error:
        body = {"error": error.message, "reason": error.reason}
        response = JSONResponse(body, status_of(error), dict(headers) | hints(error))
    assert response is not None  # a call without an error has one
    response.headers["penult-request-id"] = call.id
    return response


def is_from_own_page(request: Request, is_any_host: bool) -> bool:
    """Return whether no page of another server sent a request, and, without `is_any_host`, its host is this machine."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin", "")
    is_ours = origin in ("", f"http://{host}", f"https://{host}")
    is_own = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    # Foreign DNS may give this address a name; that is no name of this machine.
    return is_ours and is_own and (is_any_host or names_loopback(host))


def names_loopback(header: str) -> bool:
    """Return whether a Host header names this machine and no other: a loopback address, or localhost."""
    return is_loopback(host_and_port(header)[0])
