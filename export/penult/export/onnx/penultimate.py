"""Find logits and descriptor in a model that another program wrote, and make of it the model of a bundle.

The descriptor is the input of the last dense layer (Gemm or MatMul). If a convolution gives the classes, as in
SqueezeNet, the descriptor is the mean of its input over places.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from penult.bundle.manifest import Manifest
from penult.export.onnx.foreign import ForeignModel, refusal
from penult.nearest import did_you_mean

# Nodes that change the form of their input at most.
_SAME = {"Identity", "Flatten", "Reshape", "Squeeze", "Cast", "Dropout"}
_SOFTMAX = ("Softmax", "LogSoftmax")
# Nodes between a convolution that gives the classes and the output, or between a dense layer and its bias.
_AFTER = {
    "Add", "Sub", "Mul", "Div", "Relu", "Clip", "GlobalAveragePool", "AveragePool", "ReduceMean", "QuantizeLinear",
    "DequantizeLinear",
}  # fmt: skip
_DENSE = ("Gemm", "MatMul")
_HEADS = (*_DENSE, "Conv")
_NAME_IT = "name the layer before it with --descriptor TENSOR"


@dataclass(frozen=True)
class Head:
    """The tensors of a classifier, by name.

    Attributes:
        answer: The output of the model as it was written.
        logits: What is before the softmax.
        descriptor: What the last layer reads.
        softmax: The operator after the logits that a bundle leaves out; "" if there is none.
    """

    answer: str
    logits: str
    descriptor: str
    softmax: str


def find_head(foreign: ForeignModel, descriptor: str = "") -> Head:
    """Return logits and descriptor of a model; `descriptor` names that tensor. Raise ImportModelError."""
    graph = foreign.proto.graph
    makers = {name: node for node in graph.node for name in node.output if name}
    moving = _depends_on(graph, foreign.input_name)
    if descriptor:
        _check_named(descriptor, moving, makers)
    answer = _answer(graph, makers, moving, descriptor)
    logits, softmax = _logits(answer, makers, moving)
    found = descriptor or _before_last_layer(logits, makers, moving)
    if found in (logits, answer, foreign.input_name):
        raise refusal(f"the descriptor would be {found}, which is no hidden layer; {_NAME_IT}")
    return Head(answer, logits, found, softmax)


def _depends_on(graph: GraphProto, start: str) -> set[str]:
    """Return the tensors that depend on `start`; nodes are in the order of their execution."""
    found = {start}
    for node in graph.node:
        if found & set(node.input):
            found |= {name for name in node.output if name}
    return found


def _check_named(descriptor: str, moving: set[str], makers: Mapping[str, NodeProto]) -> None:
    if descriptor not in makers or descriptor not in moving:
        guess = did_you_mean(descriptor, sorted(moving & makers.keys())) or "; Netron shows the names of a model"
        raise refusal(f"--descriptor {descriptor} is no tensor between input and output of the model{guess}")


def _answer(graph: GraphProto, makers: Mapping[str, NodeProto], moving: set[str], descriptor: str) -> str:
    """Return the output that holds the classes."""
    names = [each.name for each in graph.output if each.name != descriptor]
    if len(names) == 1:
        return names[0]
    dense = [name for name in names if _ends_in_dense_layer(name, makers, moving)]
    if len(dense) != 1:
        raise refusal(f"the model has {len(names)} outputs ({', '.join(names[:4])}); export it with the logits alone")
    return dense[0]


def _ends_in_dense_layer(name: str, makers: Mapping[str, NodeProto], moving: set[str]) -> bool:
    while node := makers.get(name):
        if node.op_type in _DENSE:
            return True
        if node.op_type not in _SAME | _AFTER | set(_SOFTMAX) or node.op_type == "Relu":
            return False
        name = _moving_input(node, moving)
    return False


def _moving_input(node: NodeProto, moving: set[str]) -> str:
    """Return the only input of a node that depends on the image; raise ImportModelError if there are several."""
    names = {name for name in node.input if name in moving}
    if len(names) != 1:
        raise refusal(f"the last {node.op_type} has {len(names)} inputs that depend on the image; {_NAME_IT}")
    return names.pop()


def _logits(answer: str, makers: Mapping[str, NodeProto], moving: set[str]) -> tuple[str, str]:
    """Return the tensor before a final softmax, and the operator that is left out."""
    name = answer
    while (node := makers.get(name)) and node.op_type in _SAME:
        name = _moving_input(node, moving)
    if node is None:
        raise refusal("the output of the model does not depend on a layer; export the classifier")
    if node.op_type in _SOFTMAX:
        return _moving_input(node, moving), node.op_type
    if node.op_type == "Sigmoid":
        raise refusal("the model ends in Sigmoid, so its classes do not exclude each other; penult names one class")
    if node.op_type in ("ArgMax", "TopK"):
        raise refusal(f"the model ends in {node.op_type}, so it gives no scores; export it with the logits as output")
    return answer, ""


def _before_last_layer(logits: str, makers: Mapping[str, NodeProto], moving: set[str]) -> str:
    name = logits
    while (node := makers.get(name)) is not None:
        if node.op_type in _HEADS:
            return _moving_input(node, moving)
        if node.op_type not in _SAME | _AFTER:
            raise refusal(f"the last layer was not found: {node.op_type} is before the logits; {_NAME_IT}")
        name = _moving_input(node, moving)
    raise refusal(f"the last layer was not found; {_NAME_IT}")


# -- the model of the bundle -------------------------------------------------------------------------------------------


def with_outputs(foreign: ForeignModel, names: tuple[str, ...]) -> bytes:
    """Return the model as it was written, with these tensors as its outputs."""
    model = ModelProto()
    model.CopyFrom(foreign.proto)
    known = {each.name: each for each in model.graph.output}
    kept = [known.get(name) or onnx.ValueInfoProto(name=name) for name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    data: bytes = model.SerializeToString()
    return data


def to_bundle(foreign: ForeignModel, head: Head, manifest: Manifest, ranks: tuple[int, int]) -> bytes:
    """Return the ONNX model of a bundle: uint8 pixels in, logits and descriptor out, any number of images.

    Args:
        foreign: The model as it was written.
        head: Its logits and descriptor.
        manifest: The names of input and outputs, preprocessing and lengths.
        ranks: How many dimensions logits and descriptor have, 2 or 4. Descriptors of 4 are means over places.
    """
    model = ModelProto()
    model.CopyFrom(foreign.proto)
    graph = model.graph
    served = (manifest.logits_name, manifest.descriptor_name)
    new = {name: f"given/{name}" for name in (manifest.input_name, *served)}
    new |= {
        was: name for was, name, rank in zip((head.logits, head.descriptor), served, ranks, strict=True) if rank == 2
    }
    _rename(graph, new)
    if foreign.batch:
        _open_batch(graph, foreign.batch)
    nodes = _normalise(graph, manifest, new.get(foreign.input_name, foreign.input_name), foreign.is_nhwc)
    nodes += graph.node
    for was, name, rank in zip((head.logits, head.descriptor), served, ranks, strict=True):
        if rank != 2:
            pooled = f"{name}_pooled"
            nodes.append(helper.make_node("GlobalAveragePool", [new.get(was, was)], [pooled]))
            nodes.append(helper.make_node("Flatten", [pooled], [name], axis=1))
    del graph.node[:]
    graph.node.extend(_needed(nodes, served))
    _declare(graph, manifest)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _rename(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Rename tensors in a graph and in the graphs inside it."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type == AttributeProto.GRAPH else ():
                _rename(inner, new)
    for weight in graph.initializer:
        weight.name = new.get(weight.name, weight.name)
    for value in (*graph.input, *graph.output):
        value.name = new.get(value.name, value.name)


def _open_batch(graph: GraphProto, batch: int) -> None:
    """Let reshapes keep the first dimension of their input if the graph has it as a constant."""
    sources = {each.name: each for each in graph.initializer}
    for node in graph.node:
        for each in node.attribute if node.op_type == "Constant" else ():
            if each.name == "value":
                sources[node.output[0]] = each.t
    for number, node in enumerate(graph.node):
        shape = sources.get(node.input[1]) if node.op_type == "Reshape" else None
        sizes = np.array([]) if shape is None else numpy_helper.to_array(shape).copy()
        if len(sizes) > 1 and sizes[0] == batch and 0 not in sizes:
            sizes[0] = 0
            kept = [each for each in node.attribute if each.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
            name = f"open_shape_{number}"
            graph.initializer.append(numpy_helper.from_array(sizes, name))
            node.input[1] = name


def _normalise(graph: GraphProto, manifest: Manifest, image: str, is_nhwc: bool) -> list[NodeProto]:
    """Return the nodes from uint8 pixels to the input of the model; rows are subtracted and divided as a whole.

    That is faster than triples of channels (networks/network.py, Normalise).
    """
    spec = manifest.preprocess
    side = spec.crop
    rows = {"mean": np.tile(np.array(spec.mean) * 255, side), "std": np.tile(np.array(spec.std) * 255, side)}
    shapes = {"rows": np.array([0, side, side * 3]), "image": np.array([0, side, side, 3])}
    name = {key: f"preprocess/{key}" for key in ("float", "flat", "centered", "scaled", *rows, *shapes)}
    for key, values in (rows | shapes).items():
        kind = np.float32 if key in rows else np.int64
        graph.initializer.append(numpy_helper.from_array(values.astype(kind), name[key]))
    last = image if is_nhwc else "preprocess/upright"
    nodes = [
        helper.make_node("Cast", [manifest.input_name], [name["float"]], to=TensorProto.FLOAT),
        helper.make_node("Reshape", [name["float"], name["rows"]], [name["flat"]]),
        helper.make_node("Sub", [name["flat"], name["mean"]], [name["centered"]]),
        helper.make_node("Div", [name["centered"], name["std"]], [name["scaled"]]),
        helper.make_node("Reshape", [name["scaled"], name["image"]], [last]),
    ]
    if not is_nhwc:
        nodes.append(helper.make_node("Transpose", [last], [image], perm=[0, 3, 1, 2]))
    return nodes


def _needed(nodes: list[NodeProto], outputs: tuple[str, ...]) -> list[NodeProto]:
    """Return the nodes that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= _inputs(node)
    return kept[::-1]


def _inputs(node: NodeProto) -> set[str]:
    """Return the tensors that a node and the graphs inside it read."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found = found.union(*(_inputs(inner) for inner in attribute.g.node), (e.name for e in attribute.g.output))
    return found


def _declare(graph: GraphProto, manifest: Manifest) -> None:
    """Declare input and outputs of a bundle, and drop weights that no node reads."""
    side = manifest.preprocess.crop
    lengths = {manifest.logits_name: manifest.logits_length, manifest.descriptor_name: manifest.descriptor_length}
    del graph.input[:], graph.output[:], graph.value_info[:]
    shape: list[str | int | None] = ["batch", side, side, 3]
    graph.input.append(helper.make_tensor_value_info(manifest.input_name, TensorProto.UINT8, shape))
    for name, length in lengths.items():
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", length]))
    read = set().union(*(_inputs(node) for node in graph.node))
    weights = [each for each in graph.initializer if each.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)
