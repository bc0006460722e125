"""Read requests and write answers of the Open Inference Protocol over HTTP: JSON, then raw tensors on request.

The binary-data extension is Triton's: tensors with a `binary_data_size` follow the JSON, in its order. In JSON, an
encoded image is base64, because JSON has no bytes. A null member counts as absent, because clients with typed classes
write all optional members. The codec checks every field, and does not depend on HTTP.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np

from penult.service.errors import InvalidRequest
from penult.service.oip.abstained import MAX_ERROR, max_error_of
from penult.service.oip.dataplane import InferAnswer, InferRequest, Output, Wanted
from penult.service.oip.encoded_images import files_of
from penult.service.oip.tensors import BASE64, BYTES, FP32, UINT8, Tensor

# Parsed JSON takes up to twenty times its size; larger requests must use the binary form.
JSON_MAX_BYTES = 16 << 20
_MAX_SIDES = 8
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class JsonRequest:
    """One request, its id, the form of its answer, and the client's timeout in seconds."""

    infer: InferRequest
    id: str
    binary: Collection[str]
    is_binary_by_default: bool
    timeout_s: float

    def is_binary(self, output: str) -> bool:
        """Return whether an output follows the JSON as raw bytes."""
        return output in self.binary or (self.is_binary_by_default and not self.infer.outputs)


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body, {} if it is empty or null; raise InvalidRequest."""
    if len(body) > JSON_MAX_BYTES:
        limit = f"{JSON_MAX_BYTES >> 20} MiB"
        raise InvalidRequest("JSON_SIZE", f"the JSON part exceeds {limit}; send tensors in binary form behind it")
    try:
        found = json.loads(body or b"{}", parse_constant=_no_number)
        found = {} if found is None else found
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InvalidRequest("JSON", "the JSON part cannot be read") from error
    if not isinstance(found, dict):
        raise InvalidRequest("JSON", "the JSON part must be an object")
    return found


def read_request(body: bytes, json_bytes: int | None, model: str, version: str) -> JsonRequest:
    """Return the request of a body, of which the first `json_bytes` bytes are JSON, or all if None.

    Raises InvalidRequest.
    """
    size = len(body) if json_bytes is None else json_bytes
    if not 0 <= size <= len(body):
        raise InvalidRequest("JSON_SIZE", "Inference-Header-Content-Length is not the size of the JSON part")
    fields = read_object(body[:size])
    parameters: dict[str, Any] = get(fields, "parameters", {})
    wanted = [_Wanted.read(each) for each in _objects(fields, "outputs")]
    by_default = get(parameters, "binary_data_output", False)
    binary = {each.name for each in wanted if (by_default if each.is_binary is None else each.is_binary)}
    timeout_us = get(parameters, "timeout", 0)
    infer = InferRequest(
        model, version, _tensors(_objects(fields, "inputs"), body, size),
        [Wanted(each.name, each.classes) for each in wanted], get(parameters, "scorer", ""),
        max_error_of(parameters.get(MAX_ERROR, 0.0)),
    )  # fmt: skip
    return JsonRequest(
        infer, get(fields, "id", ""), binary, by_default, timeout_us / 1e6 if timeout_us > 0 else math.inf
    )


def write_answer(answer: InferAnswer, request: JsonRequest) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the size of its JSON part if raw tensors follow it, else None."""
    binary = [output for output in answer.outputs if request.is_binary(output.name)]
    head = {
        "model_name": answer.model.name,
        "model_version": str(answer.model.version),
        **({"id": request.id} if request.id else {}),
        "parameters": {"fingerprint": answer.model.fingerprint, "scorer": answer.scorer},
        "outputs": [_output_json(output, request.is_binary(output.name)) for output in answer.outputs],
    }
    text = json.dumps(head, allow_nan=False).encode()
    return b"".join([text, *(output.raw for output in binary)]), len(text) if binary else None


