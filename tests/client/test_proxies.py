"""http_proxy and its like: what goes to this machine never goes through a proxy, whichever client asks."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from penult.bench import load
from penult.bench.measure import usage
from penult.bench.settings import LoadSettings
from penult.client import AsyncClient, Client, Crop, RequestFailed, Security, SecurityError
from penult.client.health import status
from penult.client.targets import proxy_options, read_targets
from penult.lookup import milvus
from penult.lookup.errors import StoreUnavailable
from penult.proxies import is_here, is_loopback, proxy_for
from penult.service.observability.tracing import Tracing

VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
NONE = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
DARK = Crop(np.full((8, 8, 3), 10, dtype=np.uint8))


@dataclass
class Proxy:
    """A listening socket that keeps the first bytes of whoever connects, and hangs up."""

    url: str = ""
    got: list[bytes] = field(default_factory=list)


@pytest.fixture
def proxy(monkeypatch) -> Iterator[Proxy]:
    """A proxy that every variable names, in small letters and capitals; nothing is excepted."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = Proxy(f"http://127.0.0.1:{listening.getsockname()[1]}")

        def listen() -> None:
            while True:
                try:
                    taken, _ = listening.accept()
                except OSError:
                    return
                with taken:
                    found.got.append(taken.recv(4096))

        thread = threading.Thread(target=listen)
        thread.start()
        for name in VARIABLES:
            monkeypatch.setenv(name, found.url)
            monkeypatch.setenv(name.upper(), found.url)
        for name in NONE:
            monkeypatch.delenv(name, raising=False)
        yield found
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(120)


def plain(target, security: Security = Security()) -> str:  # noqa: B008 - frozen
    with Client(target, timeout_s=20, security=security) as client:
        return client.classify([DARK], model="light").results[0].label


async def by_asyncio(target, security: Security = Security()) -> str:  # noqa: B008
    async with AsyncClient(target, timeout_s=20, security=security) as client:
        return (await client.classify([DARK], model="light")).results[0].label


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "http://127.0.0.1:{}/", "ipv4:127.0.0.1:{}",
                                  "0.0.0.0:{}", "127.0.0.1:{0},127.0.0.1:{0}"])  # fmt: skip
def test_loopback_is_asked_directly(light, proxy, form):
    """Both clients, one address or several, with a token in clear: answered, and the proxy was never spoken to."""
    target = form.format(light.target.rpartition(":")[2])
    security = Security(token="secret")
    assert plain(target, security) == asyncio.run(by_asyncio(target, security)) == "dark"
    assert proxy.got == []


def test_what_else_asks_a_server_asks_it_directly(light, proxy):
    """So do the health check, and bench: its calls, its streams, and the page of metrics that it fetches."""
    assert status(light.target) == "SERVING"
    for is_stream in (False, True):
        settings = LoadSettings(
            target=light.target, is_raw=True, requests=3, warmup_s=0, concurrency=1, is_stream=is_stream,
            metrics=f"{light.http}/metrics",
        )  # fmt: skip
        assert asyncio.run(load.run(settings)).requests == 3
    assert proxy.got == []


def test_what_a_server_asks_it_asks_directly(proxy, monkeypatch):
    """A server's own calls, to Milvus and to a collector of spans, take the same ways."""
    monkeypatch.setattr(milvus, "_CONNECT_S", 0.3)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    for host, is_asked in (("127.0.0.1", False), ("192.0.2.1", True)):
        proxy.got.clear()
        with pytest.raises(StoreUnavailable):
            milvus.MilvusStore(f"milvus://{host}:1")
        assert [line[:20] for line in proxy.got[:1]] == [b"CONNECT 192.0.2.1:1 "] * is_asked
        proxy.got.clear()
        tracing = Tracing(f"http://{host}:1", 1.0)
        tracing.begin("call", {}, "id").end("OK", "light", "1")
        tracing._processor.force_flush(300)
        assert [line[:20] for line in proxy.got[:1]] == [b"CONNECT 192.0.2.1:1 "] * is_asked


@pytest.fixture(scope="module")
def light(quick, start_server):
    """A server of the small model."""
    return start_server(quick)


