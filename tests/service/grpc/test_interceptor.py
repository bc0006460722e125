"""Around every RPC: broken messages are the client's fault, bugs are ours and tell nobody anything, all are counted."""

import asyncio
import logging
import re

import grpc
import pytest
from prometheus_client import CollectorRegistry

from penult.bundle.errors import ImageError
from penult.service import errors
from penult.service.grpc.interceptor import Interceptor
from penult.service.grpc.transport import GrpcServer
from penult.service.observability.call import DrainGate, Envelope
from penult.service.observability.metrics import Metrics
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

CLASSIFY = "/penult.v1.PenultService/Classify"
SECRET = "secret path /etc/penult/key"


class Servicer(penult_pb2_grpc.PenultServiceServicer):
    """Does what `act` says."""

    def __init__(self, act) -> None:
        """Answer every method by awaiting act()."""
        self._act = act

    async def Classify(self, request, context):
        """Act."""
        await self._act()
        return pb.ClassifyResponse(model={"name": "m", "version": 3})

    async def StreamClassify(self, request_iterator, context):
        """Act after each answer."""
        async for _ in request_iterator:
            yield pb.ClassifyResponse(model={"name": "m", "version": 3})
            await self._act()

    async def GetModel(self, request, context):
        """Answer with a description of a model."""
        return pb.GetModelResponse(model={"version": {"name": "m", "version": 3}})


@pytest.fixture
def metrics():
    """Metrics of this test."""
    return Metrics(CollectorRegistry())


