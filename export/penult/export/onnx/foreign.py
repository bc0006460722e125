"""Read an ONNX file that another program wrote, and check that penult can serve it.

The result holds all its weights and has one float image as its input. It has no operators of other domains than ONNX's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.external_data_helper
import onnx.inliner
import onnx.version_converter
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from penult.export.errors import ImportModelError

# The nodes that penult adds, and the conversions of `penult quantize`, need this opset.
_MIN_OPSET = 13
_MAX_BYTES = 2 << 30
_OWN_DOMAINS = ("", "ai.onnx")
_MAX_NAMED = 3
_RANK = 4
_CHANNELS = 3


@dataclass(frozen=True)
class ForeignModel:
    """A model with one image as its input.

    Attributes:
        proto: The model, with all weights inside.
        input_name: The input, float32.
        is_nhwc: True if the input is [N, H, W, 3]; False for [N, 3, H, W].
        side: Height and width of the input in pixels; 0 if the graph leaves it open.
        batch: Images of a run; 0 if the graph leaves it open.
    """

    proto: ModelProto
    input_name: str
    is_nhwc: bool
    side: int
    batch: int


def read_foreign(path: Path) -> ForeignModel:
    """Read and check an ONNX file with the files of weights beside it; raise ImportModelError."""
    model = _with_weights(path)
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _check_operators(path, model)
        model = _converted(path, model)
        onnx.checker.check_model(model)
    except ImportModelError:
        raise
    except Exception as error:  # onnx raises a dozen types
        raise refusal(f"{path} is not a valid ONNX model ({_one_line(error)}); export it again") from error
    return _of_graph(path, model)


def of_bytes(data: bytes) -> ForeignModel:
    """Read a model that penult exported itself."""
    return _of_graph(Path("model.onnx"), onnx.load_from_string(data))


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)
            for inner in attribute.graphs:
                yield from nodes_of(inner)


def refusal(message: str, reason: str = "IMPORT_ONNX") -> ImportModelError:
    """Return the error of a model that cannot be imported."""
    return ImportModelError(reason, message)


def _with_weights(path: Path) -> ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise refusal(f"{path} does not exist; give an ONNX file") from None
    except Exception as error:  # protobuf's own, or the operating system's
        raise refusal(f"{path} cannot be read as ONNX ({_one_line(error)}); copy or export it again") from error
    if not model.graph.node:
        raise refusal(f"{path} has no nodes, so it is not an ONNX model; copy or export it again")
    named = sorted(
        {entry.value for each in model.graph.initializer for entry in each.external_data if entry.key == "location"}
    )
    if missing := [name for name in named if not (path.parent / name).is_file()]:
        raise refusal(f"{path} has its weights in {missing[0]}, which is missing; copy it into the same folder")
    size = path.stat().st_size + sum((path.parent / name).stat().st_size for name in named)
    if size > _MAX_BYTES:
        raise refusal(f"{path} has {size >> 20:,} MiB with its weights; a bundle holds at most {_MAX_BYTES >> 20:,}")
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # a path outside the folder, a length beyond the file
        raise refusal(f"the weights of {path} cannot be read ({_one_line(error)}); export it again") from error
    return model


def _check_operators(path: Path, model: ModelProto) -> None:
    """Refuse operators of other domains, which onnxruntime may lack."""
    custom = sorted({f"{n.domain}.{n.op_type}" for n in nodes_of(model.graph) if n.domain not in _OWN_DOMAINS})
    if custom:
        more = f" and {len(custom) - _MAX_NAMED} more" if len(custom) > _MAX_NAMED else ""
        raise refusal(
            f"{path} has operators that are not ONNX's own ({', '.join(custom[:_MAX_NAMED])}{more}); export the model "
            "again without them, and without optimising it for one runtime"
        )


def _converted(path: Path, model: ModelProto) -> ModelProto:
    """Return the model with an opset that penult's own nodes can be added to."""
    opset = next((each.version for each in model.opset_import if each.domain in _OWN_DOMAINS), 0)
    if opset >= _MIN_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, _MIN_OPSET)
    except Exception as error:  # an operator without a converter
        raise refusal(
            f"{path} has opset {opset}, and its conversion to {_MIN_OPSET} failed ({_one_line(error)}); export it "
            "again with opset_version=17"
        ) from error


def _of_graph(path: Path, model: ModelProto) -> ForeignModel:
    graph = model.graph
    weights = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs[:_MAX_NAMED]) or "none"
        raise refusal(f"{path} has {len(inputs)} inputs ({names}); a bundle has one, the image")
    kept = inputs[0]
    tensor = kept.type.tensor_type
    shape = [size.dim_value for size in tensor.shape.dim]
    name = TensorProto.DataType.Name(tensor.elem_type).lower()
    if tensor.elem_type != TensorProto.FLOAT:
        raise refusal(f"the input {kept.name} of {path} is {name}; export the model with float32 input")
    if len(shape) != _RANK or _CHANNELS not in (shape[1], shape[3]):
        shown = ", ".join(size.dim_param or str(size.dim_value or "?") for size in tensor.shape.dim)
        raise refusal(f"the input {kept.name} of {path} is [{shown}]; an RGB image is [N, 3, H, W] or [N, H, W, 3]")
    is_nhwc = shape[1] != _CHANNELS
    height, width = shape[1:3] if is_nhwc else shape[2:]
    if height != width:
        raise refusal(f"the input {kept.name} of {path} is {height} x {width} pixels; export it with a square input")
    del graph.input[:]
    graph.input.append(kept)
    return ForeignModel(model, kept.name, is_nhwc, height, shape[0])


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(" .:;")
