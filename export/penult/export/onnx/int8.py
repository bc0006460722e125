"""Convert a float ONNX model to int8 by static quantisation, with ranges measured on training photos.

Convolutions, residual additions and the max pooling between them use integers (Jacob et al. 2018). Scaling and
normalising before them stay float, and so do the mean over places, which is the descriptor, and the dense head after
them. These take 1 % of the time; in 8 bits the error of the logits was 0.16 of the largest value instead of 0.07.

Each choice was measured on resnet18 with 224 pixels on one AVX2 thread, where float takes 41 ms per photo:

- Weights have 7 bits (`reduce_range`). Without VNNI, x86 multiplies unsigned by signed bytes in pairs whose sum must
  fit into 16 bits. 255 x 64 x 2 fits; 255 x 127 x 2 does not and is truncated without an error. With 8 bits, the error
  of descriptors was 0.19 of the largest value instead of 0.07. They differed by 0.09 between AVX2 and SSE 4.1 (a
  Nehalem, emulated by QEMU), so goldens of one CPU would fail on another. With 7 bits they were bit-identical. Both
  took 21.6 ms.
- Activations are unsigned and weights signed (21.6 ms). Both unsigned never saturate, but took 30 ms; both signed 37.
- A scale per channel takes as long as one per tensor; the error of descriptors was 0.07 instead of 0.11.
- The first convolution is quantised too; in float it took 4 ms more.

Of the 21.6 ms, the integer convolutions take 20.5. So without VNNI no other change can gain much more than this factor
of 1.9. Quantising residual additions and pooling with the convolutions saved 1.3 ms of conversions. Cutting the image
into 2 x 2 blocks before the first convolution saved nothing. With VNNI, on an EPYC with AVX-512, int8 takes 5.2 instead
of 16.7 ms, a factor of 3.2.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Pixels
from penult.export.errors import QuantizeError

_OPERATORS = ["Conv", "Relu", "Add", "MaxPool"]
# The manifest records the method.
METHOD = {"ranges": "min-max", "activations": "uint8", "weights": "int8 per channel", "reduce_range": True}


class _Photos(CalibrationDataReader):
    """Passes batches to onnxruntime until there are none left."""

    def __init__(self, name: str, batches: Iterable[Pixels]) -> None:
        self._name, self._batches = name, iter(batches)

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def to_int8(data: bytes, manifest: Manifest, batches: Iterable[Pixels]) -> bytes:
    """Return the int8 model of a float one, with the same input and outputs.

    Args:
        data: The float model.
        manifest: Names its input.
        batches: Photos, uint8 [n, crop, crop, 3], that set the ranges. Serving clips values outside of them.

    Raises:
        QuantizeError: A convolution would stay float, or inputs or outputs would change.
    """
    model = onnx.load_from_string(data)
    with tempfile.TemporaryDirectory(prefix="penult-int8-") as folder:
        given, prepared, quantized = (Path(folder, f"{name}.onnx") for name in ("given", "prepared", "int8"))
        given.write_bytes(data)
        # Symbolic inference would need SymPy and finds nothing more here.
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _Photos(manifest.input_name, batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        made = quantized.read_bytes()
    _check(model, onnx.load_from_string(made))
    return made


def _check(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Raise QuantizeError if inputs or outputs changed, a second file is needed, or a convolution is float."""
    onnx.checker.check_model(after)
    if list(_signature(before.graph)) != list(_signature(after.graph)):
        raise QuantizeError(
            "INT8_SHAPE", "the int8 model has other inputs or outputs; report this, nothing is published"
        )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in after.graph.initializer):
        raise QuantizeError("INT8_FILES", "the int8 model would need a second file; report this, nothing is published")
    made_by = {name: node.op_type for node in after.graph.node for name in node.output}
    convolutions = [node for node in after.graph.node if node.op_type == "Conv"]
    floats = [node for node in convolutions if {made_by.get(name) for name in node.input[:2]} != {"DequantizeLinear"}]
    if floats or not convolutions:
        raise QuantizeError(
            "INT8_FLOAT", f"{len(floats)} of {len(convolutions)} convolutions would stay float; serve the float model"
        )


def _signature(graph: onnx.GraphProto) -> Iterator[tuple[Any, ...]]:
    """Yield name, element type and shape of every input and output."""
    for value in (*graph.input, *graph.output):
        tensor = value.type.tensor_type
        yield value.name, tensor.elem_type, *(size.dim_param or size.dim_value for size in tensor.shape.dim)
