"""Recognise exported networks whose class maps are exact, and add the feature map to their outputs.

The graph decides, and not the name of the network. From the logits, and from the descriptor, the nodes are followed
back to a mean over places. What feeds that mean is the feature map. A linear layer alone may come between the mean and
the logits, and nothing between the mean and the descriptor.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from penult.bundle.class_map import LinearHead
from penult.bundle.manifest import DENSE, SCORERS, SVM, Manifest
from penult.bundle.map_support import FEATURES, OLDER, MapSupport
from penult.bundle.scores import Floats

# These move numbers or change their type.
_SAME_NUMBERS = ("Reshape", "Flatten", "Squeeze", "Identity", "Cast", "Dropout")
_PLACES, _VIEWS = (2, 3), (0,)


class _InexactError(Exception):
    """Why the maps of a network are not exact."""


@dataclass(frozen=True)
class Found:
    """What a graph has for class maps.

    Attributes:
        support: The scorers that can have exact maps, and why others cannot. Whether the SVM is linear is not known.
        head: The dense head, if it is linear in the feature map.
    """

    support: MapSupport
    head: LinearHead | None = None


def with_features(data: bytes, manifest: Manifest) -> bytes:
    """Return an ONNX model with its feature map as the output FEATURES; unchanged if no scorer can have maps."""
    model = onnx.load(io.BytesIO(data))
    graph = _Graph(model, manifest)
    if FEATURES in graph.outputs or not (ends := graph.ends()):
        return data
    _rename(model.graph, {FEATURES: f"given/{FEATURES}"})
    _rename(model.graph, {next(iter(ends.values())).tensor: FEATURES})
    shape: list[Any] = [f"{FEATURES}_batch", *_sizes(model)]
    kept = [value for value in model.graph.value_info if value.name != FEATURES]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    model.graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString()
    return made


def _sizes(model: ModelProto) -> list[int | None]:
    """Return channels, height and width of FEATURES, None for those that are not known before a run."""
    values = onnx.shape_inference.infer_shapes(model).graph.value_info
    found = next((value for value in values if value.name == FEATURES), None)
    sizes = [] if found is None else [size.dim_value or None for size in found.type.tensor_type.shape.dim]
    return sizes[1:] if len(sizes) == 4 else [None, None, None]


def find(data: bytes, manifest: Manifest, shape: tuple[int, ...]) -> Found:
    """Return what an exported graph has for class maps.

    Args:
        data: The ONNX model.
        manifest: The names of its outputs, its scorers, and the record of its training.
        shape: Channels, height and width of FEATURES, as a run gives them; empty if the graph has no such output.
    """
    graph = _Graph(onnx.load(io.BytesIO(data)), manifest)
    reasons: dict[str, str] = {}
    ends = graph.ends(reasons)
    if not shape:
        return Found(MapSupport((), reasons | dict.fromkeys(ends, OLDER)))
    for scorer, end in list(ends.items()):
        if not end.is_output:
            reasons[scorer] = f"{scorer} reads another layer than the feature map in the graph"
            del ends[scorer]
    views = next(iter(ends.values())).views if ends else graph.stated_views
    head = ends[DENSE].head if DENSE in ends else None
    return Found(MapSupport(tuple(ends), reasons, shape, views), head)


@dataclass(frozen=True)
class _End:
    """How the outputs of one scorer depend on a feature map: the map's tensor, the views, and the dense head."""

    tensor: str
    views: int
    head: LinearHead | None = None
    is_output: bool = False


