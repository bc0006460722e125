"""The Open Inference Protocol over gRPC: clients that we did not write get what penult.v1's clients get."""

import base64
import random

import grpc
import numpy as np
import pytest

from penult.bundle.manifest import DENSE, SVM
from penult.bundle.scores import softmax
from penult.client import Client
from penult.oip import grpc_service_pb2 as pb
from penult.oip import grpc_service_pb2_grpc
from penult.service.oip.tensors import as_strings

HEALTH = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]


@pytest.fixture
def oip(server, connect):
    """The shared server's methods of the protocol."""
    return grpc_service_pb2_grpc.GRPCInferenceServiceStub(connect(server.target))


def request_of(*photos: bytes, outputs: tuple[str, ...] = (), raw: bool = True, **fields: object):
    """Make a request for encoded photos."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[len(photos)])
    request = pb.ModelInferRequest(model_name="digits", **fields)
    if raw:
        request.raw_input_contents.append(as_strings(photos))
    else:
        tensor.contents.bytes_contents.extend(photos)
    request.inputs.append(tensor)
    request.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs)
    return request


def floats(response: pb.ModelInferResponse, name: str) -> np.ndarray:
    """Return a raw output as float32."""
    place = [output.name for output in response.outputs].index(name)
    return np.frombuffer(response.raw_output_contents[place], "<f4").reshape(response.outputs[place].shape)


@pytest.mark.parametrize("kind", ["image", "uint8", "fp32"])
@pytest.mark.parametrize("api", ["sync", "aio"])
def test_tritonclient_gets_the_same_labels(found, labels, api, kind):
    """100 of 100 labels equal penult.v1's, from encoded photos and from pixels, over both of its gRPC clients."""
    has = found["sync"]["labels"] if api == "sync" else found["aio"]
    assert len(labels) == 100
    assert has[kind] == labels
    assert found["penult"] == []


def test_tritonclient_streams(found, labels):
    """Its stream gives the same, in order."""
    assert found["stream"] == labels


def test_a_client_needs_nothing_but_reflection(found, labels):
    """Without generated code, a client finds the services and gets typed contents back for typed contents."""
    assert found["reflection"]["services"] == sorted(
        ["penult.v1.PenultService", "inference.GRPCInferenceService", *HEALTH]
    )
    assert found["reflection"]["labels"] == labels[:50]


def test_tritonclient_reads_what_the_server_tells(found, bundle):
    """Liveness, readiness, metadata, configuration, index and statistics are in the form that it expects."""
    told, manifest = found["sync"], bundle.manifest
    assert (told["live"], told["ready"], told["model_ready"], told["other_ready"]) == (True, True, True, False)
    assert told["server"]["name"] == "penult"
    assert "model_repository" in told["server"]["extensions"]
    crop = str(manifest.preprocess.crop)
    assert told["metadata"] == {
        "name": "digits", "versions": ["1"], "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": ["-1"]},
            {"name": "pixels", "datatype": "UINT8", "shape": ["-1", crop, crop, "3"]},
        ],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]},
            {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "10"]},
            {"name": "descriptor", "datatype": "FP32", "shape": ["-1", str(manifest.descriptor_length)]},
            {"name": "svm_scores", "datatype": "FP32", "shape": ["-1", "10"]},
            {"name": "labels", "datatype": "BYTES", "shape": ["-1"]},
            {"name": "class_map", "datatype": "FP32", "shape": ["-1", "8", "8"]},
        ],
    }  # fmt: skip
    assert [each["name"] for each in told["config"]["config"]["input"]] == ["image", "pixels"]
    assert told["index"]["models"] == [{"name": "digits", "version": "1", "state": "READY"}]
    (stats,) = told["statistics"]["model_stats"]
    assert int(stats["inference_count"]) >= 300
    assert int(stats["inference_stats"]["success"]["ns"]) > int(stats["inference_stats"]["compute_infer"]["ns"]) > 0
    assert told["shapes"]["labels"] == [32]
    assert told["id"] == "7"


def test_tritonclient_is_refused_clearly(found):
    """An unknown model, a load that is not allowed and shared memory end with their own codes."""
    told = found["sync"]
    assert told["error"].startswith("StatusCode.NOT_FOUND: no such model")
    assert told["load"].startswith("StatusCode.PERMISSION_DENIED: ")
    assert "--model-control" in told["load"]
    assert told["shared_memory"].startswith("StatusCode.UNIMPLEMENTED: ")


def test_triton_classification(found, labels, bundle):
    """With class_count, probabilities come as "value:index:label", best first; the label is penult.v1's."""
    for row, label in zip(found["sync"]["best"], labels[:32], strict=True):
        parts = [text.split(":") for text in row]
        assert [len(part) for part in parts] == [3, 3]
        assert float(parts[0][0]) >= float(parts[1][0])
        assert (parts[0][2], bundle.manifest.classes[int(parts[0][1])]) == (label, label)


