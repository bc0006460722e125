"""Attacks on the HTTP port: probes and metrics answer others, gRPC goes on, and nothing of the attack stays.

Run with -s to see the figures of each.
"""

import http.client

import pytest
from tests.attacks.bystander import Bystander, Prober, health, median, peak_rss_mib, percentile, vitals, wait_for
from tests.attacks.crumbs import ASSAULTS, connected

# The largest body that is taken is held whole, as bytes and as what was made of them.
MAX_MORE_MIB = 300
MAX_DESCRIPTORS = 4
SECRETS = (
    "/../../etc/passwd", "/..%2f..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v2/models/../../light",
    "/v2/models/%2e%2e%2flight", "/v2/models/light%00/ready", "/v2/models/light/versions/../../../1", "/metrics/../livez%0d%0aX-a:b",
)  # fmt: skip


@pytest.fixture(scope="module")
def attacked(light, start_server):
    """A server that answers the Open Inference Protocol over HTTP too."""
    return start_server(light, "--lookup", "off", "--http")


@pytest.fixture(scope="module")
def address(attacked) -> tuple[str, int]:
    """Host and port of HTTP."""
    host, _, port = attacked.http.removeprefix("http://").rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("assault", ASSAULTS, ids=lambda assault: assault.__name__)
def test_probes_and_metrics_answer_others(attacked, address, photo, assault):
    """While it lasts /livez, /readyz, /metrics and gRPC all answer; then the process is healthy and let go of all."""
    pid = attacked.process.pid
    before = vitals(pid)
    with peak_rss_mib(pid) as peak, Prober(attacked.http) as prober, Bystander(attacked.target, photo) as other:
        prober.wait_for(6)
        held = assault(address)
        prober.wait_for(21, 120)
        other.wait_for(10, 120)
    for one in held:
        one.close()
    print(f"{assault.__name__}: {len(held)} connections, HTTP {dict(prober.answers)}, median "
          f"{median(prober.latencies_ms):.1f}, most {max(prober.latencies_ms):.0f} ms; gRPC {dict(other.codes)}, p99 "
          f"{percentile(other.latencies_ms, 0.99):.0f} ms; RSS {before.rss_mib:.0f} -> {peak[0]:.0f} MiB")  # fmt: skip
    assert set(prober.answers) == {"200"}
    assert set(other.codes) == {"OK"}
    assert attacked.process.poll() is None
    assert health(attacked.target) == 1
    wait_for(lambda: vitals(pid).descriptors <= before.descriptors + MAX_DESCRIPTORS)
    assert peak[0] - before.rss_mib < MAX_MORE_MIB


@pytest.mark.parametrize("path", SECRETS)
def test_no_path_leads_out(address, path):
    """A path that climbs, in whatever spelling, finds nothing of the machine and splits no header."""
    connection = http.client.HTTPConnection(*address, timeout=20)
    connection.putrequest("GET", path, skip_host=False)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status in {400, 404}
    assert b"root:" not in body
    assert response.getheader("x-a") is None


@pytest.mark.parametrize("path", [b"/try", b"/v2/models/light/infer"])
@pytest.mark.parametrize("has_length", [True, False], ids=["length", "chunks"])
def test_a_body_beyond_the_limit_is_refused_before_its_end(address, path, has_length):
    """A body larger than allowed gets 413 while it is still being sent, with and without a length."""
    head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    how = b"Content-Length: 1000000000\r\n\r\n" if has_length else b"Transfer-Encoding: chunked\r\n\r\n"
    piece = bytes(1 << 20) if has_length else b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with connected(address, head + how) as one:
        for _ in range(65):
            one.sendall(piece)
        one.settimeout(60)
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_two_lengths_are_refused(address):
    """A request whose length can be read in two ways, as smugglers send it, is refused."""
    for twofold in (
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked, x\r\n",
    ):
        with connected(address, b"POST /try HTTP/1.1\r\nHost: localhost\r\n" + twofold + b"\r\nhello") as one:
            one.settimeout(20)
            assert one.recv(1 << 16)[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 501"}