@pytest.fixture
def served(metrics):
    """Run a scenario against a real server whose methods do `act`: served(act, scenario)."""

    def start(act, scenario):
        async def whole():
            server = GrpcServer(Interceptor(("penult.v1.PenultService",), Envelope(metrics, DrainGate())))
            penult_pb2_grpc.add_PenultServiceServicer_to_server(Servicer(act), server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    return await scenario(channel)
            finally:
                await server.stop(None)

        return asyncio.run(whole())

    return start


async def nothing() -> None:
    """Do nothing."""


def raising(error: BaseException):
    """Return an act that raises."""

    async def act() -> None:
        raise error

    return act


async def failed(call) -> grpc.aio.AioRpcError:
    """Return what a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def counted(metrics, samples) -> dict[tuple[str, str, str, str], float]:
    """Return penult_requests_total by (model, version, method, code)."""
    labels = ("model", "version", "method", "code")
    return {
        tuple(dict(key[1:])[label] for label in labels): value
        for key, value in samples(metrics).items()
        if key[0] == "penult_requests_total"
    }


BUGS = [RuntimeError(SECRET), KeyError(SECRET), grpc.RpcError(SECRET), MemoryError(SECRET)]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
@pytest.mark.parametrize("method", ["Classify", "StreamClassify"])
def test_a_bug_is_internal_and_tells_only_an_id(served, caplog, metrics, samples, bug, method):
    """An exception is INTERNAL with an opaque id and nothing of its text; the log has both, under that id."""

    async def scenario(channel):
        stub = penult_pb2_grpc.PenultServiceStub(channel)
        if method == "Classify":
            return await failed(stub.Classify(pb.ClassifyRequest()))
        answers = stub.StreamClassify(iter([pb.ClassifyRequest()]))
        await answers.read()
        return await failed(answers.read())

    with caplog.at_level(logging.ERROR, "penult.service.errors"):
        error = served(raising(bug), scenario)
    trailing = dict(error.trailing_metadata())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert trailing["penult-reason"] == "INTERNAL"
    assert re.fullmatch("[0-9a-f]{16}", trailing["penult-request-id"])
    assert trailing["penult-request-id"] in error.details()
    for told in (error.details(), str(trailing)):
        assert "secret" not in told
        assert type(bug).__name__ not in told
    (record,) = [r for r in caplog.records if r.name == "penult.service.errors"]
    assert trailing["penult-request-id"] in record.getMessage()
    assert method in record.getMessage()
    assert SECRET in str(record.exc_info[1])
    assert counted(metrics, samples) == {("", "", method, "INTERNAL"): 1}


KNOWN = [
    *(kind("A_REASON", "a line") for kind in errors.ServiceError.__subclasses__()),
    ImageError("A_REASON", "a line"),
]


@pytest.mark.parametrize("known", KNOWN, ids=lambda error: type(error).__name__)
def test_known_errors_carry_their_code_reason_and_id(served, caplog, metrics, samples, known):
    """Each error of the tree is answered with its code, its line, its reason and an id, and is not logged as a bug."""

    async def scenario(channel):
        return await failed(penult_pb2_grpc.PenultServiceStub(channel).Classify(pb.ClassifyRequest()))

    error = served(raising(known), scenario)
    trailing = dict(error.trailing_metadata())
    assert (error.code(), error.details()) == (grpc.StatusCode[errors.CODES[type(known)]], "a line")
    assert (trailing["penult-reason"], len(trailing["penult-request-id"])) == ("A_REASON", 16)
    assert "grpc-retry-pushback-ms" not in trailing
    assert not caplog.records
    assert counted(metrics, samples) == {("", "", "Classify", errors.CODES[type(known)]): 1}


def test_a_call_whose_model_is_replaced_meanwhile_is_answered_by_the_next(served, metrics, samples):
    """A model that is unloaded between its lookup and its use costs no failed call: the method runs once more."""
    runs = []

    async def act() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise errors.ModelReplaced("MODEL_REPLACED", "m was unloaded just now; try again")

    async def scenario(channel):
        return await penult_pb2_grpc.PenultServiceStub(channel).Classify(pb.ClassifyRequest())

    assert served(act, scenario).model.version == 3
    assert runs == [0, 1]
    assert counted(metrics, samples) == {("m", "3", "Classify", "OK"): 1}


def test_a_hint_goes_into_the_metadata(served):
    """retry_after_ms is told as grpc-retry-pushback-ms, in milliseconds."""

    async def scenario(channel):
        return await failed(penult_pb2_grpc.PenultServiceStub(channel).Classify(pb.ClassifyRequest()))

    error = served(raising(errors.Overloaded("QUEUE_FULL", "busy", retry_after_ms=250)), scenario)
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"


def _nested(depth: int) -> bytes:
    """Return a message of unknown groups, `depth` deep."""
    return b"\x7b" * depth + b"\x7c" * depth


MALFORMED = {
    "cut-off": b"\x0a\x05ab",
    "no-tag": b"\xff\xff\xff",
    "bad-utf8": pb.ClassifyRequest(model={"name": "aa"}).SerializeToString().replace(b"aa", b"\xff\xfe"),
    "too-deep": _nested(500),
    "random": bytes(range(1, 200)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_broken_messages_are_invalid_arguments(served, metrics, samples, case):
    """Bytes that are no message of the method are INVALID_ARGUMENT, and the next message is answered."""

    async def scenario(channel):
        method = channel.unary_unary(CLASSIFY)
        error = await failed(method(MALFORMED[case]))
        await method(b"")
        return error

    error = served(nothing, scenario)
    trailing = dict(error.trailing_metadata())
    assert (error.code(), trailing["penult-reason"]) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")
    assert len(trailing["penult-request-id"]) == 16
    assert counted(metrics, samples)[("", "", "Classify", "INVALID_ARGUMENT")] == 1


def test_answers_have_an_id_and_count_under_their_model(served, metrics, samples):
    """A success carries an id of its own and is counted under the model that answered, GetModel under none."""

    async def scenario(channel):
        stub = penult_pb2_grpc.PenultServiceStub(channel)
        calls = [stub.Classify(pb.ClassifyRequest(model={"name": f"asked-{n}"})) for n in range(3)]
        ids = [dict(await call.trailing_metadata())["penult-request-id"] for call in calls]
        await stub.GetModel(pb.GetModelRequest(model={"name": "asked"}))
        assert [answer.model.version async for answer in stub.StreamClassify(iter([pb.ClassifyRequest()] * 2))] == [
            3,
            3,
        ]
        return ids

    assert len(set(served(nothing, scenario))) == 3
    expected = {("m", "3", "Classify", "OK"): 3, ("", "", "GetModel", "OK"): 1, ("m", "3", "StreamClassify", "OK"): 1}
    assert counted(metrics, samples) == expected
    assert samples(metrics)[("penult_request_seconds_count", ("method", "Classify"))] == 3


def test_an_unknown_method_is_unimplemented(served, metrics, samples):
    """A method that does not exist is UNIMPLEMENTED, and makes no label."""

    async def scenario(channel):
        return await failed(channel.unary_unary("/penult.v1.PenultService/Nonsense")(b""))

    assert served(nothing, scenario).code() is grpc.StatusCode.UNIMPLEMENTED
    assert counted(metrics, samples) == {}


@pytest.mark.parametrize("leaves", ["deadline", "cancelled"])
def test_clients_that_leave_are_counted_by_why(served, metrics, samples, leaves):
    """A deadline that passes and a client that cancels stop the work, and are told apart in the metrics."""
    begun, stopped = asyncio.Event(), []

    async def act() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(leaves)
            raise

    async def scenario(channel):
        stub = penult_pb2_grpc.PenultServiceStub(channel)
        call = stub.Classify(pb.ClassifyRequest(), timeout=1.0 if leaves == "deadline" else 20)
        if leaves == "cancelled":
            await begun.wait()
            call.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call
        async with asyncio.timeout(5):
            while not stopped:
                await asyncio.sleep(0.01)
        return await call.code()

    code = grpc.StatusCode.DEADLINE_EXCEEDED if leaves == "deadline" else grpc.StatusCode.CANCELLED
    assert served(act, scenario) is code
    assert counted(metrics, samples) == {("", "", "Classify", code.name): 1}
