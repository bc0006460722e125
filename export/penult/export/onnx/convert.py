"""Export the trained network to one ONNX file with uint8 NHWC input, logits and descriptor, and any batch size.

If its class maps are exact, the feature map is an output too (class_maps.py).
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import onnx
import torch
from torch import nn

from penult.bundle.manifest import Manifest
from penult.export.errors import ParityError
from penult.export.networks.network import Normalise, PenultNet
from penult.export.onnx import class_maps

# Opsets 18 to 20 gave the same nodes (research/ceilings.md, section 1).
OPSET = 20
_EXAMPLE_BATCH = 2
_TRAINING_ONLY = {"Dropout", "Bernoulli", "RandomUniform", "RandomUniformLike"}


class _Served(nn.Module):
    """Normalisation, body and head as one graph."""

    def __init__(self, net: PenultNet, normalise: Normalise) -> None:
        super().__init__()
        self.net, self.normalise = net, normalise

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return cast("tuple[torch.Tensor, torch.Tensor]", self.net(self.normalise(pixels)))


class _SpatialMean(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((2, 3), keepdim=True)


def to_onnx(net: PenultNet, manifest: Manifest) -> bytes:
    """Export a network in eval mode; raise ParityError if the graph has a node that only training uses."""
    spec = manifest.preprocess
    # A copy, because the original is compared with the result.
    net = copy.deepcopy(net).to("cpu").to(memory_format=torch.contiguous_format).eval()
    _simplify_pooling(net, spec.crop)
    pixels = torch.zeros(_EXAMPLE_BATCH, spec.crop, spec.crop, 3, dtype=torch.uint8)
    served = _Served(net, Normalise(spec)).eval()
    data = _exported(served, pixels, manifest.input_name, [manifest.logits_name, manifest.descriptor_name])
    return class_maps.with_features(data, manifest)


def float_to_onnx(net: nn.Module, side: int, input_name: str, output_names: list[str]) -> bytes:
    """Export a network that maps float [N, 3, side, side] to several outputs, for any N; raise ParityError."""
    net = copy.deepcopy(net).eval()
    _simplify_pooling(net, side)
    return _exported(net, torch.zeros(_EXAMPLE_BATCH, 3, side, side), input_name, output_names)


def _exported(net: nn.Module, example: torch.Tensor, input_name: str, output_names: list[str]) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), _simple_functions():
        warnings.simplefilter("ignore")  # the exporter's warnings are about its own internals
        program = torch.onnx.export(
            net,
            (example,),
            input_names=[input_name],
            output_names=output_names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    _remove_notes(model.graph)
    data: bytes = model.SerializeToString()
    _check(data)
    return data


def _remove_notes(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes, such as stack traces with paths and line numbers of sources, from a graph in place.

    Then equal weights give equal bytes, whatever machine and checkout exported them.
    """
    parts: tuple[Any, ...] = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (graph, *parts):
        del part.metadata_props[:]
    for attribute in (each for node in graph.node for each in node.attribute):
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            _remove_notes(inner)


def _simplify_pooling(net: nn.Module, size: int) -> None:
    """Replace global average pooling by a mean, which keeps index arithmetic on the batch size out of the graph.

    AlexNet and VGG pool to fixed sizes, which does nothing at their training size and is removed.
    """
    idle = _idle_pools(net, size)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                if child.output_size in (1, (1, 1)):
                    setattr(parent, name, _SpatialMean())
                elif child in idle:
                    setattr(parent, name, nn.Identity())


@contextmanager
def _simple_functions() -> Iterator[None]:
    """Replace global average pooling by a mean where networks call it as a function, as mobilenet_v2 does."""
    pool = torch.nn.functional.adaptive_avg_pool2d

    def pooled(maps: torch.Tensor, output_size: Any) -> torch.Tensor:
        return _SpatialMean()(maps) if output_size in (1, (1, 1), [1, 1]) else pool(maps, output_size)

    torch.nn.functional.adaptive_avg_pool2d = pooled  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.functional.adaptive_avg_pool2d = pool


def _idle_pools(net: nn.Module, size: int) -> list[nn.Module]:
    """Return the pools to fixed sizes whose maps have that size already, at inputs of `size` pixels."""
    found: list[nn.Module] = []

    def compare(pool: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if inputs[0].shape == output.shape:
            found.append(pool)

    pools = [m for m in net.modules() if isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size not in (1, (1, 1))]
    hooks = [pool.register_forward_hook(compare) for pool in pools]
    if pools:
        with torch.no_grad():
            net(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return found


def _check(data: bytes) -> None:
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    left = {node.op_type for node in model.graph.node if node.op_type in _TRAINING_ONLY or _normalises_batches(node)}
    if left:
        raise ParityError(
            "EXPORT_TRAINING_NODE",
            f"the exported graph has training nodes ({', '.join(left)}); nothing is published",
        )


def _normalises_batches(node: onnx.NodeProto) -> bool:
    """Return True for a batch norm that uses the batch's own statistics.

    Those with stored statistics become part of the convolution before them, or stay if there is none.
    """
    is_training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    return node.op_type == "BatchNormalization" and is_training
