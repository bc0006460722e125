"""Before it is ready and while it leaves, the server says so, and nothing that it accepted is lost."""

import signal
import threading
import time
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.fixtures.gates import eventually

from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

SERVICE = "penult.v1.PenultService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def asking(connect):
    """Connect to a server: its methods and its health."""

    def open_stubs(target: str):
        channel = connect(target)
        return penult_pb2_grpc.PenultServiceStub(channel), health_pb2_grpc.HealthStub(channel)

    return open_stubs


@pytest.fixture
def watch(connect):
    """Watch a health name in the background: the list of (time, status) seen so far."""
    calls = []

    def start(target: str, name: str = "") -> list[tuple[float, int]]:
        seen: list[tuple[float, int]] = []
        calls.append(health_pb2_grpc.HealthStub(connect(target)).Watch(health_pb2.HealthCheckRequest(service=name)))

        def read(call) -> None:
            try:
                for answer in call:
                    seen.append((time.monotonic(), answer.status))
            except grpc.RpcError:
                pass  # the server has left, or the test is over

        threading.Thread(target=read, args=(calls[-1],), daemon=True).start()
        eventually(lambda: seen)
        return seen

    yield start
    for call in calls:
        call.cancel()


def status(health, name: str = "") -> int:
    """Ask for a health status, waiting for the server to listen."""
    request = health_pb2.HealthCheckRequest(service=name)
    return health.Check(request, wait_for_ready=True, timeout=60).status


def test_before_loading_it_is_alive_and_not_ready(quick, launch, gate, asking, failure, request_of, encode, watch):
    """While models load: live, NOT_SERVING, 503, and requests UNAVAILABLE with a hint; ready afterwards."""
    server = launch(quick, env=gate.loading_too().shut().env)
    stub, health = asking(server.target)
    assert [status(health, name) for name in ("live", "", SERVICE)] == [SERVING, NOT_SERVING, NOT_SERVING]
    error = failure(lambda: stub.Classify(request_of(encode(10))))
    trailing = dict(error.trailing_metadata())
    assert (error.code(), trailing["penult-reason"]) == (grpc.StatusCode.UNAVAILABLE, "LOADING")
    assert int(trailing["grpc-retry-pushback-ms"]) > 0
    assert [httpx.get(f"{server.http}/{path}").status_code for path in ("livez", "readyz")] == [200, 503]
    seen = watch(server.target)
    gate.open()
    assert server.process.stdout.readline().startswith("ready ")
    eventually(lambda: [s for _, s in seen] == [NOT_SERVING, SERVING])
    assert httpx.get(f"{server.http}/readyz").status_code == 200
    assert stub.Classify(request_of(encode(10))).results[0].classification.label == "dark"