def get(fields: dict[str, Any], key: str, default: _Value) -> _Value:
    """Return a field, or the default if it is absent or null; raise InvalidRequest if its type differs."""
    value = default if fields.get(key) is None else fields[key]
    if type(value) is not type(default):  # exactly: for Python, true is an int
        names = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object", list: "a list"}
        raise InvalidRequest("JSON", f"{key} must be {names[type(default)]}")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise InvalidRequest("JSON", f"{key} is too large a number")
    return value


@dataclass(frozen=True)
class _Wanted:
    name: str
    classes: int
    is_binary: bool | None

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "_Wanted":
        parameters: dict[str, Any] = get(fields, "parameters", {})
        is_binary = get(parameters, "binary_data", False) if parameters.get("binary_data") is not None else None
        return cls(get(fields, "name", ""), get(parameters, "classification", 0), is_binary)


def _objects(fields: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found: list[Any] = get(fields, key, [])
    if not all(isinstance(each, dict) for each in found):
        raise InvalidRequest("JSON", f"{key} must be a list of objects")
    return found


def _tensors(inputs: list[dict[str, Any]], body: bytes, at: int) -> list[Tensor]:
    """Return the tensors; raw ones follow each other in the body, from byte `at` on."""
    tensors = []
    for fields in inputs:
        parameters: dict[str, Any] = get(fields, "parameters", {})
        name, datatype, shape = get(fields, "name", ""), get(fields, "datatype", ""), _shape(fields)
        if parameters.get("binary_data_size") is not None:
            size = get(parameters, "binary_data_size", 0)
            if size < 0 or at + size > len(body) or fields.get("data") is not None:
                raise InvalidRequest("BINARY_SIZE", "binary_data_size is not the size of what stands behind the JSON")
            data: bytes | list[Any] = body[at : at + size]
            at += size
        else:
            data = _values(get(fields, "data", []), datatype, shape)
        is_base64 = isinstance(data, bytes) and parameters.get("content_type") == BASE64
        tensors.append(Tensor(name, datatype, shape, data, is_base64))
    if at != len(body):
        raise InvalidRequest("BINARY_SIZE", f"{len(body) - at} bytes behind the JSON belong to no input")
    return tensors


def _shape(fields: dict[str, Any]) -> tuple[int, ...]:
    shape: list[Any] = get(fields, "shape", [])
    if len(shape) > _MAX_SIDES:
        raise InvalidRequest("INPUT_SHAPE", f"no input has {len(shape)} sides")
    return tuple(get({"shape": side}, "shape", 0) for side in shape)


def _values(data: list[Any], datatype: str, shape: tuple[int, ...]) -> Any:
    """Return the elements in a flat list or array: bytes of images, or numbers. Data may be flat or nested by shape."""
    if datatype == BYTES:
        return _images(data)
    if datatype not in (UINT8, FP32):
        return []  # no input has this datatype; read_photos() rejects it
    try:
        values = np.array(data)
    except ValueError:  # ragged
        values = np.zeros(0, dtype=object)
    if values.dtype.kind not in "iuf" or (values.ndim > 1 and values.shape != shape):
        raise InvalidRequest("INPUT_CONTENTS", "data must be numbers, flat or nested as the shape says")
    return values.ravel()


def _images(data: list[Any]) -> list[bytes]:
    """Return the bytes of image files; each may be in a list of its own."""
    flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
    if not all(isinstance(item, str) for item in flat):
        raise InvalidRequest("INPUT_CONTENTS", "in JSON, an encoded image is a text in base64, or a data URI")
    return files_of(flat)


def _output_json(output: Output, is_binary: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
    if is_binary:
        return found | {"parameters": {"binary_data_size": len(output.raw)}}
    if isinstance(output.values, np.ndarray):
        return found | {"data": output.values.ravel().tolist()}
    return found | {"data": [text.decode() for text in output.texts]}


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)
