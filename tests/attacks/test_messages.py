"""Whatever bytes come as a message, over a real socket: an answer or one of a few codes, never UNKNOWN nor INTERNAL.

PENULT_FULL=1 tries many more, other ones each time.
"""

import json
import os
import struct

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.attacks.corpus import corpus
from tests.attacks.servers import (  # noqa: F401 - fixtures
    channel,
    oip_stub,
    stub,
    victim,
)
from tests.fuzz.seeds import messages

from penult.oip import grpc_service_pb2 as oip
from penult.v1 import penult_pb2 as pb

FULL = os.environ.get("PENULT_FULL") == "1"
# What bad input may be told (reliability.md, section 5); a collection may be there already, control is switched off,
# and shared memory is not offered.
ALLOWED = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNIMPLEMENTED",
}  # fmt: skip
_SERVICES = (pb.DESCRIPTOR.services_by_name["PenultService"], oip.DESCRIPTOR.services_by_name["GRPCInferenceService"])
METHODS = [(f"/{service.full_name}/{method.name}", method) for service in _SERVICES for method in service.methods]
SEEDS = [seed[1:] for seed in messages()]
SMALL = [case.data for case in corpus().values() if len(case.data) < 4000]


def examples(count: int, most: int) -> settings:
    """So many examples: the same ones every time, except where all are asked for."""
    return settings(
        max_examples=most if FULL else count, derandomize=not FULL, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )  # fmt: skip


def code_of(call) -> str:
    """Make a call and return its code's name, after a look at what came with it."""
    try:
        call()
    except grpc.RpcError as error:
        code, told = error.code().name, dict(error.trailing_metadata() or ())
        assert code in ALLOWED, (code, error.details())
        assert told["penult-reason"].replace("_", "").isalpha(), told
        assert not any(word in error.details() for word in ("Traceback", "site-packages", "Error(", 'File "')), (
            error.details()
        )
        return code
    return "OK"


def send(channel, path: str, method, data: bytes) -> str:  # noqa: F811
    """Send bytes as a method's message, and return the code's name."""
    if method.client_streaming:
        stream = channel.stream_stream(path, request_serializer=None, response_deserializer=None)
        return code_of(lambda: list(stream(iter([data]), timeout=60)))
    return code_of(
        lambda: channel.unary_unary(path, request_serializer=None, response_deserializer=None)(data, timeout=60)
    )