class _Graph:
    """A graph with what made each tensor."""

    def __init__(self, model: ModelProto, manifest: Manifest) -> None:
        graph: GraphProto = model.graph
        self.manifest = manifest
        self.outputs = {value.name for value in graph.output}
        self._made_by = {name: node for node in graph.node for name in node.output}
        self._constants = {each.name: each for each in graph.initializer} | {
            node.output[0]: each.t
            for node in graph.node
            if node.op_type == "Constant"
            for each in node.attribute
            if each.name == "value"
        }
        settings = manifest.training.get("settings")
        views = settings.get("views", 1) if isinstance(settings, Mapping) else 1
        self.stated_views = views if isinstance(views, int) else 1

    def ends(self, reasons: dict[str, str] | None = None) -> dict[str, _End]:
        """Return how each scorer depends on a feature map; `reasons` gets why others do not."""
        reasons = {} if reasons is None else reasons
        found: dict[str, _End] = {}
        for scorer in self.manifest.stated_scorers or SCORERS:
            try:
                if scorer == DENSE:
                    read, head = self._linear(self.manifest.logits_name)
                    found[scorer] = self._mean(read, head)
                elif scorer == SVM:
                    if self.manifest.is_whitened:
                        raise _InexactError("the SVM reads the whitened descriptor")
                    found[scorer] = self._mean(self.manifest.descriptor_name)
                else:
                    raise _InexactError("novelty is a distance, and no sum over places")
            except _InexactError as error:
                reasons[scorer] = str(error)
        return found

    def _mean(self, name: str, head: LinearHead | None = None) -> _End:
        """Return the feature map whose mean over places, and over views, a tensor is; raise _InexactError."""
        views, blocked = 1, ""
        for node in self._back(name):
            kind = node.op_type
            if kind == "GlobalAveragePool" or (kind == "ReduceMean" and self._axes(node) == _PLACES):
                if blocked:
                    raise _InexactError(blocked)
                if views != self.stated_views:
                    raise _InexactError(f"the network reads {views} views, and its record says {self.stated_views}")
                tensor = node.input[0]
                source = self._made_by.get(FEATURES)
                is_cast = source is not None and source.op_type in ("Cast", "Identity") and source.input[0] == tensor
                return _End(tensor, views, head, tensor == FEATURES or is_cast)
            if kind == "ReduceMean" and self._axes(node) == _VIEWS and views == 1:
                views = self._views_before(node)
            elif kind in ("Gemm", "MatMul", "Conv"):
                raise _InexactError("hidden layers are between the mean over places and the scores")
            # ConvNeXt transposes before and after its normalisation, which says more.
            elif kind not in _SAME_NUMBERS and (not blocked or blocked.startswith("Transpose")):
                blocked = f"{kind} is between the mean over places and the scores"
        raise _InexactError(blocked or "the network does not end in a mean over places")

    def _back(self, name: str) -> Iterator[NodeProto]:
        """Yield the nodes that a tensor comes from, each by its first input."""
        while (node := self._made_by.get(name)) is not None:
            yield node
            name = node.input[0] if node.input else ""

    def _linear(self, name: str) -> tuple[str, LinearHead]:
        """Return the tensor that the last layer reads, and its weights; raise _InexactError if it is not dense."""
        bias: NDArray[Any] | None = None
        for node in self._back(name):
            if node.op_type == "Gemm":
                options = {each.name: each.f or each.i for each in node.attribute if each.f or each.i}
                weights = self._array(node.input[1])
                if weights is None or options.get("transA") or {options.get(n, 1) for n in ("alpha", "beta")} != {1}:
                    break
                given = self._array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
                weights = weights if options.get("transB") else weights.T
                return node.input[0], _head(weights, given if bias is None else bias)
            if node.op_type == "MatMul":
                weights = self._array(node.input[1])
                if weights is None:
                    break
                return node.input[0], _head(weights.T, bias)
            if node.op_type == "Add" and bias is None:
                bias = self._array(node.input[1])
                if bias is None:
                    break
            elif node.op_type not in _SAME_NUMBERS:
                break
        raise _InexactError("the logits do not come from a dense layer")

    def _axes(self, node: NodeProto) -> tuple[int, ...]:
        given = next((list(each.ints) for each in node.attribute if each.name == "axes"), None)
        if given is None and len(node.input) > 1:
            array = self._array(node.input[1])
            given = [] if array is None else array.ravel().tolist()
        axes = tuple(sorted(given or ()))
        return _PLACES if axes == (-2, -1) else axes

    def _views_before(self, node: NodeProto) -> int:
        """Return how many rows a mean over views takes: the first size of the reshape before it."""
        reshape = self._made_by.get(node.input[0])
        sizes = self._array(reshape.input[1]) if reshape is not None and reshape.op_type == "Reshape" else None
        if sizes is None or sizes.size != 3:
            raise _InexactError("the views of the network are not known")
        return int(sizes[0])

    def _array(self, name: str) -> NDArray[Any] | None:
        """Return a constant; None if the tensor is none."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


def _head(weights: NDArray[Any], bias: NDArray[Any] | None) -> LinearHead:
    """Return a dense head of weights [classes, channels]; raise _InexactError for other shapes."""
    if weights.ndim != 2 or (bias is not None and bias.size != len(weights)):
        raise _InexactError("the logits do not come from a dense layer")
    given: Floats = np.zeros(len(weights), np.float32) if bias is None else bias.ravel().astype(np.float32)
    return LinearHead(np.ascontiguousarray(weights, dtype=np.float32), given)


def _rename(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Rename tensors in a graph and in the graphs inside it."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, new)
    for weight in graph.initializer:
        weight.name = new.get(weight.name, weight.name)
    for value in graph.value_info:
        value.name = new.get(value.name, value.name)