@pytest.mark.parametrize("scorer", [DENSE, SVM])
def test_outputs_agree_with_each_other(oip, photos, bundle, server, scorer):
    """Labels, probabilities, scores and descriptors belong together, and to what penult.v1 says with that scorer."""
    request = request_of(*photos[:20], parameters={"scorer": pb.InferParameter(string_param=scorer)})
    response = oip.ModelInfer(request)
    scores = floats(response, "logits" if scorer == DENSE else "svm_scores")
    temperature = bundle.manifest.temperatures[scorer]
    np.testing.assert_allclose(floats(response, "probabilities"), softmax(scores, temperature), atol=1e-6)
    assert response.parameters["scorer"].string_param == scorer
    assert response.parameters["fingerprint"].string_param == bundle.manifest.fingerprint
    with Client(server.target) as client:
        answer = client.classify(photos[:20], scorer=scorer, include_descriptor=True)
    best = scores.argmax(axis=1)
    assert [bundle.manifest.classes[c] for c in best] == [result.label for result in answer.results]
    np.testing.assert_allclose(floats(response, "descriptor"), [r.descriptor for r in answer.results], atol=1e-5)
    place = [output.name for output in response.outputs].index("labels")
    assert response.raw_output_contents[place] == as_strings([result.label.encode() for result in answer.results])


def test_outputs_come_as_asked_for(oip, photos):
    """Only what is asked for comes, in that order; typed contents where the request had them."""
    response = oip.ModelInfer(request_of(photos[0], outputs=("labels", "logits"), raw=False))
    assert [output.name for output in response.outputs] == ["labels", "logits"]
    assert not response.raw_output_contents
    assert len(response.outputs[1].contents.fp32_contents) == 10
    assert (response.model_name, response.model_version) == ("digits", "1")


def changed(**fields: object):
    """Return a change of a good request's input."""

    def act(request: pb.ModelInferRequest) -> None:
        tensor = request.inputs[0]
        for name, value in fields.items():
            if name == "shape":
                del tensor.shape[:]
                tensor.shape.extend(value)
            elif name == "raw":
                request.raw_input_contents[0] = value
            elif name in ("name", "datatype"):
                setattr(tensor, name, value)
            else:
                setattr(request, name, value)

    return act


def pixels(datatype: str, shape: list[int], data: bytes):
    """Return a change into a request of pixels."""
    return changed(name="pixels", datatype=datatype, shape=shape, raw=data)


def no_input(request: pb.ModelInferRequest) -> None:
    """Leave the input out."""
    request.ClearField("inputs")
    request.ClearField("raw_input_contents")


def twice(request: pb.ModelInferRequest) -> None:
    """Give the input twice."""
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def typed_too(request: pb.ModelInferRequest) -> None:
    """Give typed contents beside raw ones."""
    request.inputs[0].contents.bytes_contents.append(b"x")


def output(name: str, **parameters: pb.InferParameter):
    """Ask for an output."""

    def act(request: pb.ModelInferRequest) -> None:
        request.outputs.append(pb.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters))

    return act


