"""Convert a float ONNX model to a float16 body, which halves its size and uses tensor cores on GPUs.

Casting, scaling and normalising pixels stay float32, and so do the two outputs. One Cast enters the body, and one
leaves it per output. Descriptors and logits of resnet18, mobilenet_v3_small and tiny5 (random weights, on a CPU)
changed by 3e-4 to 7e-4 of the largest value.

Existing converters do not work here (onnxruntime 1.31.1, onnx 1.23.2):
- onnxruntime.transformers.float16 casts to float16 and back around every blocked node (keep_io_types,
  node_block_list). So each step of normalising is rounded, with 12 casts instead of 4. For tiny5, whose mean and
  deviation are one initializer, it creates two nodes with the same name, which onnxruntime rejects. Importing it also
  adds its own folder to sys.path, with modules named `benchmark`, `metrics` and `optimizer`.
- onnxconverter-common 1.16.0 makes models that cannot be loaded if the input is cast from uint8 (ceilings.md, 1).
"""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from penult.export.errors import ParityError

LARGEST = float(np.finfo(np.float16).max)
# The body begins with the first of these after the input.
_BODY = {"Conv", "Gemm", "MatMul"}
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}


def to_float16(data: bytes) -> bytes:
    """Return the model with a float16 body and the same input, outputs and dynamic batch size.

    Weights are rounded to the nearest float16.

    Raises:
        ParityError: A weight is beyond 65504, or the model is already quantised or float16.
    """
    model = onnx.load_from_string(data)
    graph = model.graph
    _check_convertible(model)
    floats = _float_tensors(model)
    ends, body = _split(graph)
    _convert_weights(graph, ends, body)
    for node in body:
        _convert_attributes(node)
    casts_in = _cast_into(graph, ends, body, floats)
    casts_out = _cast_out(graph, body)
    del graph.node[:]
    graph.node.extend([*ends, *casts_in, *body, *casts_out])
    del graph.value_info[:]  # they have the old types; readers infer the new ones
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _check_convertible(model: ModelProto) -> None:
    if {node.op_type for node in model.graph.node} & _QUANTIZED:
        raise ParityError("HALF", "this model is already int8; convert the float version instead")
    if any(weight.data_type == TensorProto.FLOAT16 for weight in model.graph.initializer):
        raise ParityError("HALF", "this model is already float16")


def _float_tensors(model: ModelProto) -> set[str]:
    """Return the names of all float tensors that nodes output."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def _split(graph: GraphProto) -> tuple[list[NodeProto], list[NodeProto]]:
    """Return the nodes before the first convolution, and the others; both in their order."""
    constants = {weight.name for weight in graph.initializer} | {""}
    known = constants | {value.name for value in graph.input}
    ends: list[NodeProto] = []
    body: list[NodeProto] = []
    for node in graph.node:
        is_end = node.op_type not in _BODY and all(name in known for name in node.input)
        (ends if is_end else body).append(node)
        if is_end:
            known |= set(node.output)
    return ends, body


def _convert_weights(graph: GraphProto, ends: Iterable[NodeProto], body: Iterable[NodeProto]) -> None:
    """Round the float weights of the body; a weight that other nodes need too gets a rounded copy."""
    needed = {name for node in ends for name in node.input}
    for weight in [w for w in graph.initializer if w.data_type == TensorProto.FLOAT]:
        users = [node for node in body if weight.name in node.input]
        if not users:
            continue
        values = numpy_helper.to_array(weight)
        if not np.abs(values).max(initial=0.0) <= LARGEST:  # not: NaN must not pass
            raise ParityError(
                "HALF",
                f"{weight.name} has values beyond {LARGEST:.0f}, the range of float16; serve the float model",
            )
        name = f"{weight.name}_half" if weight.name in needed else weight.name
        rounded = numpy_helper.from_array(values.astype(np.float16), name)
        if name == weight.name:
            weight.CopyFrom(rounded)
        else:
            graph.initializer.append(rounded)
            _rename_inputs(users, weight.name, name)


def _convert_attributes(node: NodeProto) -> None:
    """Change casts to float and float constants within the body to float16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def _cast_into(graph: GraphProto, ends: list[NodeProto], body: list[NodeProto], floats: set[str]) -> list[NodeProto]:
    """Return a cast for each float tensor that enters the body."""
    made = {name for node in ends for name in node.output} | {value.name for value in graph.input}
    casts = []
    for name in sorted({name for node in body for name in node.input} & made & floats):
        _rename_inputs(body, name, f"{name}_half")
        casts.append(helper.make_node("Cast", [name], [f"{name}_half"], f"{name}_to_half", to=TensorProto.FLOAT16))
    return casts


def _cast_out(graph: GraphProto, body: list[NodeProto]) -> list[NodeProto]:
    """Return a cast for each float output of the graph, which keeps its name."""
    casts = []
    for name in [o.name for o in graph.output if o.type.tensor_type.elem_type == TensorProto.FLOAT]:
        for node in body:
            node.output[:] = [f"{name}_half" if output == name else output for output in node.output]
        _rename_inputs(body, name, f"{name}_half")
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_to_float", to=TensorProto.FLOAT))
    return casts


def _rename_inputs(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
