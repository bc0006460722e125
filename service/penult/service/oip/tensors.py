"""Convert tensors of the Open Inference Protocol to images and back, after a check of their sizes.

A request has one of two inputs. `image` is BYTES [N] or [N, 1], encoded images. `pixels` is UINT8 or FP32
[N, crop, crop, 3], RGB in 0…255; a single image may omit the first dimension.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import Floats
from penult.service.errors import InvalidRequest
from penult.service.inference.decoder import EncodedPhoto, Photo, RawPhoto
from penult.service.oip.encoded_images import HEAD_BYTES, files_of, is_text

IMAGE, PIXELS = "image", "pixels"
BYTES, UINT8, FP32, BOOL = "BYTES", "UINT8", "FP32", "BOOL"
# MLServer's clients set the input parameter content_type to this for images in base64.
BASE64 = "base64"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor of a model is; -1 stands for the number of images."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor of a request.

    `data` is its raw bytes or its values, one by one. `is_base64` says that the client declared base64.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Sequence[Any]
    is_base64: bool = False


def read_photos(inputs: Sequence[Tensor], crop: int, most_images: int) -> list[Photo]:
    """Return the images of a request, 1 to `most_images`; raise InvalidRequest."""
    names = [tensor.name for tensor in inputs]
    if unknown := sorted(set(names) - {IMAGE, PIXELS}):
        raise InvalidRequest("INPUT_UNKNOWN", f"there is no input {unknown[0][:64]!r}; give {IMAGE} or {PIXELS}")
    if len(inputs) != 1:
        raise InvalidRequest("INPUT_COUNT", f"give one input, {IMAGE} or {PIXELS}; this request has {len(inputs)}")
    tensor = inputs[0]
    allowed = (BYTES,) if tensor.name == IMAGE else (UINT8, FP32)
    if tensor.datatype not in allowed:
        raise InvalidRequest("INPUT_DATATYPE", f"{tensor.name} is {' or '.join(allowed)}; this request says otherwise")
    count = _count(tensor, crop)
    if not 1 <= count <= most_images:
        raise InvalidRequest("REQUEST_COUNT", f"a request takes 1 to {most_images} images; this one {count}")
    return _encoded(tensor, count) if tensor.name == IMAGE else _pixels(tensor, crop)


def has_text(inputs: Sequence[Tensor], most_images: int) -> bool:
    """Return whether one of the first `most_images` images is text, which takes a millisecond per MB to decode."""
    return any(
        tensor.is_base64 or any(map(is_text, _heads(tensor.data, most_images)))
        for tensor in inputs
        if tensor.datatype == BYTES
    )


def _heads(data: bytes | Sequence[Any], most: int) -> Iterator[Any]:
    """Yield the first bytes of at most `most` elements of BYTES; _split() rejects wrong lengths."""
    if not isinstance(data, bytes):
        yield from islice(data, most)
        return
    at = 0
    for _ in range(most):
        begin = at + _LENGTH.size
        if begin > len(data):
            return
        yield data[begin : begin + HEAD_BYTES]
        at = begin + _LENGTH.unpack_from(data, at)[0]


def _count(tensor: Tensor, crop: int) -> int:
    """Return the number of images in a shape; raise InvalidRequest."""
    shape, wanted = tensor.shape, (crop, crop, 3)
    if tensor.name == IMAGE and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        return shape[0]
    if tensor.name == PIXELS and shape in (wanted, (shape[:1] + wanted)):
        return 1 if shape == wanted else shape[0]
    sides = "N] or [N, 1" if tensor.name == IMAGE else ", ".join(map(str, ("N", *wanted)))
    raise InvalidRequest("INPUT_SHAPE", f"{tensor.name} has shape [{sides}]; this one {list(shape[:8])}")


def as_strings(texts: Sequence[bytes]) -> bytes:
    """Return BYTES elements in raw form: each behind its length, 4 bytes, the lowest first."""
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def classification(values: Floats, classes: Sequence[str], count: int) -> list[list[bytes]]:
    """Return, per row of values [N, classes], the `count` best as "value:index:label" (Triton's extension)."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    names = classes if len(classes) == values.shape[1] else [""] * values.shape[1]
    return [
        [f"{values[row, c]:f}:{c}:{names[c]}".removesuffix(":").encode() for c in columns]
        for row, columns in enumerate(order)
    ]


def _encoded(tensor: Tensor, count: int) -> list[Photo]:
    items = _split(tensor.data, count) if isinstance(tensor.data, bytes) else list(tensor.data)
    if len(items) != count:
        raise _wrong_size(tensor, count, len(items) if len(items) < count else f"more than {count}")
    return [EncodedPhoto(file) for file in files_of(items, tensor.is_base64)]


def _split(data: bytes, most: int) -> list[bytes]:
    """Return the elements of BYTES in raw form, `most` and one more at most: empty ones could be millions.

    Raises InvalidRequest if lengths lead past the end.
    """
    items: list[bytes] = []
    at = 0
    while at < len(data) and len(items) <= most:
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(data, at)[0] if begin <= len(data) else len(data) + 1
        if at > len(data):
            raise InvalidRequest("INPUT_SIZE", f"{IMAGE} ends within an element; each stands behind its 4-byte length")
        items.append(data[begin:at])
    return items


def _pixels(tensor: Tensor, crop: int) -> list[Photo]:
    values = _numbers(tensor)
    if values.size != math.prod(tensor.shape):
        raise _wrong_size(tensor, math.prod(tensor.shape), values.size)
    if tensor.datatype == FP32 or values.dtype != np.uint8:
        # NaN compares as false to everything.
        if not ((values >= 0) & (values <= 255)).all():
            raise InvalidRequest("INPUT_VALUES", f"{PIXELS} must lie within 0 and 255; they are not normalised by you")
        values = np.rint(values).astype(np.uint8)
    rgb, size = values.tobytes(), crop * crop * 3
    return [RawPhoto(crop, crop, rgb[at : at + size], is_crop=True) for at in range(0, len(rgb), size)]


def _numbers(tensor: Tensor) -> NDArray[Any]:
    if isinstance(tensor.data, bytes):
        if tensor.datatype == UINT8:
            return np.frombuffer(tensor.data, dtype=np.uint8)
        if len(tensor.data) % 4:
            raise InvalidRequest("INPUT_SIZE", f"{tensor.name} ends within a number; FP32 has 4 bytes each")
        return np.frombuffer(tensor.data, dtype="<f4")
    return np.asarray(tensor.data, dtype=np.float32)


def _wrong_size(tensor: Tensor, wanted: int, found: int | str) -> InvalidRequest:
    return InvalidRequest("INPUT_SIZE", f"{tensor.name} holds {found} elements where its shape says {wanted}")