ONE = 32 * 32 * 3
WRONG = {
    "no input": (no_input, "INPUT_COUNT"),
    "raw contents of no input": (lambda request: request.ClearField("inputs"), "INPUT_CONTENTS"),
    "two inputs": (twice, "INPUT_COUNT"),
    "unknown input": (changed(name="picture"), "INPUT_UNKNOWN"),
    "datatype": (changed(datatype="FP64"), "INPUT_DATATYPE"),
    "image of numbers": (changed(datatype="UINT8"), "INPUT_DATATYPE"),
    "shape of image": (changed(shape=[1, 2]), "INPUT_SHAPE"),
    "side of image": (changed(shape=[1, 1, 1]), "INPUT_SHAPE"),
    "cut base64": (changed(raw=as_strings([b"/9j/4AAQS"])), "INPUT_CONTENTS"),
    "no shape": (changed(shape=[]), "INPUT_SHAPE"),
    "negative": (changed(shape=[-1]), "REQUEST_COUNT"),
    "none": (changed(shape=[0], raw=b""), "REQUEST_COUNT"),
    "too many": (changed(shape=[2**40]), "REQUEST_COUNT"),
    "fewer than said": (changed(shape=[2]), "INPUT_SIZE"),
    "cut length": (changed(raw=b"\1\0"), "INPUT_SIZE"),
    "cut element": (changed(raw=b"\xff\xff\xff\xff12"), "INPUT_SIZE"),
    "no photo": (changed(raw=as_strings([b"text"])), "IMAGE_UNKNOWN_FORMAT"),
    "other side": (pixels("UINT8", [1, 8, 8, 3], bytes(192)), "INPUT_SHAPE"),
    "planes first": (pixels("UINT8", [1, 3, 32, 32], bytes(ONE)), "INPUT_SHAPE"),
    "too short": (pixels("UINT8", [1, 32, 32, 3], bytes(ONE - 1)), "INPUT_SIZE"),
    "too long": (pixels("UINT8", [1, 32, 32, 3], bytes(ONE + 1)), "INPUT_SIZE"),
    "half a float": (pixels("FP32", [1, 32, 32, 3], bytes(4 * ONE - 1)), "INPUT_SIZE"),
    "nan": (pixels("FP32", [1, 32, 32, 3], np.full(ONE, np.nan, "<f4").tobytes()), "INPUT_VALUES"),
    "normalised": (pixels("FP32", [1, 32, 32, 3], np.full(ONE, -0.5, "<f4").tobytes()), "INPUT_VALUES"),
    "above 255": (pixels("FP32", [1, 32, 32, 3], np.full(ONE, 256, "<f4").tobytes()), "INPUT_VALUES"),
    "raw and typed": (typed_too, "INPUT_CONTENTS"),
    "more raw than inputs": (lambda request: request.raw_input_contents.append(b""), "INPUT_CONTENTS"),
    "version": (changed(model_version="newest"), "MODEL_VERSION"),
    "version 0": (changed(model_version="0"), "MODEL_VERSION"),
    "output": (output("softmax"), "OUTPUT_UNKNOWN"),
    "classes of labels": (output("labels", classification=pb.InferParameter(int64_param=2)), "OUTPUT_CLASSIFICATION"),
    "classes of text": (output("logits", classification=pb.InferParameter(string_param="2")), "PARAMETER"),
    "scorer": (lambda request: request.parameters["scorer"].__setattr__("string_param", "best"), "SCORER_UNKNOWN"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_told_what_is_wrong(oip, photos, failure, case):
    """Wrong names, types, shapes, sizes and values are INVALID_ARGUMENT, each with its reason and one short line."""
    change, reason = WRONG[case]
    request = request_of(photos[0])
    change(request)
    error = failure(lambda: oip.ModelInfer(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(error.trailing_metadata())["penult-reason"] == reason, error.details()
    assert len(error.details()) < 200
    assert "\n" not in error.details()


def in_base64(photo: bytes) -> bytes:
    """A photo as openssl and MIME write it: lines of 76 letters."""
    return base64.encodebytes(photo)


def as_uri(photo: bytes) -> bytes:
    """A photo as a browser's FileReader gives it."""
    return b"data:image/png;base64," + base64.b64encode(photo)


def for_urls(photo: bytes) -> bytes:
    """A photo in the alphabet for URLs, without padding."""
    return base64.urlsafe_b64encode(photo).rstrip(b"=")


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("sides", [[3], [3, 1]], ids=str)
@pytest.mark.parametrize("written", [bytes, in_base64, as_uri, for_urls], ids=lambda f: f.__name__)
def test_photos_as_other_clients_write_them(oip, photos, labels, raw, sides, written):
    """Shape [N, 1] of batched models and MLServer's codecs, base64 in each of its forms: the same labels, [N]."""
    response = oip.ModelInfer(changed_shape(request_of(*map(written, photos[:3]), outputs=("labels",), raw=raw), sides))
    (output,) = response.outputs
    found = response.raw_output_contents[0] if raw else as_strings(output.contents.bytes_contents)
    assert (list(output.shape), found) == ([3], as_strings([label.encode() for label in labels[:3]]))


def changed_shape(request: pb.ModelInferRequest, sides: list[int]) -> pb.ModelInferRequest:
    """Return the request with other sides."""
    changed(shape=sides)(request)
    return request


def test_mlserver_says_base64(oip, failure):
    """What its codec calls base64 is read so even where no photo's beginning shows; elsewhere bytes are a file."""
    request = request_of(base64.b64encode(b"no photo at all"), raw=False)
    assert "JPEG, PNG or WebP" in failure(lambda: oip.ModelInfer(request)).details()
    request.inputs[0].parameters["content_type"].string_param = "base64"
    request.inputs[0].contents.bytes_contents[0] = b"no base64!"
    assert dict(failure(lambda: oip.ModelInfer(request)).trailing_metadata())["penult-reason"] == "INPUT_CONTENTS"


def test_the_pixels_of_one_photo_need_no_first_side(oip, crops, labels):
    """MLServer's NumPy codec gives an array its own shape, [crop, crop, 3] for one photo."""
    request = request_of(b"", outputs=("labels",))
    pixels("UINT8", list(crops[0].shape), crops[0].tobytes())(request)
    response = oip.ModelInfer(request)
    assert response.raw_output_contents[0] == as_strings([labels[0].encode()])


def test_what_is_not_there_is_not_found(oip, photos, failure):
    """Another model and another version are NOT_FOUND."""
    for fields in ({"model_name": "absent"}, {"model_name": "digits", "model_version": "7"}):
        request = request_of(photos[0])
        request.MergeFrom(pb.ModelInferRequest(**fields))
        assert failure(lambda request=request: oip.ModelInfer(request)).code() is grpc.StatusCode.NOT_FOUND


def test_a_model_without_svm_has_no_svm_scores(quick, start_server, connect, encode, failure):
    """Its metadata list none, asking for all gives none, and asking for them is FAILED_PRECONDITION."""
    stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(connect(start_server(quick).target))
    names = ["logits", "probabilities", "descriptor", "labels"]
    assert [o.name for o in stub.ModelMetadata(pb.ModelMetadataRequest(name="light")).outputs] == names
    request = request_of(encode(230))
    request.model_name = "light"
    assert [o.name for o in stub.ModelInfer(request).outputs] == names
    request.outputs.append(pb.ModelInferRequest.InferRequestedOutputTensor(name="svm_scores"))
    assert failure(lambda: stub.ModelInfer(request)).code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_bad_photo_is_named_by_its_place(oip, photos, failure):
    """The protocol has no errors per photo: the request fails, and says which photo it was."""
    error = failure(lambda: oip.ModelInfer(request_of(photos[0], photos[1][:100], photos[2])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("image 1: ")


def test_a_stream_goes_on_after_an_error(oip, photos):
    """In a stream, a wrong request gives its error in its place, and the next ones are answered."""
    requests = [request_of(photos[0], id="a"), request_of(b"text", id="b"), request_of(photos[1], id="c")]
    answers = list(oip.ModelStreamInfer(iter(requests)))
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c"]


def test_requests_are_counted_under_their_model(oip, photos, server, samples):
    """ModelInfer counts like any other method, with the model that answered."""
    labels = (("code", "OK"), ("method", "ModelInfer"), ("model", "digits"), ("version", "1"))
    before = samples(server.http).get(("penult_requests_total", *labels), 0)
    oip.ModelInfer(request_of(photos[0]))
    assert samples(server.http)["penult_requests_total", *labels] == before + 1


def test_mutated_requests_never_find_a_bug(server, connect, photos):
    """Three hundred requests with bytes changed at random give an answer or a clear refusal, never INTERNAL or UNKNOWN."""
    chance = random.Random(5)
    good = request_of(photos[0], outputs=("labels",)).SerializeToString()
    send = connect(server.target).unary_unary("/inference.GRPCInferenceService/ModelInfer")  # bytes, as they are
    seen = []
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data) if chance.random() < 0.3 else 40)] = chance.randrange(256)
        try:
            send(bytes(data), timeout=120)
            seen.append(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            seen.append(error.code())
    allowed = {
        grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED,
    }  # fmt: skip
    assert seen.count(grpc.StatusCode.INVALID_ARGUMENT) > 50
    assert set(seen) <= allowed


def test_models_are_loaded_and_unloaded_where_that_is_allowed(
    publish_brightness, tmp_path, start_server, connect, failure
):
    """With --model-control on: unload drains and stays away, load brings the newest back, a broken one says why."""
    publish_brightness(tmp_path)
    publish_brightness(tmp_path, "other")
    server = start_server(tmp_path, "--model-control", "on", "--watch-s", "0.1")
    stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(connect(server.target))

    def index() -> dict[str, tuple[str, str]]:
        models = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        return {f"{m.name}/{m.version}": (m.state, m.reason) for m in models}

    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="light"))
    assert index() == {"light/1": ("UNAVAILABLE", "UNLOADED"), "other/1": ("READY", "")}
    assert not stub.ModelReady(pb.ModelReadyRequest(name="light")).ready
    folder = publish_brightness(tmp_path)
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="light"))
    assert stub.ModelMetadata(pb.ModelMetadataRequest(name="light")).versions == ["2"]
    (folder.parent / "3").mkdir()
    (folder.parent / "3" / "manifest.json").write_text("{")
    error = failure(lambda: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="light")))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "MANIFEST_INVALID" in error.details()
    assert index()["light/3"] == ("UNAVAILABLE", "MANIFEST_INVALID")
    assert stub.ModelReady(pb.ModelReadyRequest(name="light", version="2")).ready
    for request in ("absent", "../etc", ""):
        error = failure(lambda name=request: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name)))
        assert error.code() is grpc.StatusCode.NOT_FOUND
    loading = pb.RepositoryModelLoadRequest(model_name="light")
    loading.parameters["config"].string_param = "{}"
    assert failure(lambda: stub.RepositoryModelLoad(loading)).code() is grpc.StatusCode.INVALID_ARGUMENT
