"""Spans of real requests, received by a real OTLP collector: one tree each, true times, and nothing where it is off."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from penult.client import Client, NewItem, RequestFailed
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span in memory."""

    def __init__(self) -> None:
        self.spans = []
        self.server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.endpoint = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def Export(self, request, context):
        """Take what has ended."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id: str, count: int) -> list:
        """The spans of one trace, once there are so many."""
        deadline = time.monotonic() + 60  # they are sent every five seconds, or as often as the variable says
        while len(found := [span for span in self.spans if span.trace_id.hex() == trace_id]) < count:
            assert time.monotonic() < deadline, [span.name for span in found]
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def collector():
    """A collector."""
    made = Collector()
    yield made
    made.server.stop(None)


@pytest.fixture(scope="module")
def running(quick, start_server, collector, tmp_path_factory):
    """A server that traces what its callers trace, and nothing else."""
    return start_server(
        quick, "--trace", collector.endpoint, "--trace-share", "0", "--http",
        "--lookup", str(tmp_path_factory.mktemp("lookup")), env={"OTEL_BSP_SCHEDULE_DELAY": "200"},
    )  # fmt: skip


def test_a_request_is_one_tree(collector, running, encode):
    """Two photos with neighbours: the caller's span, the RPC's below it, the phases below that, each run's batch linked."""
    with Client(running.target) as client:
        client.put_items("seen", [NewItem("a", encode(20))])
    request = pb.ClassifyRequest(
        images=[pb.Image(encoded=encode(20)), pb.Image(encoded=encode(230))],
        neighbours=pb.NeighbourQuery(collection="seen", k=1),
    )
    with grpc.insecure_channel(running.target) as channel:
        call = penult_pb2_grpc.PenultServiceStub(channel).Classify.with_call(
            request, metadata=[("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01")], timeout=20
        )[1]
    spans = collector.of(TRACE_ID, 10)
    (root,) = [span for span in spans if span.name == "penult.v1.PenultService/Classify"]
    assert root.parent_span_id.hex() == SPAN_ID
    phases = [span for span in spans if span is not root]
    assert {span.parent_span_id for span in phases} == {root.span_id}
    assert Counter(span.name for span in phases) == {
        "decode": 2, "queue": 2, "inference": 2, "score": 1, "lookup": 1, "encode": 1,
    }  # fmt: skip
    for span in phases:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    assert abs(root.end_time_unix_nano / 1e9 - time.time()) < 60
    given = {attribute.key: attribute.value.string_value for attribute in root.attributes}
    assert given["penult.request_id"] == dict(call.trailing_metadata())["penult-request-id"]
    assert (given["penult.model"], given["rpc.grpc.status"]) == ("light", "OK")
    batches = {span.span_id: span for span in collector.spans if span.name == "batch"}
    for span in (span for span in phases if span.name == "inference"):
        batch = batches[span.links[0].span_id]
        assert root.span_id in {link.span_id for link in batch.links}
        assert (batch.start_time_unix_nano, batch.end_time_unix_nano) == (
            span.start_time_unix_nano, span.end_time_unix_nano,
        )  # fmt: skip
        assert batch.trace_id.hex() != TRACE_ID


def test_a_failure_is_marked(collector, running, encode):
    """A refused request has a span with an error status and its code; it came in over HTTP, with its own traceparent."""
    trace_id = "1" * 32
    answer = httpx.post(
        f"{running.http}/v2/models/absent/infer", json={"inputs": []},
        headers={"traceparent": f"00-{trace_id}-{SPAN_ID}-01"},
    )  # fmt: skip
    assert answer.status_code == 404
    (span,) = collector.of(trace_id, 1)
    assert (span.name, span.status.message) == ("http/ModelInfer", "NOT_FOUND")


def test_a_photo_on_the_status_page_is_traced(collector, running, encode):
    """The span of a photo dropped on the status page has the phases of a request below it."""
    trace_id = "2" * 32
    headers = {"content-type": "application/octet-stream", "traceparent": f"00-{trace_id}-{SPAN_ID}-01"}
    httpx.post(f"{running.http}/try", content=encode(20), headers=headers, timeout=20).raise_for_status()
    spans = {span.name: span for span in collector.of(trace_id, 5)}
    assert {"http/Try", "decode", "queue", "inference", "score"} <= set(spans)
    assert spans["decode"].parent_span_id == spans["http/Try"].span_id


def test_who_is_not_sampled_leaves_nothing(collector, running, encode):
    """A caller that says no, and one that says nothing at a share of 0, are not traced."""
    with Client(running.target) as client:
        for _ in range(20):
            client.classify([encode(20)])
    trace_id = "2" * 32
    httpx.post(
        f"{running.http}/v2/models/absent/infer", json={"inputs": []},
        headers={"traceparent": f"00-{trace_id}-{SPAN_ID}-01"},
    )  # fmt: skip
    collector.of(trace_id, 1)  # what came before it would have been sent with it
    assert "2" * 32 in {span.trace_id.hex() for span in collector.spans}
    assert {span.trace_id.hex() for span in collector.spans if span.name != "batch"} <= {TRACE_ID, "1" * 32, trace_id}


def test_what_is_left_is_sent_at_the_end(collector, quick, start_server, encode):
    """With a share of 1 every request is traced, and SIGTERM sends what has not been sent yet."""
    server = start_server(quick, "--trace", collector.endpoint)
    before = len(collector.spans)
    with Client(server.target) as client:
        client.classify([encode(20)])
    server.process.terminate()
    assert server.process.wait(120) == 0
    assert {span.name for span in collector.spans[before:]} >= {"decode", "inference", "batch"}


def test_a_collector_that_is_not_there_costs_no_request(quick, start_server, encode):
    """Without a collector at the address, requests are answered as ever, and the server ends in time."""
    server = start_server(quick, "--trace", "http://127.0.0.1:1")
    with Client(server.target) as client:
        for _ in range(5):
            assert client.classify([encode(20)]).results[0].label == "dark"
        with pytest.raises(RequestFailed):
            client.classify([encode(20)], model="absent")
    server.process.terminate()
    assert server.process.wait(60) == 0


def test_without_it_opentelemetry_is_not_loaded(run_python):
    """A server without --trace never imports OpenTelemetry."""
    code = "import sys, penult.service.process.server; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    assert run_python("-c", code).stdout.strip() == "[]"


def test_without_the_extra_the_line_says_what_to_install(run_python, quick, tmp_path):
    """--trace without the library: one line, exit code 1."""
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError('no', name='opentelemetry')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from penult.cli import main; "
        f"sys.exit(main(['serve', '--models', {str(quick)!r}, '--port', '0', '--metrics-port', '0', '--trace', 'http://x:1']))"
    )
    done = run_python("-c", code)
    assert done.returncode == 1
    assert "pip install '.[tracing]'" in done.stderr.splitlines()[-1]
