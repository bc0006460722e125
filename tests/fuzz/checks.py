"""What the fuzzers hold, whatever the bytes: an image or an ImageError, a message or a PenultError; nothing else."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from penult.bundle.errors import ImageError, PenultError
from penult.bundle.formats import FORMATS
from penult.bundle.guards import ImageLimits
from penult.bundle.preprocess import Preprocess, crop_encoded, crop_rgb, decode, ready_crop
from penult.oip import grpc_service_pb2 as oip
from penult.service.errors import CODES
from penult.service.grpc import converters
from penult.service.inference.decoder import RawPhoto
from penult.service.oip import dataplane
from penult.service.oip import grpc_servicer as oip_servicer
from penult.service.oip.json_codec import read_request
from penult.service.oip.tensors import classification, read_photos
from penult.v1 import penult_pb2 as pb

# Small, so that a fuzzer tries many: the limits themselves are the corpus's.
LIMITS = ImageLimits(max_bytes=64 << 10, max_pixels=1 << 18, max_side=1024, max_scans=16, formats=FORMATS)
SPEC = Preprocess(resize=16, crop=8)


def check_decoder(data: bytes) -> None:
    """Decode in both ways; raise AssertionError, or what should not have been raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
        try:
            crop = crop_encoded(data, SPEC, LIMITS)
        except ImageError as error:
            _check_told(error)
            return
        assert crop.shape == (8, 8, 3), crop.shape
        assert crop.dtype == np.uint8, crop.dtype
        whole = decode(data, LIMITS)
    assert whole.mode == "RGB", whole.mode
    assert max(whole.size) <= LIMITS.max_side, whole.size


def check_message(data: bytes) -> None:
    """Take a message apart as the service does; the first byte tells which it is."""
    if not data:
        return
    try:
        _READERS[data[0] % len(_READERS)](data[1:])
    except PenultError as error:
        _check_told(error)


def _check_told(error: PenultError) -> None:
    assert type(error) in CODES, type(error)
    assert error.reason.replace("_", "").isalpha(), error.reason
    assert error.reason.isupper(), error.reason
    assert error.message.isprintable(), error.message  # one line, and nothing that gRPC could not send


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except Exception:  # the interceptor's part: MESSAGE_MALFORMED
        return kind()


def _photos(images: Sequence[pb.Image]) -> None:
    for image in images:
        found = converters.photo(image)
        if isinstance(found, RawPhoto):
            read = ready_crop if found.is_crop else crop_rgb
            try:
                read(found.rgb, found.height, found.width, SPEC, LIMITS)
            except ImageError as error:
                _check_told(error)


def _classify(data: bytes) -> None:
    request = _parsed(pb.ClassifyRequest, data)
    converters.SCORERS.get(request.scorer)
    _photos(request.images)
    converters.query(request.neighbours)
    converters.check_count(len(request.images), 256, "images")


def _describe(data: bytes) -> None:
    _photos(_parsed(pb.DescribeRequest, data).images)


def _score(data: bytes) -> None:
    for descriptor in _parsed(pb.ScoreRequest, data).descriptors:
        numbers = converters.values(descriptor, _Model)
        if isinstance(numbers, PenultError):
            _check_told(numbers)
        else:
            assert np.isfinite(numbers).all()


def _lookup(data: bytes) -> None:
    request = _parsed(pb.LookupRequest, data)
    _photos(request.images)
    converters.query(request.query)


def _put(data: bytes) -> None:
    request = _parsed(pb.PutItemsRequest, data)
    converters.field_types(request.fields)
    for item in request.items:
        converters.item(item, np.zeros(3, np.float32))


def _infer(data: bytes) -> None:
    _infer_plain(oip_servicer._request(_parsed(oip.ModelInferRequest, data)))


def _infer_json(data: bytes) -> None:
    """The byte in front is the size of the JSON part; 255 stands for all."""
    size = data[0] if data and data[0] != 255 else None
    request = read_request(data[1:], size, "light", "")
    assert request.timeout_s > 0
    assert math.isinf(request.timeout_s) or request.timeout_s < 1e13
    json.dumps(request.id).encode()
    _infer_plain(request.infer)


def _infer_plain(request: dataplane.InferRequest) -> None:
    scores = np.array([[0.5, 0.25]], np.float32)
    for wanted in request.outputs:
        dataplane._check_output(_Model, wanted)
        if wanted.classes:
            classification(scores, ("a", "b"), wanted.classes)
    for photo in read_photos(request.inputs, 1, 8):
        if isinstance(photo, RawPhoto):
            assert ready_crop(photo.rgb, photo.height, photo.width, Preprocess(1, 1)).shape == (1, 1, 3)


class _Manifest:
    descriptor_length, has_one_class, operating_points, class_maps = 3, False, (), None


class _Model:
    """What reading a message asks of a model."""

    name, version, fingerprint, scorers, manifest = "light", 1, "ab", ("dense", "svm"), _Manifest
    mapper = None


_READERS: tuple[Callable[[bytes], None], ...] = (_classify, _describe, _score, _lookup, _put, _infer, _infer_json)
