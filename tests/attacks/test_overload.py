"""More than the server can do, clients that are slow or die, a stop in the middle of it, a clock that jumps.

What is measured in seconds is bench/overload.py's (`make overload`).
"""

import contextlib
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

import grpc
import httpx
import pytest
from tests.attacks.assaults import many_slow_bodies, streams_never_read
from tests.attacks.bystander import Bystander, peak_rss_mib, vitals, wait_for
from tests.attacks.http2 import CLASSIFY, END_STREAM, Connection, data, message, opening
from tests.attacks.light_model import publish_light

from penult.client import Client, RequestFailed
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

QUEUE_IMAGES = 16
# One client alone may have eight ninths of the queue (penult.service.inference.admission).
ONE_CLIENT_IMAGES = QUEUE_IMAGES * 8 // 9
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """A repository whose model takes some hundredths of a second per photo."""
    root = tmp_path_factory.mktemp("slow")
    publish_light(root, work_side=1400)
    return root


@pytest.fixture(scope="module")
def start_slow(slow, start_server):
    """Start a server of the slow model on one thread, with a short queue."""

    def start(*options: str, **more: object):
        limits = ("--threads", "1", "--queue-max-images", str(QUEUE_IMAGES), "--lookup", "off")
        return start_server(slow, *limits, *options, **more)

    return start


@pytest.fixture(scope="module")
def server(start_slow):
    """One for the tests that leave it running."""
    return start_slow()


@pytest.fixture
def ask(photo) -> Callable[..., list[grpc.Future]]:
    """Send requests of one photo at once, ask(target, count), and return the calls."""
    with contextlib.ExitStack() as channels:

        def send(target: str, count: int) -> list[grpc.Future]:
            stub = penult_pb2_grpc.PenultServiceStub(channels.enter_context(grpc.insecure_channel(target)))
            request = pb.ClassifyRequest(images=[pb.Image(encoded=photo)])
            return [stub.Classify.future(request, timeout=120) for _ in range(count)]

        yield send


def ends(calls: list[grpc.Future]) -> Counter[str]:
    """Wait for calls and count their codes."""
    return Counter(call.code().name for call in calls)


def test_what_has_no_room_is_refused(server, ask):
    """Of 300 requests at once those fill the queue that have room; the others are refused, and nothing of them stays."""
    pid = server.process.pid
    assert ends(ask(server.target, 1)) == {"OK": 1}
    before = vitals(pid)
    with peak_rss_mib(pid) as peak:
        codes = ends(ask(server.target, 300))
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes["OK"] >= ONE_CLIENT_IMAGES
    assert ends(ask(server.target, ONE_CLIENT_IMAGES)) == {"OK": ONE_CLIENT_IMAGES}
    assert peak[0] - before.rss_mib < QUEUE_IMAGES * 8 + 100
    wait_for(lambda: vitals(pid).descriptors <= before.descriptors + 3)


def test_slow_and_dying_clients_take_nothing_from_others(server, photo):
    """400 bodies that never end, streams that are never read and clients that die: others are all answered."""
    request = pb.ClassifyRequest(images=[pb.Image(encoded=photo)]).SerializeToString()
    stop = threading.Event()

    def die() -> None:
        """Ask something whole and be gone before the answer."""
        while not stop.wait(0.2):
            with Connection(server.target) as one:
                one.send(opening(1, CLASSIFY) + data(1, message(request), END_STREAM))

    held, dying = many_slow_bodies(server.target, request), threading.Thread(target=die)
    dying.start()
    with Bystander(server.target, photo, retries=0) as beside:
        beside.wait_for(20, 300)
    stop.set()
    dying.join()
    for connection in held:
        connection.close()
    assert set(beside.codes) == {"OK"}


def test_streams_that_nobody_reads_do_not_fill_the_queue(server, photo):
    """A hundred streams whose answers have nowhere to go leave room for others once their windows are full."""
    request = pb.ClassifyRequest(images=[pb.Image(encoded=photo)]).SerializeToString()
    held = streams_never_read(server.target, request)
    with Bystander(server.target, photo, timeout_s=60) as beside:
        beside.wait_for(10, 300)
    for connection in held:
        connection.close()
    assert beside.codes["OK"] >= 8


def test_a_server_that_was_stopped_goes_on(server, ask):
    """SIGSTOP, as a machine that was suspended: what was asked meanwhile is answered afterwards."""
    assert ends(ask(server.target, 1)) == {"OK": 1}
    server.process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{server.process.pid}/stat")
    wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    calls = ask(server.target, 5)
    with pytest.raises(grpc.FutureTimeoutError):
        calls[0].result(0.5)
    server.process.send_signal(signal.SIGCONT)
    assert ends(calls) == {"OK": 5}


def test_sigterm_in_the_middle_of_an_overload(start_slow, ask):
    """Whatever the server's log counts as answered has reached its client; nothing ends as CANCELLED or INTERNAL."""
    server = start_slow("--drain-lead", "0.5", "--access-log", "1")
    calls = ask(server.target, 200)
    wait_for(lambda: "RESOURCE_EXHAUSTED" in server.log.read_text())
    server.process.send_signal(signal.SIGTERM)
    calls += ask(server.target, 50)
    codes = ends(calls)
    assert server.process.wait(30) == 0
    told = Counter(re.findall(r"Classify.* code=(\w+)", server.log.read_text()))
    assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert codes["OK"] == told["OK"] >= ONE_CLIENT_IMAGES


def test_a_second_sigterm_in_the_middle_of_work(start_slow, photo):
    """Who asks twice while requests wait does not wait for them: exit code 1 at once, and clients are UNAVAILABLE."""
    server = start_slow("--drain-lead", "0", "--grace", "60")
    with grpc.insecure_channel(server.target) as channel:
        stub = penult_pb2_grpc.PenultServiceStub(channel)
        request = pb.ClassifyRequest(images=[pb.Image(encoded=photo)] * 200)
        call = stub.Classify.future(request, timeout=120)
        with Client(server.target) as client:
            wait_for(lambda: client.get_model())
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log.read_text())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1
        assert call.exception(30).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.skipif(not LIBRARIES, reason="needs libfaketime (Debian: apt-get install faketime)")
def test_a_clock_that_jumps(light, start_server, photo, tmp_path):
    """An hour forward or back costs no request: none times out early, deadlines still end those that are too slow."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = {
        "LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    server = start_server(light, "--lookup", "off", env=fake)
    with Bystander(server.target, photo, retries=0, timeout_s=20) as other:
        other.wait_for(10)
        for seconds in (3600, -3600):
            clock.with_suffix(".new").write_text(f"{seconds:+d}")
            clock.with_suffix(".new").replace(clock)
            wait_for(lambda seconds=seconds: abs(_ahead_s(server.http) - seconds) < 600)
            other.wait_for(20)
    assert set(other.codes) == {"OK"}
    with Client(server.target, timeout_s=0.001, retries=0) as client, pytest.raises(RequestFailed) as caught:
        client.classify([photo] * 200)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert httpx.get(f"{server.http}/status.json", timeout=20).status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def _ahead_s(http: str) -> float:
    """Return how far a server's clock is ahead of ours."""
    told = httpx.get(f"{http}/livez", timeout=20).headers["date"]
    return parsedate_to_datetime(told).timestamp() - time.time()
