"""Attacks on HTTP/2 itself, from raw sockets: the others are served, and nothing of the attack stays.

Run with -s to see the figures of each.
"""

import resource
import statistics

import grpc
import httpx
import pytest
from tests.attacks import http2
from tests.attacks.assaults import ASSAULTS, rapid_reset
from tests.attacks.bystander import Bystander, Vitals, health, peak_rss_mib, vitals, wait_for
from tests.attacks.http2 import Connection

from penult.v1 import penult_pb2 as pb

SERVING = 1
# What an attack may take while it lasts; glibc is told to keep freed blocks, so it need not fall again.
MAX_MORE_MIB = 400
# gRPC and the event loop add a few of their own as they need them.
MAX_THREADS, MAX_DESCRIPTORS = 6, 3
# Where more than a thousand calls wait to be accepted, gRPC drops some at random, with CANCELLED: penult's clients, as this
# one is, try those again.
ENDS = {"OK"}


@pytest.fixture(scope="module")
def attacked(light, start_server, tmp_path_factory):
    """A server of the quick model, attacked by test after test."""
    return start_server(light, "--lookup", str(tmp_path_factory.mktemp("lookup")))


@pytest.fixture(scope="module")
def message(photo) -> bytes:
    """A whole request of one photo."""
    return pb.ClassifyRequest(images=[pb.Image(encoded=photo)]).SerializeToString()


def is_back(now: Vitals, before: Vitals) -> bool:
    """Say whether threads and descriptors are what they were, give or take what the server itself uses."""
    return now.threads <= before.threads + MAX_THREADS and now.descriptors <= before.descriptors + MAX_DESCRIPTORS


@pytest.mark.parametrize("assault", ASSAULTS, ids=lambda assault: assault.__name__)
def test_others_are_served_and_nothing_stays(attacked, photo, message, assault):
    """While it lasts another client's requests are all answered; then the same process is healthy, and let go of all."""
    pid, target = attacked.process.pid, attacked.target
    before = vitals(pid)
    with peak_rss_mib(pid) as peak, Bystander(target, photo) as other:
        other.wait_for(10)
        alone_ms = statistics.median(other.latencies_ms)
        held = assault(target, message)
        during = vitals(pid)
        other.wait_for(30, 120)
    for connection in held:
        connection.close()
    print(f"{assault.__name__}: {len(held)} connections, {dict(other.codes)}, median {alone_ms:.1f} -> "
          f"{other.percentile_ms(0.5):.1f} ms, p99 {other.percentile_ms(0.99):.0f} ms, RSS {before.rss_mib:.0f} -> "
          f"{peak[0]:.0f} MiB, threads {before.threads} -> {during.threads}, "
          f"descriptors {before.descriptors} -> {during.descriptors}")  # fmt: skip
    assert set(other.codes) <= ENDS
    assert other.codes["OK"] >= 30
    assert attacked.process.poll() is None
    assert health(target) == SERVING
    wait_for(lambda: is_back(vitals(pid), before))
    assert peak[0] - before.rss_mib < MAX_MORE_MIB


def test_compressed_messages_are_refused(attacked, message):
    """A client that compresses is told so at once, by gRPC itself: what unfolds cannot be bounded beforehand."""
    with grpc.insecure_channel(attacked.target) as channel:
        call = channel.unary_unary(http2.CLASSIFY.decode() if isinstance(http2.CLASSIFY, bytes) else http2.CLASSIFY)
        assert call(message, timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            call(message, compression=grpc.Compression.Gzip, timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_memory_of_attacks_does_not_add_up(light, start_server, photo, message):
    """The same attack again and again takes no more memory than it took at first."""
    attacked = start_server(light, "--lookup", "off")
    pid, kept_mib = attacked.process.pid, []
    for _ in range(6):
        with Bystander(attacked.target, photo) as other:
            held = rapid_reset(attacked.target, message)
            other.wait_for(20)
        held[0].close()
        kept_mib.append(vitals(pid).rss_mib)
    print("RSS after each rapid reset, MiB:", [round(each) for each in kept_mib])
    assert max(kept_mib[3:]) < max(kept_mib[:3]) + 48


def test_descriptors_that_run_out(light, start_server, photo):
    """Where connections use up all descriptors, clients that are there are served on; new ones again when those go."""
    server = start_server(light, "--lookup", "off")
    pid = server.process.pid
    with Bystander(server.target, photo) as other:
        other.wait_for(10)
        most = vitals(pid).descriptors + 20
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        held = [
            Connection(where, b"") for where in (server.target, server.http.removeprefix("http://")) for _ in range(20)
        ]
        wait_for(lambda: vitals(pid).descriptors >= most - 1)
        other.wait_for(30)
        for connection in held:
            connection.close()
        wait_for(lambda: vitals(pid).descriptors < most - 10)
    assert set(other.codes) == {"OK"}
    assert health(server.target) == SERVING
    assert httpx.get(f"{server.http}/livez", timeout=20).status_code == 200