def _signals(pid: int, kind: str) -> int:
    """Return which signals a process catches (SigCgt) or ignores (SigIgn), a bit each."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1], 16)


def test_a_signal_while_starting_ends_it(quick, launch):
    """SIGTERM while Python still imports ends the server with exit code 0: the first process of a container, which
    gets no signal that it did not ask for, must not wait for its runtime's patience. SIGHUP ends nothing.
    """  # fmt: skip
    server = launch(quick)
    eventually(lambda: _signals(server.process.pid, "SigCgt") >> (signal.SIGTERM - 1) & 1)
    eventually(lambda: _signals(server.process.pid, "SigIgn") >> (signal.SIGHUP - 1) & 1)
    server.process.send_signal(signal.SIGHUP)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert "ready" not in server.process.stdout.read()


def test_a_signal_while_loading_ends_it(quick, launch, gate, asking):
    """SIGTERM before the models are loaded ends the server with exit code 0, without it becoming ready."""
    server = launch(quick, env=gate.loading_too().shut().env)
    assert status(asking(server.target)[1]) == NOT_SERVING
    gate.wait_for(1)
    server.process.send_signal(signal.SIGTERM)
    gate.open()
    assert server.process.wait(60) == 0
    assert server.process.stdout.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_draining_serves_on_while_not_ready(quick, start_server, asking, request_of, encode, watch, number):
    """A signal turns readiness off at once; for --drain-lead seconds requests are answered and liveness stays well."""
    server = start_server(quick, "--drain-lead", "60")
    stub, health = asking(server.target)
    seen = watch(server.target, SERVICE)
    server.process.send_signal(number)
    eventually(lambda: len(seen) == 2)
    assert seen[-1][1] == NOT_SERVING
    for _ in range(3):
        assert [status(health, name) for name in ("", SERVICE, "live")] == [NOT_SERVING, NOT_SERVING, SERVING]
        assert [httpx.get(f"{server.http}/{path}").status_code for path in ("readyz", "livez")] == [503, 200]
        assert stub.Classify(request_of(encode(230))).results[0].classification.label == "bright"
    assert server.process.poll() is None
    assert len(seen) == 2


def test_an_idle_server_leaves_at_once(quick, start_server):
    """Without a lead and without work, SIGTERM ends the server within a few seconds, with exit code 0."""
    server = start_server(quick)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert server.log.read_text().splitlines()[-1].endswith("stopped")


def test_a_health_watch_does_not_hold_up_the_exit(quick, start_server, watch):
    """A client that watches health for ever is no accepted work: the server leaves without using up its grace."""
    server = start_server(quick, "--grace", "3600")
    watch(server.target)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_accepted_work_is_finished(quick, start_server, gate, asking, request_of, encode, samples):
    """Requests that are queued and running at SIGTERM are all answered, then the exit code is 0."""
    server = start_server(quick, "--batch-max-images", "2", "--threads", "1", env=gate.env)
    stub, _ = asking(server.target)
    gate.shut()
    calls = [stub.Classify.future(request_of(encode(10), encode(230)), timeout=120) for _ in range(4)]
    gate.wait_for(1)
    eventually(lambda: samples(server.http)["penult_queue_depth",] >= 6)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: "draining" in server.log.read_text())
    gate.open()
    for call in calls:
        assert [r.classification.label for r in call.result().results] == ["dark", "bright"]
    assert server.process.wait(60) == 0


def test_grace_bounds_the_wait(quick, start_server, gate, asking, request_of, encode):
    """Work that would outlast --grace is given up with UNAVAILABLE, and the exit code is still 0."""
    server = start_server(quick, "--batch-max-images", "1", "--threads", "1", "--grace", "0.5", env=gate.env)
    stub, _ = asking(server.target)
    gate.shut()
    call = stub.Classify.future(request_of(*[encode(10)] * 60), timeout=120)
    gate.wait_for(1)
    server.process.send_signal(signal.SIGTERM)
    assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
    gate.open()  # what runs cannot be stopped; the rest is not begun
    assert server.process.wait(60) == 0
    assert gate.arrived < 60


def test_a_second_signal_leaves_at_once(quick, start_server):
    """Who asks twice does not wait for the lead: the process ends at once, with exit code 1."""
    server = start_server(quick, "--drain-lead", "60")
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: "draining" in server.log.read_text())
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 1
    assert "second signal" in server.log.read_text()


def test_under_load_no_accepted_request_is_lost(quick, start_server, asking, request_of, encode, ask_until_refused):
    """Clients that ask without pause through SIGTERM see only OK until the server stops accepting, then UNAVAILABLE."""
    server, request = start_server(quick, "--drain-lead", "1"), request_of(encode(230), encode(20))
    asked = []

    def asker():
        stub, _ = asking(server.target)

        def ask() -> grpc.StatusCode:
            try:
                labels = [r.classification.label for r in stub.Classify(request, timeout=60).results]
            except grpc.RpcError as error:
                return error.code()
            assert labels == ["bright", "dark"]
            return grpc.StatusCode.OK

        return ask

    def stop() -> None:
        asked.append(time.monotonic())
        server.process.send_signal(signal.SIGTERM)

    outcomes = ask_until_refused(asker, stop)
    assert server.process.wait(60) == 0
    assert {code for _, code in outcomes} == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert min(when for when, code in outcomes if code is not grpc.StatusCode.OK) - asked[0] > 0.9
    assert any(when > asked[0] for when, code in outcomes if code is grpc.StatusCode.OK)


def test_a_stream_under_way_is_finished(quick, start_server, gate, asking, request_of, encode):
    """A stream whose requests were read before SIGTERM gets its answers, and ends with OK."""
    server = start_server(quick, "--threads", "1", env=gate.env)
    stub, _ = asking(server.target)
    answers = stub.StreamClassify(iter([request_of(encode(level)) for level in (10, 230, 10)]), timeout=120)
    next(answers)
    server.process.send_signal(signal.SIGTERM)
    assert [answer.results[0].classification.label for answer in answers] == ["bright", "dark"]
    assert answers.code() is grpc.StatusCode.OK
    assert server.process.wait(60) == 0


def test_after_the_end_nobody_answers(quick, start_server, asking, failure, request_of, encode):
    """Once the process is gone, a new request is UNAVAILABLE."""
    server = start_server(quick)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    stub, _ = asking(server.target)
    assert failure(lambda: stub.ListModels(pb.ListModelsRequest())).code() is grpc.StatusCode.UNAVAILABLE
