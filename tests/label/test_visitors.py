"""Who may use the page: nothing that another page, another name of this machine or a guess can send gets an answer."""

import hashlib
import http.client
import socket

import httpx
import pytest

pytestmark = pytest.mark.server


def ask(page, path: str = "/api/state", method: str = "GET", body: bytes | None = None, **headers: str):
    """Send a request with exactly these headers, and the path as it is; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server.port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in ({"Host": f"127.0.0.1:{page.server.port}"} | headers).items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def cookie(refusing) -> str:
    """Return the header with the page's cookie."""
    return f"penult-label-{refusing.server.port}={refusing.server.token}"


def test_the_token_becomes_a_cookie(refusing):
    """The address with the token sets a cookie and is left at once, so that no history and no copied address has it."""
    with httpx.Client(base_url=refusing.base, trust_env=False) as client:
        answer = client.get(f"/?token={refusing.server.token}&x=1")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?x=1")
        given = answer.headers["set-cookie"]
        assert "HttpOnly" in given
        assert "SameSite=Strict" in given
        assert client.get("/").status_code == client.get("/api/state").status_code == 200
    assert httpx.get(f"{refusing.base}/api/state?token={refusing.server.token}", trust_env=False).status_code == 200
    assert refusing.server.url == f"{refusing.base}/?token={refusing.server.token}"


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/state", "/api/next", "/image/x", "/absent"])
@pytest.mark.parametrize("with_", ["nothing", "a wrong token", "an empty token", "a wrong cookie", "two tokens"])
def test_without_the_token_nothing_is_answered(refusing, path, with_):
    """No token, a wrong or empty one, and a wrong one beside the right one: 403, whatever is asked."""
    query, headers = "", {}
    if with_ == "a wrong cookie":
        headers["Cookie"] = f"penult-label-{refusing.server.port}={'x' * 32}"
    elif with_ != "nothing":
        tokens = {"a wrong token": ["x" * 32], "an empty token": [""], "two tokens": [refusing.server.token, "x"]}[
            with_
        ]
        query = "?" + "&".join(f"token={token}" for token in tokens)
    status, body, found = ask(refusing, path + query, **headers)
    assert (status, found["set-cookie"]) == (403, None)
    assert b"token" in body


FOREIGN = {
    "another origin": {"Origin": "http://evil.example"},
    "another port of this machine": {"Origin": "http://127.0.0.1:1"},
    "a page without an origin": {"Origin": "null"},
    "the same address with TLS": {"Origin": "https://127.0.0.1:{port}"},
    "another site": {"Sec-Fetch-Site": "cross-site"},
    "a page of this machine": {"Sec-Fetch-Site": "same-site"},
    "a name that points here": {"Host": "evil.example:{port}"},
    "a name with ours in it": {"Host": "127.0.0.1.evil.example:{port}"},
    "another port": {"Host": "127.0.0.1:1"},
    "no port": {"Host": "127.0.0.1"},
    "another address": {"Host": "0.0.0.0:{port}"},
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("how", FOREIGN)
def test_other_pages_and_names_are_refused(refusing, how, method):
    """Even with the cookie, a request of another page, or under a foreign name of this machine, gets 403."""
    headers = {name: value.format(port=refusing.server.port) for name, value in FOREIGN[how].items()}
    body = b'{"id": "circle/00000.jpg", "label": "star"}' if method == "POST" else None
    path = "/api/labels" if body else "/api/state"
    status, _, found = ask(
        refusing, path, method, body, Cookie=cookie(refusing), Content_Type="application/json", **headers
    )
    assert status == 403
    assert found["access-control-allow-origin"] is None
    assert refusing.written() == {}


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "[::1]", "127.0.0.1"])
def test_names_of_this_machine_are_accepted(refusing, name):
    """Loopback under its usual names works, from its own page."""
    host = f"{name}:{refusing.server.port}"
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin", "Cookie": cookie(refusing)}
    assert ask(refusing, **own)[0] == 200


def test_cors_allows_no_page(refusing):
    """The preflight of another page's script is refused, so the browser does not send its request."""
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST", "Cookie": cookie(refusing)}
    status, _, found = ask(refusing, "/api/labels", "OPTIONS", **asked)
    assert status == 403
    assert found["access-control-allow-origin"] is None


def test_an_opened_address_may_read_but_not_answer(refusing):
    """An address typed into the browser is answered; a form of no page cannot send an answer."""
    typed = {"Sec-Fetch-Site": "none", "Cookie": cookie(refusing)}
    assert ask(refusing, "/", **typed)[0] == 200
    assert ask(refusing, "/api/labels", "POST", b"{}", **typed)[0] == 403


PATHS = [
    "/static/../routes.py", "/static/..%2froutes.py", "/static/%2e%2e/routes.py", "/static//etc/passwd",
    "/static/index.html", "/image/../../etc/passwd", "/image/..%2f..%2fetc%2fpasswd", "/image//etc/passwd",
    "/image/circle/00000.jpg", "/image/circle%2f00000.jpg", "/..%2f..%2fetc/passwd", "/image/%00",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out(refusing, path):
    """Paths with dots, roots or encoded slashes are not found: no file is opened by a name from a request."""
    status, body, _ = ask(refusing, path, Cookie=cookie(refusing))
    assert status == 404
    assert b"root:" not in body


@pytest.mark.parametrize(
    "id_", ["../labels.csv", "/etc/passwd", "circle/../circle/00000.jpg", "circle\\00000.jpg", "\0", ""]
)
def test_no_id_leads_out(refusing, id_):
    """An id is one of the folder's photos as it is written, or it is refused; nothing is written."""
    answer = refusing.client.post("/api/labels", json={"id": id_, "label": "star"})
    assert answer.status_code == 400
    assert refusing.client.get("/api/neighbours", params={"id": id_}).status_code == 400
    assert refusing.written() == {}


def test_an_svg_or_html_file_is_never_served(refusing):
    """Files in the folder that a browser would run have no address, not even by their digest."""
    for name, data in (
        ("evil.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"),
        ("evil.html", b"<script>"),
    ):
        (refusing.photos / name).write_bytes(data)
        try:
            for path in (
                f"/image/{name}",
                f"/image/{hashlib.sha256(data).hexdigest()}?size=1280",
                f"/{name}",
                f"/static/{name}",
            ):
                assert refusing.client.get(path).status_code == 404
        finally:
            (refusing.photos / name).unlink()


def test_it_listens_on_loopback_only(refusing):
    """No other address of this machine has the port."""
    assert refusing.server._socket.getsockname()[0] == "127.0.0.1"
    with socket.create_server(("127.0.0.2", refusing.server.port)):
        pass  # free: it is not bound on all addresses
