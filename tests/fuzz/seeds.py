"""Where a fuzzer begins: small images of the corpus, and messages that hold them."""

import json
from collections.abc import Iterator

from tests.attacks.corpus import corpus

from penult.oip import grpc_service_pb2 as oip
from penult.v1 import penult_pb2 as pb

_MAX_BYTES = 6000


def images() -> Iterator[bytes]:
    """Every image of the corpus that is small."""
    return (case.data for case in corpus().values() if len(case.data) <= _MAX_BYTES)


def messages() -> Iterator[bytes]:
    """One of each kind of message, behind the byte that tells messages.py which kind it is."""
    photo = pb.Image(encoded=corpus()["other-text"].data)
    crop = pb.Image(raw=pb.RawImage(height=2, width=2, rgb=bytes(12), is_crop=True))
    numbers = pb.Descriptor(values=[0.5, -1, 3], fingerprint="ab")
    near = pb.NeighbourQuery(
        collection="c", k=3, max_distance=0.5,
        filter=[pb.Condition(field="price", low=1, high=2), pb.Condition(field="label", values=[pb.Value(text="a")])],
    )  # fmt: skip
    item = pb.Item(
        id="i", label="l", metadata={"price": pb.Value(number=2)}, descriptor_vector=numbers, source="s", thumbnail=b"t"
    )
    model = pb.ModelSelector(name="light", version=1)
    inputs = [
        oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1]),
        oip.ModelInferRequest.InferInputTensor(
            name="pixels",
            datatype="FP32",
            shape=[1, 1, 1, 3],
            contents=oip.InferTensorContents(fp32_contents=[0, 9, 255]),
        ),
    ]
    wanted = oip.ModelInferRequest.InferRequestedOutputTensor(
        name="labels", parameters={"classification": oip.InferParameter(int64_param=2)}
    )
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [[[[0, 9, 255]]]]}
    for kind, message in (
        (0, pb.ClassifyRequest(model=model, images=[photo, crop], top_k=3, scorer=2, neighbours=near)),
        (1, pb.DescribeRequest(model=model, images=[photo])),
        (2, pb.ScoreRequest(model=model, descriptors=[numbers])),
        (3, pb.LookupRequest(model=model, query=near, descriptors=[numbers])),
        (4, pb.PutItemsRequest(model=model, collection="c", items=[item], fields={"price": pb.FIELD_TYPE_NUMBER})),
        (
            5,
            oip.ModelInferRequest(
                model_name="light", inputs=inputs[:1], raw_input_contents=[b"\1\0\0\0a"], outputs=[wanted]
            ),
        ),
        (5, oip.ModelInferRequest(model_name="light", inputs=inputs[1:], outputs=[wanted])),
    ):
        yield bytes((kind,)) + message.SerializeToString()
    yield b"\6\xff" + json.dumps({"inputs": [tensor], "outputs": [{"name": "labels"}], "id": "a"}).encode()
    binary = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
    head = json.dumps({"inputs": [binary], "parameters": {"binary_data_output": True, "timeout": 5}}).encode()
    yield bytes((6, len(head))) + head + b"\1\0\0\0a"
