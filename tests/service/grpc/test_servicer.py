"""The methods of penult.v1 on the wire: every bad input gets its status, its neighbours and the next request answers."""

import io
import random
from dataclasses import replace

import grpc
import numpy as np
import pytest
from PIL import Image

from penult.bundle.preprocess import crop_encoded
from penult.bundle.writer import publish
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def _reason(error: grpc.RpcError) -> str:
    return dict(error.trailing_metadata()).get("penult-reason", "")


def _raw(height: int, width: int, length: int) -> pb.Image:
    return pb.Image(raw=pb.RawImage(height=height, width=width, rgb=bytes(length)))


@pytest.fixture(scope="module")
def bad_images(encode, png_header, photos):
    """Images that cannot be used, with their reasons."""
    picture = Image.open(io.BytesIO(photos[0])).resize((256, 256)).convert("RGB")
    jpeg = encode(picture, "JPEG")
    return {
        "empty": (pb.Image(encoded=b""), "IMAGE_EMPTY"),
        "no-source": (pb.Image(), "IMAGE_EMPTY"),
        "text": (pb.Image(encoded=b"I am no photo."), "IMAGE_UNKNOWN_FORMAT"),
        "gif": (pb.Image(encoded=encode(picture, "GIF")), "IMAGE_UNKNOWN_FORMAT"),
        "half-jpeg": (pb.Image(encoded=jpeg[: len(jpeg) // 2]), "IMAGE_TRUNCATED"),
        "half-png": (pb.Image(encoded=photos[0][: len(photos[0]) // 2]), "IMAGE_TRUNCATED"),
        "bomb": (pb.Image(encoded=png_header(50_000, 50_000)), "IMAGE_TOO_MANY_PIXELS"),
        "wide": (pb.Image(encoded=png_header(65_501, 1)), "IMAGE_TOO_MANY_PIXELS"),
        "large": (pb.Image(encoded=bytes((63 << 20) + 1)), "IMAGE_TOO_MANY_BYTES"),
        "raw-short": (_raw(8, 8, 191), "IMAGE_WRONG_LENGTH"),
        "raw-long": (_raw(8, 8, 193), "IMAGE_WRONG_LENGTH"),
        "raw-no-crop": (pb.Image(raw=pb.RawImage(height=8, width=8, rgb=bytes(192), is_crop=True)), "IMAGE_NO_CROP"),
        "raw-empty": (_raw(0, 8, 0), "IMAGE_NO_PIXELS"),
        "raw-bomb": (_raw(50_000, 50_000, 3), "IMAGE_TOO_MANY_PIXELS"),
        "raw-overflow": (_raw(2**32 - 1, 2**32 - 1, 3), "IMAGE_TOO_MANY_PIXELS"),
    }


CASES = ["empty", "no-source", "text", "gif", "half-jpeg", "half-png", "bomb", "wide", "large", "raw-short", "raw-long",
         "raw-no-crop", "raw-empty", "raw-bomb", "raw-overflow"]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_image_fails_alone(stub, photos, bad_images, case):
    """A bad image gives INVALID_ARGUMENT and its reason in its place; the others, and the next request, are answered."""
    image, reason = bad_images[case]
    good = pb.Image(encoded=photos[0])
    response = stub.Classify(pb.ClassifyRequest(images=[good, image, good]))
    assert [r.WhichOneof("outcome") for r in response.results] == ["classification", "error", "classification"]
    error = response.results[1].error
    assert (error.code, error.reason) == (INVALID.value[0], reason)
    assert error.message
    assert "\n" not in error.message
    alone = stub.Classify(pb.ClassifyRequest(images=[good]))
    expected = alone.results[0].classification
    for n in (0, 2):
        assert response.results[n].classification.label == expected.label
        assert response.results[n].classification.score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.parametrize("case", ["no-source", "bomb", "raw-short"])
def test_a_bad_image_cannot_be_described(stub, photos, bad_images, case):
    """Describe refuses the same images with the same words: one decoder serves both."""
    image, reason = bad_images[case]
    response = stub.Describe(pb.DescribeRequest(images=[image, pb.Image(encoded=photos[0])]))
    assert (response.results[0].error.code, response.results[0].error.reason) == (INVALID.value[0], reason)
    assert len(response.results[1].descriptor_vector.values) == 128


def test_unusual_photos_are_answered(stub, encode, photos, bundle):
    """16-bit and CMYK photos, EXIF turns, palettes and transparency are photos like any other."""
    picture = Image.open(io.BytesIO(photos[0])).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    grey16 = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    files = [
        encode(grey16), encode(picture.convert("CMYK"), "JPEG", quality=95), encode(picture, "WEBP", lossless=True),
        encode(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=turned),
        encode(picture.convert("P")), encode(picture.convert("RGBA")), encode(picture),
    ]  # fmt: skip
    response = stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=data) for data in files]))
    labels = [result.classification.label for result in response.results]
    assert labels == [labels[-1]] * len(files)
    upright = crop_encoded(files[-1], bundle.manifest.preprocess).astype(int)
    assert np.abs(crop_encoded(files[3], bundle.manifest.preprocess) - upright).mean() < 6


REFUSED_REQUESTS = {
    "model": ({"model": {"name": "absent"}}, grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN"),
    "version": ({"model": {"name": "digits", "version": 7}}, grpc.StatusCode.NOT_FOUND, "VERSION_UNKNOWN"),
    "path-as-name": ({"model": {"name": "../digits"}}, INVALID, None),
    "long-name": ({"model": {"name": "a" * 65}}, INVALID, None),
    "scorer": ({"scorer": 99}, INVALID, "SCORER_UNKNOWN"),
    "negative-scorer": ({"scorer": -1}, INVALID, "SCORER_UNKNOWN"),
    "no-images": ({"images": []}, INVALID, "REQUEST_COUNT"),
    "too-many-images": ({"images": [pb.Image(encoded=b"x")] * 257}, INVALID, "REQUEST_COUNT"),
}


@pytest.mark.parametrize("case", REFUSED_REQUESTS)
def test_a_wrong_request_fails_as_a_whole(stub, failure, request_of, photos, case):
    """A wrong request gets its status, reason and id, and the next one is answered."""
    fields, code, reason = REFUSED_REQUESTS[case]
    fields = {"images": [pb.Image(encoded=photos[0])]} | fields
    error = failure(lambda: stub.Classify(pb.ClassifyRequest(**fields)))
    assert error.code() is code
    assert reason is None or _reason(error) == reason
    assert len(dict(error.trailing_metadata())["penult-request-id"]) == 16
    assert stub.Classify(request_of(photos[0])).results[0].classification.label


@pytest.mark.parametrize("method", ["Describe", "Score", "GetModel"])
def test_an_unknown_model_is_not_found_by_any_method(stub, failure, method):
    """Every method that names a model answers NOT_FOUND for one that is not served."""
    kinds = {"Describe": pb.DescribeRequest, "Score": pb.ScoreRequest, "GetModel": pb.GetModelRequest}
    error = failure(lambda: getattr(stub, method)(kinds[method](model={"name": "absent"})))
    assert (error.code(), _reason(error)) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")


@pytest.mark.parametrize("count", [0, 257])
def test_describe_counts_its_images(stub, failure, count):
    """Describe takes 1 to 256 images, as Classify does."""
    error = failure(lambda: stub.Describe(pb.DescribeRequest(images=[pb.Image(encoded=b"x")] * count)))
    assert (error.code(), _reason(error)) == (INVALID, "REQUEST_COUNT")


def test_256_images_are_one_request(stub, photos):
    """The documented most images per request are answered, in order."""
    images = [pb.Image(encoded=photos[n % len(photos)]) for n in range(256)]
    results = stub.Classify(pb.ClassifyRequest(images=images), timeout=120).results
    labels = [result.classification.label for result in results]
    assert labels[:100] == labels[100:200]
    assert set(labels) == set("0123456789")


BAD_DESCRIPTORS = {
    "short": ([0.5] * 127, "", INVALID, "DESCRIPTOR_LENGTH"),
    "long": ([0.5] * 129, "", INVALID, "DESCRIPTOR_LENGTH"),
    "empty": ([], "", INVALID, "DESCRIPTOR_LENGTH"),
    "nan": ([float("nan")] + [0.5] * 127, "", INVALID, "DESCRIPTOR_VALUES"),
    "inf": ([0.5] * 127 + [float("inf")], "", INVALID, "DESCRIPTOR_VALUES"),
    "huge": ([3e38] * 128, "", INVALID, "DESCRIPTOR_VALUES"),
    "other-model": ([0.5] * 128, "0" * 64, grpc.StatusCode.FAILED_PRECONDITION, "DESCRIPTOR_FINGERPRINT"),
}


@pytest.mark.parametrize("case", BAD_DESCRIPTORS)
def test_a_bad_descriptor_fails_alone(stub, case):
    """A descriptor of another length, model or of impossible numbers fails in its place, between two that are scored."""
    values, fingerprint, code, reason = BAD_DESCRIPTORS[case]
    good = pb.Descriptor(values=[0.5] * 128)
    bad = pb.Descriptor(values=values, fingerprint=fingerprint)
    results = stub.Score(pb.ScoreRequest(descriptors=[good, bad, good])).results
    assert (results[1].error.code, results[1].error.reason) == (code.value[0], reason)
    assert results[0].classification.label == results[2].classification.label != ""


@pytest.mark.parametrize("count", [0, 4097])
def test_score_counts_its_descriptors(stub, failure, count):
    """Score takes 1 to 4096 descriptors."""
    error = failure(lambda: stub.Score(pb.ScoreRequest(descriptors=[pb.Descriptor(values=[1])] * count)))
    assert (error.code(), _reason(error)) == (INVALID, "REQUEST_COUNT")


def test_a_model_without_an_svm_says_so(bundle, tmp_path, start_server, connect, failure, photos, request_of):
    """SVM asked of a model without one is FAILED_PRECONDITION; the dense head, also by default, answers."""
    files = {"model.onnx": bundle.onnx, "golden.npz": bundle.goldens.to_bytes()}
    publish(tmp_path / "digits", replace(bundle.manifest, default_scorer="dense", class_maps=None), files)
    stub = penult_pb2_grpc.PenultServiceStub(connect(start_server(tmp_path).target))
    for act in (
        lambda: stub.Classify(request_of(photos[0], scorer=pb.SCORER_SVM)),
        lambda: stub.Score(pb.ScoreRequest(descriptors=[pb.Descriptor(values=[0.5] * 128)])),
    ):
        error = failure(act)
        assert (error.code(), _reason(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "SCORER_MISSING")
    response = stub.Classify(request_of(photos[0]))
    assert (response.scorer, response.results[0].classification.label) == (pb.SCORER_DENSE, "0")
    assert list(stub.GetModel(pb.GetModelRequest()).model.scorers) == [pb.SCORER_DENSE]


def test_a_model_tells_all_about_itself(stub, bundle):
    """GetModel and ListModels repeat the manifest, the scorers and the provider."""
    model = stub.GetModel(pb.GetModelRequest(model={"name": "digits", "version": 1})).model
    manifest = bundle.manifest
    assert (model.version.name, model.version.version) == ("digits", 1)
    assert model.version.fingerprint == manifest.fingerprint
    assert (model.architecture, tuple(model.classes)) == (manifest.architecture, manifest.classes)
    assert (model.descriptor_length, model.provider, model.is_signed) == (128, "CPUExecutionProvider", False)
    assert list(model.scorers) == [pb.SCORER_DENSE, pb.SCORER_SVM]
    assert model.default_scorer == {"dense": pb.SCORER_DENSE, "svm": pb.SCORER_SVM}[manifest.default_scorer]
    spec = manifest.preprocess
    assert (model.preprocess.resize, model.preprocess.crop) == (spec.resize, spec.crop)
    assert model.preprocess.interpolation == spec.interpolation
    np.testing.assert_allclose(model.preprocess.mean, spec.mean, rtol=1e-6)
    np.testing.assert_allclose(model.preprocess.std, spec.std, rtol=1e-6)
    assert list(stub.ListModels(pb.ListModelsRequest()).models) == [model]


METHODS = ["Classify", "Describe", "Score", "ListModels", "GetModel"]


@pytest.mark.parametrize("method", METHODS)
def test_random_bytes_never_end_in_unknown_or_internal(server, connect, photos, request_of, method):
    """Two hundred random or damaged messages per method get OK or the status of the table, and the server goes on."""
    call = connect(server.target).unary_unary(f"/penult.v1.PenultService/{method}")
    numbers, good = random.Random(method), request_of(photos[0]).SerializeToString()
    codes = set()
    for n in range(200):
        data = bytearray(good) if n % 2 else bytearray(numbers.randbytes(numbers.randrange(1, 60)))
        for _ in range(n % 7):
            data[numbers.randrange(len(data))] = numbers.randrange(256)
        try:
            call(bytes(data), timeout=120)
            codes.add(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.add(error.code())
    assert INVALID in codes
    assert codes <= {grpc.StatusCode.OK, INVALID, grpc.StatusCode.NOT_FOUND}
