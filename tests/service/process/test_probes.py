"""What Kubernetes asks, in every form, through a server's whole life; and connections that are kept, and let go."""

import signal
import threading
from collections.abc import Callable

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.fixtures.gates import eventually

from penult.client import Client
from penult.client.channel_options import options
from penult.oip import grpc_service_pb2 as oip_pb
from penult.oip import grpc_service_pb2_grpc
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

READINESS = ("", "penult.v1.PenultService", "inference.GRPCInferenceService")


@pytest.fixture
def probes(connect):
    """All probes of a server, by kind: probes(target, http) returns (liveness, readiness), each {name: ask}."""

    def make(target: str, http: str) -> tuple[dict[str, Callable[[], bool]], dict[str, Callable[[], bool]]]:
        channel = connect(target)
        health, oip = health_pb2_grpc.HealthStub(channel), grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def serving(name: str) -> Callable[[], bool]:
            request = health_pb2.HealthCheckRequest(service=name)
            return lambda: health.Check(request, wait_for_ready=True, timeout=60).status == 1

        def ok(path: str) -> Callable[[], bool]:
            return lambda: httpx.get(f"{http}{path}").status_code == 200

        liveness = {
            "health live": serving("live"), "/livez": ok("/livez"), "/v2/health/live": ok("/v2/health/live"),
            "ServerLive": lambda: oip.ServerLive(oip_pb.ServerLiveRequest()).live,
        }  # fmt: skip
        readiness = {f"health {name!r}": serving(name) for name in READINESS}
        readiness |= {path: ok(path) for path in ("/readyz", "/v2/health/ready", "/v2/models/light/ready")}
        readiness["ServerReady"] = lambda: oip.ServerReady(oip_pb.ServerReadyRequest()).ready
        readiness["ModelReady"] = lambda: oip.ModelReady(oip_pb.ModelReadyRequest(name="light")).ready
        return liveness, readiness

    return make


def test_all_probes_agree_from_start_to_end(quick, launch, gate, probes, connect, request_of, encode):
    """Loading: alive, not ready. Then both. Draining, and finishing what was accepted: alive, not ready, to the end."""
    server = launch(quick, "--http", "--drain-lead", "1", "--grace", "600", env=gate.loading_too().shut().env)
    liveness, readiness = probes(server.target, server.http)

    def told() -> tuple[set[str], set[str]]:
        return {name for name, ask in liveness.items() if ask()}, {name for name, ask in readiness.items() if ask()}

    gate.wait_for(1)
    assert told() == (set(liveness), set())
    gate.open()
    assert server.process.stdout.readline().startswith("ready ")
    assert told() == (set(liveness), set(readiness))
    gate.shut()
    stub, arrived = penult_pb2_grpc.PenultServiceStub(connect(server.target)), gate.arrived
    work = stub.Classify.future(request_of(encode(230), encode(20)), timeout=600)
    gate.wait_for(arrived + 1)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: httpx.get(f"{server.http}/readyz").status_code == 503)
    assert told() == (set(liveness), set())
    absent = f"{server.http}/v2/models/absent/infer"
    eventually(lambda: httpx.post(absent, json={"inputs": []}).status_code == 503)  # the lead is over, the work is not
    assert not work.done()
    assert told() == (set(liveness), set())
    gate.open()
    assert len(work.result().results) == 2
    assert server.process.wait(60) == 0


class Connectivity:
    """What a channel's connection goes through."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.states: list[str] = []
        channel.subscribe(lambda state: self.states.append(state.name), try_to_connect=True)


@pytest.mark.system
def test_our_clients_pings_are_tolerated_and_a_flood_is_not(quick, start_server, connect):
    """35 s without a request: the options of our clients, pinging every 10 s, keep their connection; a ping every
    second, which no client of ours sends, is sent away.
    """  # fmt: skip
    target = start_server(quick).target
    ours = dict(options(4)) | {"grpc.keepalive_time_ms": 10_000}
    assert dict(options(4))["grpc.keepalive_time_ms"] >= ours["grpc.keepalive_time_ms"]
    flood = ours | {"grpc.keepalive_time_ms": 1000, "grpc.http2.min_time_between_pings_ms": 1000}
    calm, restless = Connectivity(connect(target, **ours)), Connectivity(connect(target, **flood))
    threading.Event().wait(35)
    assert calm.states[-1] == "READY"
    assert calm.states.count("READY") == 1
    assert restless.states.count("READY") > 1 or restless.states[-1] != "READY"


def test_connections_end_in_time_and_no_request_with_them(quick, start_server, connect):
    """With --connection-age-s 1 a connection is renewed every second or so, under clients that never pause: no error."""
    target = start_server(quick, "--connection-age-s", "1").target
    channel = connect(target)
    stub, seen, failures, stop = (
        penult_pb2_grpc.PenultServiceStub(channel),
        Connectivity(channel),
        [],
        threading.Event(),
    )

    def ask(classify: Callable[[], object]) -> None:
        while not stop.is_set():
            try:
                classify()
            except Exception as error:
                failures.append(error)

    with Client(target, retries=0) as client:
        acts = [lambda: stub.ListModels(pb.ListModelsRequest()), client.list_models]
        threads = [threading.Thread(target=ask, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        eventually(lambda: seen.states.count("READY") >= 3 or failures)
        stop.set()
        for thread in threads:
            thread.join(120)
    assert failures == []


@pytest.mark.parametrize("age", ["0", "300"])
def test_connections_are_kept_as_long_as_that(quick, start_server, connect, age):
    """With the default, and with 0 for ever, requests that come one after the other share a connection."""
    channel = connect(start_server(quick, "--connection-age-s", age).target)
    seen, stub = Connectivity(channel), penult_pb2_grpc.PenultServiceStub(channel)
    for _ in range(20):
        stub.ListModels(pb.ListModelsRequest(), wait_for_ready=True, timeout=60)
    assert seen.states[-1] == "READY"
    assert seen.states.count("READY") == 1
