"""The ONNX model: one file, any batch size, no training-time node, the network's own numbers."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from penult.bundle.manifest import Manifest
from penult.bundle.scores import largest_difference
from penult.export.config.train import TrainSettings
from penult.export.errors import ParityError
from penult.export.networks.architectures import get
from penult.export.networks.network import Normalise, PenultNet, build
from penult.export.onnx import convert
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.runtime import ExportedModel

pytestmark = pytest.mark.server  # exports whole networks

ROOT = Path(__file__).parents[3]
CLASSES = tuple("abcd")


def _manifest(arch: str, net: PenultNet) -> Manifest:
    return Manifest(arch, CLASSES, get(arch).preprocess, net.descriptor_length, "dense", {"dense": 1.0})


def _network(arch: str, weights: str) -> PenultNet:
    """Return a network of four classes in train mode, as learning leaves it."""
    settings = TrainSettings(data=Path(), out=Path(), arch=arch, weights=weights, freeze=0)
    net = build(get(arch), settings, len(CLASSES)).train()
    with torch.no_grad():  # running statistics away from zero and one
        net(torch.rand(4, 3, *[get(arch).preprocess.crop] * 2, generator=torch.Generator().manual_seed(0)))
    return net


@pytest.fixture(scope="module", params=["tiny5", "squeezenet1_1", "mobilenet_v2"])
def exported(request: pytest.FixtureRequest) -> tuple[PenultNet, Manifest, bytes]:
    """A network (with real weights but for tiny5), its manifest, and the ONNX model made of it."""
    real = request.param != "tiny5"
    net = _network(
        request.param, str(request.getfixturevalue("shared_data") / f"{request.param}.pth") if real else "none"
    )
    manifest = _manifest(request.param, net)
    return net, manifest, to_onnx(net, manifest)


@pytest.fixture(scope="module")
def graph(exported: tuple[PenultNet, Manifest, bytes]) -> onnx.GraphProto:
    """The graph of that model."""
    return onnx.load_from_string(exported[2]).graph


def test_nothing_of_training_is_left(graph: onnx.GraphProto):
    """The graph has no dropout and no batch normalisation, although it was exported from train mode."""
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"Dropout", "BatchNormalization"}
    assert "Conv" in kinds


def test_pixels_in_logits_and_descriptor_out(exported: tuple[PenultNet, Manifest, bytes], graph: onnx.GraphProto):
    """The input is uint8 [batch, crop, crop, 3]; the outputs are float32 [batch, classes] and [batch, length]."""
    net, manifest, _ = exported
    crop = manifest.preprocess.crop

    def shape(value: onnx.ValueInfoProto) -> list[int]:
        return [size.dim_value for size in value.type.tensor_type.shape.dim]  # 0 where it is named, not fixed

    assert [value.name for value in graph.input] == ["pixels"]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert shape(graph.input[0]) == [0, crop, crop, 3]
    assert [(value.name, shape(value)) for value in graph.output][:2] == [
        ("logits", [0, len(CLASSES)]), ("descriptor", [0, net.descriptor_length]),
    ]  # fmt: skip
    assert {value.type.tensor_type.elem_type for value in graph.output} == {onnx.TensorProto.FLOAT}


def test_one_file_holds_all(exported: tuple[PenultNet, Manifest, bytes], graph: onnx.GraphProto):
    """No weight lies in a file beside the model, and all of the network's weights are in it."""
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)
    assert not any(tensor.external_data for tensor in graph.initializer)
    weights = sum(parameter.numel() for name, parameter in exported[0].named_parameters() if name.endswith("weight"))
    assert len(exported[2]) > 3.9 * weights


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_gives_the_networks_numbers(exported: tuple[PenultNet, Manifest, bytes], batch: int):
    """onnxruntime's logits and descriptors are torch's within 1e-4 of the largest, in batches of 1, 2 and 7."""
    net, manifest, data = exported
    shape = (batch, manifest.preprocess.crop, manifest.preprocess.crop, 3)
    pixels = np.random.default_rng(batch).integers(0, 256, shape, dtype=np.uint8)
    with torch.no_grad():
        expected = net.eval()(Normalise(manifest.preprocess)(torch.from_numpy(pixels)))
    for ours, theirs in zip(ExportedModel(data, manifest).run(pixels), expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert largest_difference(ours, theirs.numpy()) < 1e-4


def test_the_batch_decides_nothing(exported: tuple[PenultNet, Manifest, bytes]):
    """A photo's answer does not depend on what else is in its batch."""
    _, manifest, data = exported
    shape = (3, manifest.preprocess.crop, manifest.preprocess.crop, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    model = ExportedModel(data, manifest)
    together, alone = model.run(pixels), model.run(pixels[1:2])
    for whole, single in zip(together, alone, strict=True):
        assert largest_difference(whole[1:2], single) < 1e-4


def test_exporting_leaves_the_network_as_it_was(tiny_net: PenultNet):
    """The network that parity is checked with is the trained one: weights, modes and modules are untouched."""
    tiny_net.train()
    before = {key: value.clone() for key, value in tiny_net.state_dict().items()}
    kinds = [type(module) for module in tiny_net.modules()]
    to_onnx(tiny_net, _manifest("tiny5", tiny_net))
    assert tiny_net.training
    assert [type(module) for module in tiny_net.modules()] == kinds
    assert all(torch.equal(value, before[key]) for key, value in tiny_net.state_dict().items())


def test_equal_weights_give_equal_bytes(tiny_net: PenultNet):
    """Nothing of the exporting program is in the file: no path of a source, and the same bytes from another call site."""
    first = to_onnx(tiny_net, _manifest("tiny5", tiny_net))
    again = to_onnx(copy.deepcopy(tiny_net), _manifest("tiny5", tiny_net))
    assert first == again
    for told in (b".py", str(ROOT).encode(), b"stack_trace"):
        assert told not in first


@pytest.mark.parametrize("kind", ["Dropout", "BatchNormalization"])
def test_a_training_node_is_refused(tiny_net: PenultNet, kind: str):
    """A graph that still holds a training-time node is an error, not a model."""
    model = onnx.load_from_string(to_onnx(tiny_net, _manifest("tiny5", tiny_net)))
    inputs = ["descriptor"] + (["w"] * 4 if kind == "BatchNormalization" else [])
    training = {"training_mode": 1} if kind == "BatchNormalization" else {}
    model.graph.node.append(onnx.helper.make_node(kind, inputs, ["odd"], **training))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(128, np.float32), "w"))
    with pytest.raises(ParityError) as caught:
        convert._check(model.SerializeToString())
    assert caught.value.reason == "EXPORT_TRAINING_NODE"
    assert kind in caught.value.message


