"""What the shipped proxies keep from the replicas, and what they let through."""

import hashlib
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.attacks.http2 import CLASSIFY, END_STREAM, RST_STREAM, Connection, data, message, opening
from tests.fixtures.authority import Authority
from tests.scale.fleet import HOSTS, Load, asker, free_port, wait_for
from tests.scale.ways import PROXIES, Haproxy, Nginx, Proxy, tool

from penult.client import Client, RequestFailed, Security
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

BOUND_S = 2
# The same bounds, shorter.
SHORT = {
    Haproxy: {"60S if": f"{BOUND_S}S if", "timeout client 60s": f"timeout client {BOUND_S}s"},
    Nginx: {"default 60S": f"default {BOUND_S}S", "client_body_timeout 60s": f"client_body_timeout {BOUND_S}s"},
}
# HAProxy cuts the stream off where a replica answers before the request has ended, and may lose the answer by that.
TOO_LARGE = {Haproxy: {"RESOURCE_EXHAUSTED", "CANCELLED"}, Nginx: {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"}}
ATTACKERS = 10
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@pytest.fixture(params=SHORT, ids=lambda kind: kind.__name__.lower())
def proxy(request, fleet, tmp_path) -> Iterator[Proxy]:
    """Each proxy in turn, with time bounds that a test can wait for."""
    opened = request.param(fleet, tmp_path, SHORT[request.param])
    yield opened
    opened.close()


@pytest.fixture
def channel(proxy) -> Iterator[grpc.Channel]:
    """A connection to it."""
    with grpc.insecure_channel(proxy.target, options=UNLIMITED) as opened:
        yield opened


# -- slow bodies -------------------------------------------------------------------------------------------------------


class Slow:
    """A caller that never finishes its request: it falls silent, or drips."""

    def __init__(self, target: str, is_dripping: bool) -> None:
        """Send the beginning."""
        self._connection, self._is_dripping = Connection(target), is_dripping
        self._connection.send(opening(1, CLASSIFY) + data(1, message(b"x" * 100, promised=1_000_000)))
        self.is_ended = False

    def go_on(self) -> None:
        """Send a byte more, where it drips, and see whether it was ended."""
        for frame in self._connection.frames(0.001):
            self.is_ended |= frame.stream == 1 and (frame.kind == RST_STREAM or bool(frame.flags & END_STREAM))
        self.is_ended |= not self._connection.is_open
        if self._is_dripping and not self.is_ended:
            self._connection.send(data(1, b"x"))

    def close(self) -> None:
        """Leave."""
        self._connection.close()


def are_ended(slow: list[Slow]) -> Callable[[], bool]:
    """Return what goes on with all of them and says whether each was ended."""

    def go_on() -> bool:
        for one in slow:
            one.go_on()
        return all(one.is_ended for one in slow)

    return go_on


@pytest.mark.parametrize("is_dripping", [False, True], ids=["silent", "dripping"])
def test_slow_bodies(proxy, fleet, photo, is_dripping):
    """Bodies that never end are ended by the proxy, which replicas alone would not do; others are served meanwhile."""
    bare = Slow(fleet.targets[0], is_dripping)
    with Client(proxy.target) as client, Load(asker(client, photo)) as load:
        slow = [Slow(proxy.target, is_dripping) for _ in range(ATTACKERS)]
        wait_for(are_ended([*slow]), "slow bodies are ended")
        load.wait_for(50)
    bare.go_on()
    assert (load.failures, bare.is_ended) == ([], False)
    for one in [*slow, bare]:
        one.close()


def test_deadlines():
    """Both files let deadlines of less than 60 s stand, in each of gRPC's units, and no others."""
    files = [(PROXIES / name).read_text() for name in ("haproxy.cfg", "nginx.conf")]
    (pattern,) = {re.search(r"\^\(\[0-9\].*?\)\$", text).group() for text in files}
    for stands in ("1n", "99999999n", "59999999u", "29999m", "59999m", "5S", "59S"):
        assert re.search(pattern, stands), stands
    for does_not in ("60000000u", "60000m", "99999999m", "60S", "100S", "1M", "1H", "", "S", "-1S"):
        assert not re.search(pattern, does_not), does_not


def test_long_streams(proxy, channel, photo):
    """A stream that is not silent outlasts the bound that ends a silent request."""
    silent, enough, answers = Slow(proxy.target, is_dripping=False), threading.Event(), 0

    def requests() -> Iterator[pb.ClassifyRequest]:
        while not enough.wait(0.2):
            yield pb.ClassifyRequest(images=[pb.Image(encoded=photo)])

    for _ in penult_pb2_grpc.PenultServiceStub(channel).StreamClassify(requests(), timeout=60):
        answers += 1
        silent.go_on()
        if silent.is_ended:
            enough.set()
    assert silent.is_ended
    assert answers > 1
    silent.close()


# -- what is let through -----------------------------------------------------------------------------------------------


def test_sizes(proxy, channel, photo):
    """A message of 20 MiB passes, one of more than 64 MiB is refused."""
    stub = penult_pb2_grpc.PenultServiceStub(channel)
    images = [pb.Image(encoded=photo), *(pb.Image(encoded=bytes(5 << 20)) for _ in range(4))]
    answer = stub.Classify(pb.ClassifyRequest(images=images), timeout=60)
    assert len(answer.results) == 5
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=bytes(5 << 20))] * 13), timeout=60)
    assert caught.value.code().name in TOO_LARGE[type(proxy)]


