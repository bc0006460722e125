"""Admit a browser that knows the token, under a name of this machine, and from the page itself.

Any web page can make a visitor's browser send requests to 127.0.0.1. A foreign DNS name can point there too. So the
server checks Host, Origin, Sec-Fetch-Site and the token, before it reads anything else of a request.
"""

import secrets
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAMES = ("127.0.0.1", "localhost", "[::1]")
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
_NO_TOKEN = "open the page with the address that penult label printed; it ends with ?token=…"  # noqa: S105
_FOREIGN = "only the labelling page itself may ask here, under a name of this machine"


class OnlyOwnPage:
    """Passes requests of the page on to an application, and refuses all others with 403."""

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        """Accept this token, at this port of the machine."""
        self._app, self._token = app, token
        self._hosts = {f"{name}:{port}" for name in _NAMES} | ({*_NAMES} if port == 80 else set())
        # Cookies know no ports: two pages at one time must not overwrite each other's.
        self._cookie = f"penult-label-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        given = [value for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name == "token"]
        response: Response | None = None
        if not self._is_own(headers, scope["method"]):
            response = _refusal(scope, _FOREIGN)
        elif given and all(map(self._is_token, given)):
            send = self._with_cookie(send)
            if scope["path"] == "/":  # so that the token stays out of the history, and of a copied address
                response = RedirectResponse("/" + _others(scope), 303)
        elif given or not self._has_cookie(headers):
            response = _refusal(scope, _NO_TOKEN)
        await (response or self._app)(scope, receive, _hardened(send))

    def _is_own(self, headers: Headers, method: str) -> bool:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return False
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            return False
        # A typed or opened address has "none", which no script can send; programs send no such header.
        usual = ("same-origin", "none") if method in ("GET", "HEAD") else ("same-origin",)
        return all(site in usual for site in headers.getlist("sec-fetch-site"))

    def _has_cookie(self, headers: Headers) -> bool:
        found = [cookie_parser(each).get(self._cookie, "") for each in headers.getlist("cookie")]
        return any(map(self._is_token, found))

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self._token.encode())

    def _with_cookie(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
                MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        return sent


def _others(scope: Scope) -> str:
    """Return the query without the token."""
    pairs = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
    return f"?{urlencode(pairs)}" if pairs else ""


def _refusal(scope: Scope, why: str) -> Response:
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": why}, 403)
    return PlainTextResponse(f"{why}\n", 403)


def _hardened(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
            if "cache-control" not in headers:
                headers["cache-control"] = "no-store"
        await send(message)

    return sent