def test_others_go_through_the_proxy_and_no_token_does_in_clear(proxy):
    """An address of another machine is asked for at the proxy; with a token and no TLS nobody is asked at all."""
    for target, asked in (("192.0.2.1:50051", b"CONNECT 192.0.2.1:50051 "),
                          ("192.0.2.1:1,192.0.2.2:2", b"CONNECT 192.0.2.")):  # fmt: skip
        proxy.got.clear()
        with Client(target, timeout_s=0.5, retries=0) as client, pytest.raises(RequestFailed):
            client.list_models()
        assert proxy.got
        assert proxy.got[0].startswith(asked)
        proxy.got.clear()
        with pytest.raises(SecurityError, match="to this machine only"):
            Client(target, security=Security(token="secret"))
        assert proxy.got == []
    with pytest.raises(Exception, match=r"--metrics http://192\.0\.2\.1:9095/metrics"):
        usage("http://192.0.2.1:9095/metrics")
    assert proxy.got[0].startswith(b"GET http://192.0.2.1:9095/metrics ")


PROXY = "http://proxy.example:3128"
DIRECT = ("grpc.enable_http_proxy", 0)


@pytest.mark.parametrize(
    ("target", "variables", "through"),
    [
        ("host.example:1", {}, ""),
        ("host.example:1", {"http_proxy": PROXY}, PROXY),
        ("host.example:1", {"http_proxy": "proxy.example:3128"}, PROXY),
        ("host.example:1", {"http_proxy": "socks5://proxy.example:1"}, ""),
        ("host.example:1", {"http_proxy": "http://other", "https_proxy": "http://third", "grpc_proxy": PROXY}, PROXY),
        ("dns:///host.example:1", {"https_proxy": PROXY}, PROXY),
        ("https://host.example:1", {"https_proxy": PROXY}, PROXY),
        ("host.example:1", {"http_proxy": PROXY, "no_proxy": "a.example, .EXAMPLE"}, ""),
        ("host.example:1", {"http_proxy": PROXY, "NO_PROXY": "host.example"}, ""),
        ("host.example:1", {"http_proxy": PROXY, "no_proxy": "ost.example,host.example:2"}, PROXY),
        ("host.example:1", {"http_proxy": PROXY, "no_proxy": "host.example:1"}, ""),
        ("host.example:1", {"http_proxy": PROXY, "no_proxy": "*"}, ""),
        ("host.example:1", {"http_proxy": PROXY, "no_proxy": "*", "no_grpc_proxy": "other"}, PROXY),
        ("10.1.2.3:1", {"http_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, ""),
        ("11.1.2.3:1", {"http_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, PROXY),
        ("[2001:db8::1]:1", {"http_proxy": PROXY, "no_proxy": "2001:db8::/32"}, ""),
        ("unix:/tmp/penult.sock", {"http_proxy": PROXY}, ""),
        ("[::1]:1", {"http_proxy": PROXY}, ""),
        ("127.9.9.9:1", {"http_proxy": PROXY}, ""),
    ],
)
def test_one_function_decides(target, variables, through):
    """Variables as gRPC reads them; no_proxy in every form that is in use, in capitals too; loopback never."""
    options = proxy_options(read_targets(target), environment=variables)
    assert options == [("grpc.http_proxy", through)] if through else DIRECT in options
    if "grpc" not in "".join(variables):
        host = target.removeprefix("dns:///").removeprefix("https://")
        alike = {name.replace("https", "http"): value for name, value in variables.items()}
        assert proxy_for(f"http://{host}/metrics" if ":/" not in host else "http:///", alike) == through


def test_of_several_addresses_each_goes_its_own_way():
    """Those of this machine and those of no_proxy directly, the others through the proxy, one by one."""
    targets = read_targets(["127.0.0.1:1", "10.0.0.1:2", "192.0.2.7:3", "192.0.2.8:4"])
    variables = {"http_proxy": "http://127.0.0.9:3128", "no_proxy": "10.0.0.0/8"}
    addresses = [one.host for one in targets]
    told = dict(proxy_options(targets, addresses, variables))
    assert told["grpc.enable_http_proxy"] == 0
    assert told["grpc.address_http_proxy"] == "127.0.0.9:3128"
    assert told["grpc.address_http_proxy_enabled_addresses"] == "192.0.2.7,192.0.2.8"
    with pytest.raises(ValueError, match="single --target"):
        proxy_options(targets, addresses, variables | {"http_proxy": "http://user:word@127.0.0.9:3128"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.3", "::1", "[::1]", "localhost", "LocalHost.", "0.0.0.0", "::",
                                  "::ffff:127.0.0.1"])  # fmt: skip
def test_what_is_this_machine(host):
    """All of 127.0.0.0/8, ::1, the addresses of all interfaces, localhost."""
    assert is_here(host)
    assert is_loopback(host) == (host not in ("0.0.0.0", "::"))


@pytest.mark.parametrize("host", ["", "128.0.0.1", "localhost.example", "notlocalhost", "::2", "127.0.0.1.example"])
def test_what_is_another_machine(host):
    """Names that only look like it are not."""
    assert not is_here(host)
    assert not is_loopback(host)
