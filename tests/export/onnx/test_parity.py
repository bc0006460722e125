"""The gate before publishing: a model that answers otherwise than the trained network is not published."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from penult.bundle.manifest import Manifest
from penult.export.config.train import TrainSettings
from penult.export.data.loader import Batch
from penult.export.errors import ParityError
from penult.export.jobs import train as train_module
from penult.export.jobs.train import train
from penult.export.networks.architectures import get
from penult.export.networks.network import Normalise, PenultNet
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.parity import Parity, check_parity
from penult.export.onnx.runtime import ExportedModel

pytestmark = pytest.mark.server  # exports whole networks

SPEC = get("tiny5").preprocess


def _perturbed(data: bytes, change: Callable[[np.ndarray], np.ndarray], name: str | None = None) -> bytes:
    """Return the model with one stored array changed: the largest, or the one of this name."""
    model = onnx.load_from_string(data)
    arrays = [tensor for tensor in model.graph.initializer if name in (None, tensor.name)]
    tensor = max(arrays, key=lambda tensor: np.prod(tensor.dims))
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor).copy()), tensor.name))
    return model.SerializeToString()


def _batches() -> Iterator[Batch]:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    for at in (0, 4, 8):
        yield pixels[at : at + 4], np.zeros(len(pixels[at : at + 4]), np.int64)


@pytest.fixture
def manifest() -> Manifest:
    """What the exporter needs to know."""
    return Manifest("tiny5", tuple("abcd"), SPEC, 128, "dense", {"dense": 1.0})


@pytest.fixture
def compare(manifest: Manifest) -> Callable[..., Parity]:
    """compare(net, onnx): the parity check of a network and a model on ten photos."""
    return lambda net, data: check_parity(net, Normalise(SPEC), ExportedModel(data, manifest), _batches())


def test_a_faithful_export_passes(tiny_net: PenultNet, manifest: Manifest, compare: Callable[..., Parity]):
    """An untouched export answers as the network does; every photo is counted, also those of the last, smaller batch."""
    parity = compare(tiny_net, to_onnx(tiny_net, manifest))
    assert parity.photos == 10
    assert 0 <= parity.logits_difference < 1e-4
    assert 0 <= parity.descriptor_difference < 1e-4


@pytest.mark.parametrize(
    "change", [lambda w: w * 1.001, lambda w: np.roll(w, 1), np.zeros_like, lambda w: np.full_like(w, np.nan)]
)
def test_a_perturbed_weight_is_refused(
    tiny_net: PenultNet, manifest: Manifest, compare: Callable[..., Parity], change: Callable
):
    """A model in which one stored array is off by a thousandth, moved, empty or NaN does not pass."""
    with pytest.raises(ParityError) as caught:
        compare(tiny_net, _perturbed(to_onnx(tiny_net, manifest), change))
    assert caught.value.reason == "PARITY"
    assert "nothing is published" in caught.value.message
    assert "\n" not in caught.value.message


def test_another_label_is_refused_however_close_the_values(
    tiny_net: PenultNet, manifest: Manifest, compare: Callable[..., Parity]
):
    """Where values differ by a millionth and the label flips, the model does not pass."""
    with torch.no_grad():  # the first two classes tie on every photo, above all others
        tiny_net.head[1].weight.zero_()
        tiny_net.head[1].bias.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    data = to_onnx(tiny_net, manifest)
    assert compare(tiny_net, data).logits_difference < 1e-6
    bias = next(t.name for t in onnx.load_from_string(data).graph.initializer if list(t.dims) == [4])
    nudged = _perturbed(data, lambda values: values + np.array([0, 1e-6, 0, 0], np.float32), bias)
    with pytest.raises(ParityError, match="10 labels differ"):
        compare(tiny_net, nudged)


def test_a_descriptor_that_differs_is_refused(tiny_net: PenultNet, manifest: Manifest, compare: Callable[..., Parity]):
    """The descriptor is compared too: a head that makes up for it does not help."""
    data = to_onnx(tiny_net, manifest)
    with torch.no_grad():
        tiny_net.body.stages[4][1].weight.mul_(2)
        tiny_net.body.stages[4][1].bias.mul_(2)
        tiny_net.head[1].weight.div_(2)
    with pytest.raises(ParityError, match="0 labels differ"):
        compare(tiny_net, data)


def test_a_network_that_gives_no_numbers_is_refused(
    tiny_net: PenultNet, manifest: Manifest, compare: Callable[..., Parity]
):
    """NaN on the network's side is no agreement either."""
    data = to_onnx(tiny_net, manifest)
    with torch.no_grad():
        tiny_net.head[1].bias[3] = np.nan
    with pytest.raises(ParityError):
        compare(tiny_net, data)


def test_a_failed_gate_publishes_nothing(
    few_digits: Path, settings: Callable[..., TrainSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run whose export went wrong ends with ParityError: no version, no weights, and the old version untouched."""
    chosen = settings(data=few_digits, epochs=1, save_weights=tmp_path / "w.pt")
    old = chosen.out / "1"
    old.mkdir(parents=True)
    real: Any = train_module.to_onnx
    monkeypatch.setattr(train_module, "to_onnx", lambda *arguments: _perturbed(real(*arguments), lambda w: w * 1.01))
    with pytest.raises(ParityError):
        train(chosen)
    assert sorted(entry.name for entry in chosen.out.iterdir()) == [".training", "1"]
    assert list(old.iterdir()) == []
    assert not (tmp_path / "w.pt").exists()
