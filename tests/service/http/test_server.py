"""The metrics port: probes that tell the truth, and numbers that count right and that no client can make grow."""

import asyncio
import re
import socket
import threading
import time
import uuid

import grpc
import httpx
import pytest
from prometheus_client import CollectorRegistry

from penult.service.errors import ConfigError
from penult.service.http.server import HttpServer
from penult.service.observability.metrics import Metrics
from penult.v1 import penult_pb2 as pb


def _key(name: str, **labels: str) -> tuple:
    return (name, *sorted(labels.items()))


@pytest.fixture
def served():
    """Run a blocking function against an HttpServer, on a thread: served(act, is_ready); act gets the address."""

    def start(act, is_ready=lambda: True):
        async def whole():
            http = HttpServer("127.0.0.1", 0, Metrics(CollectorRegistry()), is_ready)
            await http.start()
            try:
                return await asyncio.to_thread(act, f"http://127.0.0.1:{http.port}")
            finally:
                await http.stop()

        return asyncio.run(whole())

    return start


def test_the_probes_of_a_ready_server(server):
    """A server that serves is alive and ready."""
    for path in ("livez", "readyz"):
        assert httpx.get(f"{server.http}/{path}").status_code == 200


def test_other_paths_are_not_found(server):
    """The metrics port has its pages, and nothing else."""
    for path in ("/metrics/x", "/docs", "/../etc/passwd"):
        assert httpx.get(f"{server.http}{path}").status_code == 404
    assert httpx.post(f"{server.http}/metrics").status_code == 405


def test_readiness_is_asked_anew_each_time(served):
    """/readyz follows readiness both ways, with 503 for no; /livez does not care."""
    states = iter([False, True, False])

    def act(http):
        ready = [httpx.get(f"{http}/readyz").status_code for _ in range(3)]
        return ready, httpx.get(f"{http}/livez").status_code

    assert served(act, lambda: next(states)) == ([503, 200, 503], 200)


def test_a_hanging_loop_is_not_alive():
    """While the event loop hangs, /livez does not answer: a probe must find a stuck process."""

    async def scenario():
        http = HttpServer("127.0.0.1", 0, Metrics(CollectorRegistry()), lambda: True)
        await http.start()
        found = []

        def probe(timeout_s: float) -> None:
            try:
                found.append(httpx.get(f"http://127.0.0.1:{http.port}/livez", timeout=timeout_s).status_code)
            except httpx.TimeoutException:
                found.append("timeout")

        thread = threading.Thread(target=probe, args=[0.2])
        thread.start()
        thread.join()  # the loop hangs here, for as long as the probe waits
        await asyncio.to_thread(probe, 10)
        await http.stop()
        return found

    assert asyncio.run(scenario()) == ["timeout", 200]


def test_a_port_in_use_is_one_line():
    """A port that is taken gives ConfigError that names it and the flag."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 .*--metrics-port") as caught:
            HttpServer("127.0.0.1", port, Metrics(CollectorRegistry()), lambda: True)
    assert "\n" not in caught.value.message


def test_the_scraper_chooses_the_format(server):
    """/metrics speaks Prometheus' text format, or OpenMetrics where that is accepted."""
    plain = httpx.get(f"{server.http}/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    other = httpx.get(f"{server.http}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert other.headers["content-type"].startswith("application/openmetrics-text")


def test_the_model_being_served_is_told(server, samples, bundle):
    """penult_model_info is 1 for the model that is served, with its version, fingerprint and provider."""
    key = _key(
        "penult_model_info", model="digits", version="1", fingerprint=bundle.manifest.fingerprint,
        architecture=bundle.manifest.architecture, provider="CPUExecutionProvider", signed="no",
    )  # fmt: skip
    found = samples(server.http)
    assert [name for name in found if name[0] == "penult_model_info"] == [key]
    assert found[key] == 1
    assert found[_key("penult_reloads_total", outcome="loaded")] == 1


def test_requests_and_photos_are_counted(server, samples, stub, photos, request_of):
    """Three requests with seven photos, one of them bad, move each metric by exactly that much."""
    before = samples(server.http)
    stub.Classify(request_of(*photos[:4]))
    stub.Classify(request_of(photos[0], b"text"))
    stub.Describe(pb.DescribeRequest(images=[pb.Image(encoded=photos[0])]))
    with pytest.raises(grpc.RpcError):
        stub.Classify(request_of())
    after = samples(server.http)

    def rise(name: str, **labels: str) -> float:
        return after[_key(name, **labels)] - before.get(_key(name, **labels), 0)

    answered = {"model": "digits", "version": "1", "code": "OK"}
    assert rise("penult_requests_total", method="Classify", **answered) == 2
    assert rise("penult_requests_total", method="Describe", **answered) == 1
    refused = {"model": "", "version": "", "code": "INVALID_ARGUMENT"}
    assert rise("penult_requests_total", method="Classify", **refused) == 1
    assert rise("penult_request_seconds_count", method="Classify") == 3
    assert rise("penult_batch_size_sum") == 6
    assert 3 <= rise("penult_batch_size_count") <= 6
    assert rise("penult_phase_seconds_count", phase="decode") == 6
    assert rise("penult_phase_seconds_count", phase="queue") == 6
    assert rise("penult_phase_seconds_count", phase="inference") == rise("penult_batch_size_count")
    assert rise("penult_phase_seconds_count", phase="score") == 3
    assert rise("penult_dropped_total", reason="bad_image") == 1
    assert after[_key("penult_queue_depth")] == 0


def test_clients_cannot_make_labels_grow(server, samples, stub, connect, photos):
    """Invented model names, versions, scorers and methods leave no new series behind after the first of a kind."""
    channel = connect(server.target)

    def provoke() -> None:
        name = uuid.uuid4().hex
        for request in (
            pb.ClassifyRequest(model={"name": name}, images=[pb.Image(encoded=photos[0])]),
            pb.ClassifyRequest(model={"version": uuid.uuid4().int % 10**6 + 2}, images=[pb.Image(encoded=photos[0])]),
            pb.ClassifyRequest(scorer=uuid.uuid4().int % 10**6 + 9, images=[pb.Image(encoded=photos[0])]),
        ):
            with pytest.raises(grpc.RpcError):
                stub.Classify(request)
        for method in (f"/penult.v1.PenultService/{name}", f"/{name}/Classify"):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(method)(b"")

    provoke()
    before = set(samples(server.http))
    for _ in range(20):
        provoke()
    after = samples(server.http)
    assert set(after) == before
    assert not [key for key in after if re.search("[0-9a-f]{32}", str(key)) and key[0] != "penult_model_info"]


@pytest.mark.system
def test_answers_do_not_wait_for_acknowledgements(server):
    """On a connection that stays open no answer waits the 40 ms that Nagle's algorithm would add."""
    with httpx.Client(base_url=server.http) as client:
        client.get("/metrics")
        started = time.perf_counter()
        for _ in range(50):
            client.get("/metrics")
        assert (time.perf_counter() - started) / 50 < 0.03
