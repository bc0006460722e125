"""Tensors of the Open Inference Protocol to photos and back: plain values, checked for size before anything is made.

Inputs: `image`, BYTES [N], encoded photos; or `pixels`, UINT8 or FP32 [N, crop, crop, 3], RGB in 0…255.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import Floats
from penult.service.decoding import EncodedPhoto, Photo, RawPhoto
from penult.service.errors import InvalidRequest

IMAGE, PIXELS = "image", "pixels"
BYTES, UINT8, FP32 = "BYTES", "UINT8", "FP32"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Tensor:
    """A tensor as it came; `data` is its raw bytes, or its values one by one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Sequence[Any]


def read_photos(inputs: Sequence[Tensor], crop: int, most_images: int) -> list[Photo]:
    """Return the photos of a request, 1 to `most_images`; raise InvalidRequest."""
    names = [tensor.name for tensor in inputs]
    if unknown := sorted(set(names) - {IMAGE, PIXELS}):
        raise InvalidRequest("INPUT_UNKNOWN", f"there is no input {unknown[0][:64]!r}; give {IMAGE} or {PIXELS}")
    if len(inputs) != 1:
        raise InvalidRequest("INPUT_COUNT", f"give one input, {IMAGE} or {PIXELS}; this request has {len(inputs)}")
    tensor = inputs[0]
    allowed = (BYTES,) if tensor.name == IMAGE else (UINT8, FP32)
    if tensor.datatype not in allowed:
        raise InvalidRequest("INPUT_DATATYPE", f"{tensor.name} is {' or '.join(allowed)}; this request says otherwise")
    wanted = () if tensor.name == IMAGE else (crop, crop, 3)
    if len(tensor.shape) != 1 + len(wanted) or tensor.shape[1:] != wanted:
        sides = ", ".join(map(str, ("N", *wanted)))
        raise InvalidRequest("INPUT_SHAPE", f"{tensor.name} has shape [{sides}]; this one {list(tensor.shape[:8])}")
    if not 1 <= tensor.shape[0] <= most_images:
        raise InvalidRequest("REQUEST_COUNT", f"a request takes 1 to {most_images} images; this one {tensor.shape[0]}")
    return _encoded(tensor) if tensor.name == IMAGE else _pixels(tensor, crop)


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


def _encoded(tensor: Tensor) -> list[Photo]:
    items = _split(tensor.data) if isinstance(tensor.data, bytes) else list(tensor.data)
    if len(items) != tensor.shape[0]:
        raise _wrong_size(tensor, tensor.shape[0], len(items))
    return [EncodedPhoto(item) for item in items]


def _split(data: bytes) -> list[bytes]:
    """Return the elements of BYTES in raw form; raise InvalidRequest where lengths lead past the end."""
    items, at = [], 0
    while at < len(data):
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


def _wrong_size(tensor: Tensor, wanted: int, found: int) -> InvalidRequest:
    return InvalidRequest("INPUT_SIZE", f"{tensor.name} holds {found} elements where its shape says {wanted}")
