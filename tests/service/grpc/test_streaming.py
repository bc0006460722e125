"""StreamClassify and StreamDescribe: one answer per request, in order, until a request fails or the client leaves."""

import queue
import time

import grpc
import numpy as np
import pytest
from tests.fixtures.gates import eventually

from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

REQUEST_LABELS = (("code", "CANCELLED"), ("method", "StreamClassify"), ("model", ""))


def _images(*encoded: bytes) -> list[pb.Image]:
    return [pb.Image(encoded=data) for data in encoded]


def test_answers_come_in_the_order_of_requests(stub, photos, request_of):
    """Fifty requests of different sizes give fifty answers in order, the same as single requests would."""
    sizes = [1 + n % 3 for n in range(50)]
    starts = np.cumsum([0, *sizes[:-1]])
    requests = [request_of(*photos[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
    found = [[r.classification.label for r in answer.results] for answer in stub.StreamClassify(iter(requests))]
    expected = [[r.classification.label for r in stub.Classify(request).results] for request in requests]
    assert found == expected


def test_descriptors_come_in_order(stub, photos):
    """StreamDescribe answers each request with the descriptors that Describe gives."""
    requests = [pb.DescribeRequest(images=_images(photo)) for photo in photos[:20]]
    found = [answer.results[0].descriptor_vector.values for answer in stub.StreamDescribe(iter(requests))]
    expected = [stub.Describe(request).results[0].descriptor_vector.values for request in requests]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["StreamClassify", "StreamDescribe"])
def test_a_client_may_wait_for_each_answer(stub, photos, method):
    """A client that sends the next request only after the last answer is served: nothing waits for a second request."""
    make = {"StreamClassify": pb.ClassifyRequest, "StreamDescribe": pb.DescribeRequest}[method]
    sending: queue.Queue = queue.Queue()
    answers = getattr(stub, method)(iter(sending.get, None), timeout=120)
    for photo in photos[:5]:
        sending.put(make(images=_images(photo)))
        assert len(next(answers).results) == 1
    sending.put(None)
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_a_slow_reader_is_served_to_the_end(stub, photos, request_of):
    """A client that reads late, while many requests are under way, gets every answer in order."""
    answers = stub.StreamClassify(request_of(photo) for photo in photos)
    time.sleep(0.3)
    labels = [answer.results[0].classification.label for answer in answers]
    assert labels == [r.classification.label for r in stub.Classify(request_of(*photos)).results]


def test_an_empty_stream_is_well(stub):
    """A stream without any request ends with OK."""
    answers = stub.StreamClassify(iter(()))
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_a_bad_image_does_not_end_the_stream(stub, photos, request_of):
    """A photo that cannot be read is an error of its own in its answer; the stream goes on."""
    answers = list(stub.StreamClassify(iter([request_of(b"text"), request_of(photos[0])])))
    assert answers[0].results[0].error.reason == "IMAGE_UNKNOWN_FORMAT"
    assert answers[1].results[0].classification.label


@pytest.mark.parametrize("method", ["StreamClassify", "StreamDescribe"])
def test_a_broken_request_ends_the_stream_with_its_status(stub, photos, method):
    """Requests before a broken one are answered; then the stream has that one's status, reason and id."""
    make = {"StreamClassify": pb.ClassifyRequest, "StreamDescribe": pb.DescribeRequest}[method]
    good, broken = make(images=_images(photos[0])), make(model={"name": "absent"}, images=_images(photos[0]))
    answers = getattr(stub, method)(iter([good, good, broken, good, good]))
    assert [len(next(answers).results) for _ in range(2)] == [1, 1]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    trailing = dict(caught.value.trailing_metadata())
    assert trailing["penult-reason"] == "MODEL_UNKNOWN"
    assert len(trailing["penult-request-id"]) == 16


def test_bytes_that_are_no_message_end_the_stream(server, connect, photos, request_of):
    """Broken protobuf in a stream is INVALID_ARGUMENT after the answers before it, never INTERNAL."""
    method = connect(server.target).stream_stream("/penult.v1.PenultService/StreamClassify")
    answers = method(iter([request_of(photos[0]).SerializeToString(), b"\xff\xff\xff"]))
    assert pb.ClassifyResponse.FromString(next(answers)).results[0].classification.label
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata())["penult-reason"] == "MESSAGE_MALFORMED"


@pytest.fixture
def gated(quick, start_server, gate):
    """A server whose runs, of one image each, wait while the gate is shut."""
    return start_server(quick, "--batch-max-images", "1", "--threads", "1", env=gate.env)


def test_leaving_a_stream_frees_the_server(gated, gate, connect, encode, request_of, samples):
    """A client that cancels amid its stream leaves no work behind: its waiting photos never run, others are answered."""
    stub = penult_pb2_grpc.PenultServiceStub(connect(gated.target))
    gate.shut()
    answers = stub.StreamClassify(request_of(*[encode(10)] * 8) for _ in range(12))
    gate.wait_for(1)
    answers.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    eventually(lambda: samples(gated.http)[("penult_dropped_total", ("reason", "cancelled"))])
    gate.open()
    eventually(lambda: samples(gated.http)[("penult_queue_depth",)] == 0)
    assert stub.Classify(request_of(encode(200))).results[0].classification.label == "bright"
    found = samples(gated.http)
    assert found[("penult_batch_size_sum",)] <= 2  # the one at the gate, and ours
    assert found[("penult_queue_depth",)] == 0
    assert found[("penult_requests_total", *REQUEST_LABELS, ("version", ""))] == 1


def test_a_failed_stream_leaves_no_complaint_in_the_log(gated, connect, encode, request_of):
    """When many requests of a stream are broken, the log holds no traceback: bad input is no fault of the server."""
    stub = penult_pb2_grpc.PenultServiceStub(connect(gated.target))
    broken = request_of(encode(1), model={"name": "absent"})
    for _ in range(3):
        answers = stub.StreamClassify(iter([request_of(encode(1)), *[broken] * 9]))
        next(answers)
        with pytest.raises(grpc.RpcError):
            next(answers)
    stub.Classify(request_of(encode(1)))
    gated.process.terminate()
    assert gated.process.wait(60) == 0
    assert "Traceback" not in gated.log.read_text()
    assert "never retrieved" not in gated.log.read_text()


def test_unread_answers_hold_back_reading(gated, gate, connect, encode, request_of, samples):
    """Of a long stream whose answers wait, only a few requests are in the server at a time."""
    stub = penult_pb2_grpc.PenultServiceStub(connect(gated.target))
    gate.shut()
    answers = stub.StreamClassify(request_of(encode(1)) for _ in range(40))
    gate.wait_for(1)
    eventually(lambda: samples(gated.http)[("penult_queue_depth",)] >= 1)
    assert samples(gated.http)[("penult_queue_depth",)] <= 6
    answers.cancel()