def test_normalisation_is_in_the_graph(tiny_net: PenultNet):
    """Scaling to 0..1, mean and deviation are applied per channel, channels first, inside the model."""
    spec = get("mobilenet_v2").preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    expected = ((pixels / 255 - spec.mean) / spec.std).transpose(0, 3, 1, 2)
    assert np.allclose(Normalise(spec)(torch.from_numpy(pixels)).numpy(), expected, atol=1e-5)


def test_rows_are_normalised_not_triples(exported: tuple[PenultNet, Manifest, bytes]):
    """Mean and deviation stand in the graph once per value of a row: per channel they would cost fifteen times as much."""
    _, manifest, data = exported
    graph = onnx.load_from_string(data).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    constants = [sizes[node.input[1]] for node in graph.node if node.op_type in ("Sub", "Div")]
    assert constants[:2] == [[manifest.preprocess.crop * 3]] * 2
    pixels = torch.randint(0, 256, (2, 6, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v) * 255 for v in (manifest.preprocess.mean, manifest.preprocess.std))
    assert torch.equal(Normalise(manifest.preprocess)(pixels), ((pixels.float() - mean) / std).permute(0, 3, 1, 2))


def test_the_trained_bundle_runs_on_any_batch(trained: Any):
    """The published model of a real run takes one photo and seven."""
    from penult.bundle.reader import read_bundle

    bundle = read_bundle(trained.folder.parent)
    model = ExportedModel(bundle.onnx, bundle.manifest)
    for batch in (1, 7):
        logits, descriptor = model.run(np.zeros((batch, 32, 32, 3), np.uint8))
        assert (logits.shape, descriptor.shape) == ((batch, 10), (batch, 128))