def test_health(channel):
    """A proxy's health can be asked for; watching one replica through it cannot."""
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=20))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("kind", [Haproxy, Nginx])
def test_no_replica(kind, tmp_path):
    """With no replica to be reached a proxy says UNAVAILABLE, without the body that would keep clients from retrying."""
    nobody = SimpleNamespace(port=free_port(), metrics_port=free_port())
    nobody.targets = [f"{host}:{nobody.port}" for host in HOSTS]
    proxy = kind(nobody, tmp_path)
    with grpc.insecure_channel(proxy.target) as channel, pytest.raises(grpc.RpcError) as caught:
        penult_pb2_grpc.PenultServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=20)
    assert (caught.value.code(), caught.value.details()[:6]) == (grpc.StatusCode.UNAVAILABLE, "proxy:")
    proxy.close()


def test_many_connections(fleet, photo, tmp_path):
    """HAProxy turns away an address's connections above 64; who is connected is served."""
    proxy = Haproxy(fleet, tmp_path)
    with Client(proxy.target) as client, Load(asker(client, photo)) as load:
        opened = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(100)]
        wait_for(lambda: sum(_is_closed(one) for one in opened) > 30, "connections are turned away")
        load.wait_for(50)
    assert load.failures == []
    for one in opened:
        one.close()
    proxy.close()


def _is_closed(opened: socket.socket) -> bool:
    opened.setblocking(False)
    try:
        return opened.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


# -- the files as they are shipped -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "check"), [("haproxy.cfg", ["haproxy", "-c", "-f"]), ("nginx.conf", ["nginx", "-t", "-c"])]
)
def test_files_are_valid(name, check, tmp_path):
    """Each proxy finds nothing wrong with its file, as shipped and with TLS switched on, as docs/proxies.md says."""
    program, text = tool(check[0]), (PROXIES / name).read_text()
    _certificate(tmp_path / "penult")
    for content in (text, _with_tls(tmp_path / "penult")(text, "127.0.0.1:50443")):
        (tmp_path / name).write_text(content)
        done = subprocess.run([program, *check[1:], tmp_path / name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "arning" not in done.stdout + done.stderr


@pytest.mark.parametrize("kind", [Haproxy, Nginx])
def test_tls_and_tokens(kind, start_server, quick, photo, tmp_path):
    """With the lines of TLS switched on, a client speaks TLS to the proxy, and its token reaches the replica."""
    (tmp_path / "tokens").write_text(f"somebody read {hashlib.sha256(b'secret').hexdigest()}\n")
    guarded = start_server(quick, "--tokens", str(tmp_path / "tokens"), "--lookup", "off")
    alone = SimpleNamespace(targets=[guarded.target] * 3, metrics_port=guarded.http.rpartition(":")[2])
    ca = _certificate(tmp_path / "penult")
    proxy = kind(alone, tmp_path, edit=_with_tls(tmp_path / "penult"))
    with Client(proxy.target, security=Security(ca=ca, token="secret", server_name="localhost")) as client:
        asker(client, photo)()
    with Client(proxy.target, security=Security(ca=ca, server_name="localhost")) as client:
        with pytest.raises(RequestFailed, match="UNAUTHENTICATED"):
            asker(client, photo)()
    proxy.close()


def _with_tls(cert: Path) -> Callable[[str, str], str]:
    """Return what comments a file's plain port out, and its lines of TLS in."""

    def edit(text: str, target: str) -> str:
        lines = text.splitlines()
        (plain,) = [n for n, line in enumerate(lines) if line.lstrip().startswith(("bind 127", "listen 127"))]
        lines[plain] = "# " + lines[plain]
        for n, line in enumerate(lines):
            if n != plain and line.lstrip().startswith(("# bind", "# listen", "# ssl_")):
                lines[n] = line.replace("# ", "", 1)
        text = "\n".join([*lines, ""])
        assert ":443" in text or "listen 443" in text
        for old in ("/etc/haproxy/penult", "/etc/nginx/penult"):
            text = text.replace(old, str(cert))
        return text.replace("bind :443", f"bind {target}").replace("listen 443", f"listen {target}")

    return edit


def _certificate(cert: Path) -> Path:
    """Write NAME.pem, certificate and key, and NAME.key; return the authority's file."""
    authority = Authority(cert.parent / "authority")
    issued = authority.issue("penult", hosts=("localhost",))
    cert.with_suffix(".key").write_bytes(issued.key.read_bytes())
    cert.with_suffix(".pem").write_bytes(issued.chain.read_bytes() + issued.key.read_bytes())
    return authority.ca
