"""Requests that the queue has no place for are refused, by their headers if the client's last ones say enough."""

import math
import time

import grpc
import pytest
from prometheus_client import CollectorRegistry
from tests.attacks.http2 import CLASSIFY, END_STREAM, HEADERS, Connection, opening
from tests.fixtures.gates import eventually

from penult.service.errors import Overloaded
from penult.service.inference.admission import RequestAdmission
from penult.service.observability.metrics import Metrics
from penult.v1 import penult_pb2_grpc

IMAGES, BYTES = 100, 1 << 20


@pytest.fixture
def metrics():
    """Metrics of this test."""
    return Metrics(CollectorRegistry())


@pytest.fixture
def admission(metrics):
    """Admission of 100 images."""
    return RequestAdmission(IMAGES, BYTES, metrics)


def no_wait(images: int) -> float:
    """Say that images take no time."""
    return 0.0


def slow(images: int) -> float:
    """Say that an image takes a tenth of a second."""
    return images / 10


def admit(admission: RequestAdmission, client: str, images: int, expires: float = math.inf) -> None:
    """Admit a request of 100 bytes an image."""
    admission.admit(client, images, 100 * images, no_wait, expires)


def test_headers_are_enough_once_a_clients_requests_are_known(admission, metrics, samples):
    """A client whose requests have 16 images is refused early when 16 have no place; an unknown one is not."""
    admission.check_early("large", no_wait, math.inf)  # the queue is empty
    for _ in range(5):
        admit(admission, "large", 16)
    admission.check_early("unknown", no_wait, math.inf)
    with pytest.raises(Overloaded) as caught:
        admission.check_early("large", no_wait, math.inf)
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after_ms >= 50
    assert samples(metrics)[("penult_dropped_total", ("reason", "queue_full"))] == 16
    admission.release("large", 16, 1600)
    admission.check_early("large", no_wait, math.inf)


def test_the_smallest_of_the_last_requests_counts(admission):
    """A client that also asks for single images is not refused by its headers while one more has a place."""
    for images in (16, 16, 1, 16, 16):
        admit(admission, "mixed", images)
    admission.check_early("mixed", no_wait, math.inf)
    for _ in range(8):
        with pytest.raises(Overloaded):
            admit(admission, "mixed", 30)
    with pytest.raises(Overloaded):  # its last eight all had 30
        admission.check_early("mixed", no_wait, math.inf)


def test_a_deadline_that_cannot_be_met_is_refused_early(admission, metrics, samples):
    """With the time of what is ahead and of itself, a fifth more, the request would end after its deadline."""
    admit(admission, "a", 10)
    admit(admission, "a", 10)
    now = time.perf_counter()
    admission.check_early("a", slow, now + 60)
    with pytest.raises(Overloaded) as caught:
        admission.check_early("a", slow, now + 3.3)
    assert caught.value.reason == "QUEUE_TOO_LONG"
    assert samples(metrics)[("penult_dropped_total", ("reason", "too_late"))] == 10


def test_only_so_many_clients_are_remembered(admission):
    """Clients with new names each time take no more memory than the last thousand."""
    admit(admission, "first", 1)
    for number in range(3000):
        admit(admission, f"c{number}", 1)
        admission.release(f"c{number}", 1, 100)
    assert len(admission._sizes) == 1024


def test_a_body_is_not_read_without_a_place(quick, start_server, gate, connect, encode, request_of, samples):
    """When the queue is full, the status comes after the headers, while the client still holds its message back."""
    server = start_server(quick, "--queue-max-images", "6", "--threads", "1", env=gate.env)
    stub = penult_pb2_grpc.PenultServiceStub(connect(server.target))
    gate.shut()
    held = [stub.Classify.future(request_of(*[encode(10)] * 2)) for _ in range(3)]
    gate.wait_for(1)
    eventually(lambda: _code(stub, request_of(*[encode(10)] * 2)) is grpc.StatusCode.RESOURCE_EXHAUSTED)
    with Connection(server.target) as one:
        one.send(opening(1, CLASSIFY))
        ends = (HEADERS, END_STREAM)
        assert any((frame.kind, frame.flags & END_STREAM) == ends for frame in one.frames(10))
    gate.open()
    assert [len(call.result().results) for call in held] == [2, 2, 2]
    counted = ("penult_requests_total", ("code", "RESOURCE_EXHAUSTED"), ("method", "Classify"))
    assert sum(value for key, value in samples(server.http).items() if set(counted) <= set(key)) >= 2


def _code(stub: penult_pb2_grpc.PenultServiceStub, request: object) -> grpc.StatusCode | None:
    try:
        stub.Classify(request, timeout=0.5)
    except grpc.RpcError as error:
        return error.code()
    return None