def one_of(pool: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of many; by its place, for hypothesis writes out what it samples from."""
    return st.integers(0, len(pool) - 1).map(lambda place: pool[place])


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A whole message or file with a few places changed, cut out, put in or doubled."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 6))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
        match draw(st.sampled_from(["change", "cut", "insert", "double"])):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[at : at + length]
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case "double":
                data[at:at] = data[at : at + length]
    return bytes(data)


@pytest.mark.parametrize(("path", "method"), METHODS, ids=[path.rsplit("/", 1)[1] for path, _ in METHODS])
def test_any_bytes_as_any_message(victim, channel, path, method):  # noqa: F811
    """Every method, given any bytes and damaged messages of any method, answers with an allowed code."""

    @examples(40, 2000)
    @given(st.binary(max_size=300) | damaged(one_of(SEEDS)))
    def holds(data: bytes) -> None:
        send(channel, path, method, data)

    holds()


NAMES = (
    st.sampled_from(["light", "light", "", "nope", "../light", "light/1", "light\0", "ä" * 70, "a" * 9999, "{}%s"])
    | st.text()
)
SELECTORS = st.builds(pb.ModelSelector, name=NAMES, version=st.sampled_from([0, 0, 1, 2, 2**31, 2**32 - 1]))
COUNTS = st.sampled_from([0, 1, 2, 5, 999, 1001, 2**31, 2**32 - 1])
SIDES = st.sampled_from([0, 1, 2, 8, 9, 16_384, 16_385, 2**16, 2**31, 2**32 - 1])
FLOATS = st.floats(width=32)
VALUES = (
    st.builds(pb.Value, text=st.text())
    | st.builds(pb.Value, number=st.floats())
    | st.builds(pb.Value, truth=st.booleans())
)
ANY_VALUE = VALUES | st.just(pb.Value())
RAWS = st.builds(
    pb.RawImage, height=SIDES, width=SIDES, rgb=st.binary(max_size=200) | st.just(bytes(192)), is_crop=st.booleans()
)
RIGHT = st.integers(1, 9).map(lambda n: pb.RawImage(height=n, width=9, rgb=bytes(27 * n)))
IMAGES = (
    st.builds(pb.Image, raw=RAWS | RIGHT) | st.builds(pb.Image, encoded=st.binary(max_size=99) | damaged(one_of(SMALL)))
    | st.just(pb.Image())
)  # fmt: skip
DESCRIPTORS = st.builds(
    pb.Descriptor, values=st.lists(FLOATS, min_size=3, max_size=3) | st.lists(FLOATS, max_size=6),
    fingerprint=st.sampled_from(["", "", "other"]) | st.text(),
)  # fmt: skip
FIELDS = st.sampled_from(["label", "price", "colour", "", "a b", "x" * 99])
CONDITIONS = st.builds(
    pb.Condition,
    field=FIELDS,
    values=st.lists(ANY_VALUE, max_size=3),
    low=st.none() | st.floats(),
    high=st.none() | st.floats(),
)
COLLECTIONS = st.sampled_from(["mine", "mine", "yours", "", "..", "a/b", "ä", "x" * 65])
QUERIES = st.builds(
    pb.NeighbourQuery, collection=COLLECTIONS, k=COUNTS, filter=st.lists(CONDITIONS, max_size=3), max_distance=FLOATS
)
ITEMS = st.builds(
    pb.Item, id=st.text(max_size=5), label=st.text(max_size=5), metadata=st.dictionaries(FIELDS, ANY_VALUE, max_size=2),
    descriptor_vector=DESCRIPTORS, source=st.text(max_size=9), thumbnail=st.binary(max_size=9),
) | st.builds(pb.Item, id=st.text(min_size=1, max_size=5), image=IMAGES)  # fmt: skip
SCORERS = st.sampled_from([0, 1, 2, 3, 4, -1, 2**31 - 1])
TENSORS = st.builds(
    oip.ModelInferRequest.InferInputTensor, name=st.sampled_from(["image", "pixels", "", "x"]),
    datatype=st.sampled_from(["BYTES", "UINT8", "FP32", "INT64", ""]),
    shape=st.sampled_from([[1], [1, 8, 8, 3], [2], [], [0], [-1], [2**62, 8, 8, 3], [1] * 99]),
    contents=st.none() | st.builds(
        oip.InferTensorContents, bytes_contents=st.lists(st.binary(max_size=9), max_size=2),
        uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=3),
        fp32_contents=st.lists(FLOATS, max_size=3) | st.just([7.0] * 192),
    ),
)  # fmt: skip
PARAMETERS = st.one_of(
    st.builds(oip.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(oip.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(oip.InferParameter, string_param=st.sampled_from(["dense", "svm", ""])),
    st.just(oip.InferParameter()),
)
OUTPUTS = st.builds(
    oip.ModelInferRequest.InferRequestedOutputTensor,
    name=st.sampled_from(["logits", "probabilities", "descriptor", "svm_scores", "labels", "", "x"]),
    parameters=st.dictionaries(st.just("classification"), PARAMETERS, max_size=1),
)
RAW_CONTENTS = st.binary(max_size=40) | st.just(bytes(192)) | one_of(SMALL).map(lambda d: struct.pack("<I", len(d)) + d)
REQUESTS = {
    "Classify": st.builds(
        pb.ClassifyRequest, model=SELECTORS, images=st.lists(IMAGES, max_size=4), scorer=SCORERS, top_k=COUNTS,
        include_descriptor=st.booleans(), neighbours=st.none() | QUERIES,
    ),
    "Describe": st.builds(pb.DescribeRequest, model=SELECTORS, images=st.lists(IMAGES, max_size=4)),
    "Score": st.builds(pb.ScoreRequest, model=SELECTORS, descriptors=st.lists(DESCRIPTORS, max_size=3), top_k=COUNTS),
    "Lookup": st.builds(
        pb.LookupRequest, model=SELECTORS, query=QUERIES, images=st.lists(IMAGES, max_size=2), descriptors=st.lists(DESCRIPTORS, max_size=2)
    ),
    "PutItems": st.builds(
        pb.PutItemsRequest, collection=COLLECTIONS, model=SELECTORS, items=st.lists(ITEMS, max_size=3),
        fields=st.dictionaries(FIELDS, st.integers(-1, 5), max_size=2),
    ),
    "GetItems": st.builds(
        pb.GetItemsRequest, collection=COLLECTIONS, ids=st.lists(st.text(max_size=5), max_size=3), after=st.text(max_size=5), limit=COUNTS
    ),
    "DeleteItems": st.builds(pb.DeleteItemsRequest, collection=COLLECTIONS, ids=st.lists(st.text(max_size=5), max_size=3)),
    "GetModel": st.builds(pb.GetModelRequest, model=SELECTORS),
    "ModelInfer": st.builds(
        oip.ModelInferRequest, model_name=NAMES, model_version=st.sampled_from(["", "1", "0", "-1", "x", "9" * 99]),
        inputs=st.lists(TENSORS, max_size=2), outputs=st.lists(OUTPUTS, max_size=3),
        raw_input_contents=st.lists(RAW_CONTENTS, max_size=2),
        parameters=st.dictionaries(st.just("scorer"), PARAMETERS, max_size=1),
    ),
}  # fmt: skip


_MODEL, _PHOTO = pb.ModelSelector(name="light"), pb.Image(raw=pb.RawImage(height=8, width=8, rgb=bytes(192)))
_NEAR, _VECTOR = pb.NeighbourQuery(collection="mine", k=3), pb.Descriptor(values=[0.5, 0.25, 1])
GOOD = {
    "Classify": pb.ClassifyRequest(model=_MODEL, images=[_PHOTO]),
    "Describe": pb.DescribeRequest(model=_MODEL, images=[_PHOTO]),
    "Score": pb.ScoreRequest(model=_MODEL, descriptors=[_VECTOR]),
    "Lookup": pb.LookupRequest(query=_NEAR, descriptors=[_VECTOR]),
    "PutItems": pb.PutItemsRequest(collection="mine", model=_MODEL, items=[pb.Item(id="a", label="b", descriptor_vector=_VECTOR)]),
    "GetItems": pb.GetItemsRequest(collection="mine", ids=["a"]),
    "DeleteItems": pb.DeleteItemsRequest(collection="mine", ids=["none"]),
    "GetModel": pb.GetModelRequest(model=_MODEL),
    "ModelInfer": oip.ModelInferRequest(
        model_name="light", raw_input_contents=[bytes(192)],
        inputs=[oip.ModelInferRequest.InferInputTensor(name="pixels", datatype="UINT8", shape=[1, 8, 8, 3])],
    ),
}  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn, name: str):
    """A good message of which some fields, or all, are replaced."""
    message, other = type(GOOD[name])(), draw(REQUESTS[name])
    message.CopyFrom(GOOD[name])
    for field in message.DESCRIPTOR.fields:
        if draw(st.booleans()):
            message.ClearField(field.name)
        else:
            other.ClearField(field.name)
    message.MergeFrom(other)
    return message


@pytest.mark.parametrize("name", REQUESTS)
def test_any_fields_in_a_message(victim, stub, oip_stub, name):  # noqa: F811
    """Well-formed messages with fields of any value answer with an allowed code, and the good ones among them with OK.

    The model has no SVM, so that a good Score is told as much.
    """
    call = getattr(oip_stub if name == "ModelInfer" else stub, name)
    stub.PutItems(GOOD["PutItems"], timeout=60)
    seen = set()

    @examples(100, 3000)
    @given(spoiled(name))
    def holds(request) -> None:
        seen.add(code_of(lambda: call(request, timeout=60)))

    holds()
    assert code_of(lambda: call(GOOD[name], timeout=60)) == ("FAILED_PRECONDITION" if name == "Score" else "OK")
    assert "INVALID_ARGUMENT" in seen
    assert len(seen) > 1


def test_any_items_answer_each_on_its_own(victim, stub):  # noqa: F811
    """Any images sent to Describe: one outcome each, a descriptor of finite numbers or an INVALID_ARGUMENT."""

    @examples(60, 3000)
    @given(st.lists(IMAGES, min_size=1, max_size=6))
    def holds(images) -> None:
        results = stub.Describe(pb.DescribeRequest(images=images), timeout=60).results
        assert len(results) == len(images)
        for result in results:
            if result.HasField("error"):
                assert (result.error.code, result.error.reason[:6]) == (3, "IMAGE_")
            else:
                assert all(0 <= value <= 1 for value in result.descriptor_vector.values)

    holds()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "binary_data_size", "classification", "id"]
    ), inner, max_size=4),
)  # fmt: skip


def test_any_body_over_http(victim):  # noqa: F811
    """The HTTP form answers 200 or a client's error to any body, any JSON, and any size of its JSON part."""
    bodies = (
        st.binary(max_size=200)
        | JSON.map(lambda value: json.dumps(value).encode())
        | damaged(one_of([s for s in SEEDS if b'"inputs"' in s]))
    )
    sizes = st.none() | st.integers(-5, 300) | st.sampled_from(["x", "9" * 99])

    @examples(150, 3000)
    @given(bodies, sizes)
    def holds(body: bytes, size: object) -> None:
        headers = {} if size is None else {"Inference-Header-Content-Length": str(size)}
        answer = client.post(f"{victim.http}/v2/models/light/infer", content=body, headers=headers)
        assert answer.status_code in {200, 400, 404, 409, 412}, (answer.status_code, answer.text)

    with httpx.Client(timeout=60) as client:
        holds()
