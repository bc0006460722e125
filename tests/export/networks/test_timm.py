"""Networks of timm: five stages in the order of the data, a descriptor before dropout, frozen stages bit-equal."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from penult.bundle.manifest import DENSE, Manifest
from penult.bundle.scores import largest_difference
from penult.export.config import known_networks, timm_facts
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.errors import SettingsError
from penult.export.networks.architectures import Architecture, get
from penult.export.networks.network import BatchDropout, Normalise, build, freeze_stages, parameter_groups
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.runtime import ExportedModel

Settings = Callable[..., TrainSettings]

# A dozen families by their smallest members: plain, pre-activation, depthwise, group and layer norm, evolved norm,
# scaled weights, several branches, hidden dense layers after the pool, and before it.
_SMALLEST = (
    "test_resnet", "test_efficientnet", "test_efficientnet_gn", "test_efficientnet_evos", "test_convnext",
    "test_byobnet", "test_mambaout", "test_nfnet", "lcnet_035", "mobilenetv3_small_050", "resnetv2_18", "regnetx_002",
    "repghostnet_050", "dla46_c", "starnet_s1", "hgnetv2_b0",
)  # fmt: skip
_SIZE = 96
# `make test` has those that differ most: plain, channels last, pre-activation, dense layers after the pool.
_SERVER = ("test_resnet", "test_mambaout", "resnetv2_18", "mobilenetv3_small_050")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.server if name in _SERVER else pytest.mark.system) for name in _SMALLEST
    ],
)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    """The smallest network of a family."""
    return get(f"timm/{request.param}")


def test_stages_hold_all_parameters_and_run_in_order(architecture: Architecture):
    """Five stages and the dense layers part all parameters among them, and one runs after the other."""
    body = architecture.body()
    parts = (*architecture.stages, architecture.dense)
    found = [f"{p}.{n}" for paths in parts for p in paths for n, _ in body.get_submodule(p).named_parameters()]
    assert sorted(found) == sorted(name for name, _ in body.named_parameters())
    ran: list[int] = []
    for number, paths in enumerate(parts):
        for path in paths:
            for module in body.get_submodule(path).modules():
                module.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        descriptor = body.eval()(torch.zeros(1, 3, _SIZE, _SIZE))
    assert descriptor.shape == (1, architecture.descriptor_length)
    assert ran == sorted(ran)
    assert set(range(5)) <= set(ran)
    assert sum(p.numel() for p in body.parameters()) == architecture.parameters


def test_frozen_stages_stay_bit_equal(architecture: Architecture, settings: Settings):
    """After a step in train mode the first three stages are untouched, with their statistics; weights of others moved."""
    net = build(architecture, settings(arch=architecture.name), classes=2)
    assert all(module.share == 0 for module in net.body.modules() if isinstance(module, BatchDropout))
    freeze_stages(net, architecture, 3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    groups = parameter_groups(net, architecture, settings(arch=architecture.name, lr_head=0.01))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    pixels = torch.randn(4, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(net.train()(pixels)[0], torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    kept = tuple(f"body.{path}." for stage in architecture.stages[:3] for path in stage)
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert not {key for key in moved if key.startswith(kept)}
    learning = {f"{name}.weight" for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {key for key in learning if not key.startswith(kept)} <= moved


def test_the_descriptor_is_timms_own_before_dropout(architecture: Architecture):
    """It is what forward_head(pre_logits=True) gives, and the mean of the last map if the facts say so."""
    import timm

    body = architecture.body().eval()
    model = timm.create_model(architecture.name.removeprefix("timm/"), num_classes=7, drop_rate=0.5).eval()
    assert not model.load_state_dict(body.state_dict(), strict=False).unexpected_keys
    pixels = torch.randn(2, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.forward_features(pixels)
        expected = model.forward_head(features, pre_logits=True).flatten(1)
        assert torch.equal(body(pixels), expected)
        is_mean = expected.shape[1] == features.shape[1] and torch.allclose(expected, features.mean((2, 3)), rtol=1e-4)
    assert architecture.mean_is_last == is_mean


_EXPORTED = ("resnetv2_18",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.server if name in _EXPORTED else pytest.mark.system)
        for name in (*_SMALLEST, "densenet121", "vgg11", "inception_v3", "fasternet_t0", "ghostnet_050")
    ],
)
def test_onnx_gives_the_networks_numbers(settings: Settings, name: str):
    """The exported network is within 1e-4 of the largest value, at its own size, in batches of another size."""
    architecture = get(f"timm/{name}")
    net = build(architecture, settings(arch=architecture.name), classes=3)
    spec = architecture.preprocess
    manifest = Manifest(architecture.name, ("a", "b", "c"), spec, architecture.descriptor_length, DENSE, {})
    pixels = np.random.default_rng(0).integers(0, 256, (3, spec.crop, spec.crop, 3), dtype=np.uint8)
    normalised = Normalise(spec)(torch.from_numpy(pixels))
    with torch.no_grad():
        net.train()(normalised)
        expected = net.eval()(normalised)
    exported = ExportedModel(to_onnx(net, manifest), manifest).run(pixels)
    for ours, theirs in zip(exported, expected, strict=True):
        assert largest_difference(ours, theirs.numpy()) < 1e-4


def test_dropout_comes_before_hidden_dense_layers_only(settings: Settings):
    """VGG's dense layers have the head's dropout between them; the norm after ConvNeXt's mean has none behind it."""
    with torch.device("meta"):
        vgg, convnext = (get(f"timm/{name}") for name in ("vgg11", "test_convnext"))
        assert [n for n, m in vgg.body().named_modules() if isinstance(m, nn.Dropout)] == ["pre_logits.drop"]
        assert vgg.dense == ("pre_logits.fc1", "pre_logits.fc2")
        assert not [m for m in convnext.body().modules() if isinstance(m, nn.Dropout)]
    assert not vgg.mean_is_last


def test_preprocessing_is_timms():
    """Size, crop percentage, interpolation, mean and deviation are those of the weights that the tag names."""
    spec = get("timm/resnet18.tv_in1k").preprocess
    assert (spec.resize, spec.crop, spec.interpolation) == (256, 224, "bilinear")
    other = get("timm/resnet18.a1_in1k").preprocess
    assert (other.resize, other.crop, other.interpolation) == (235, 224, "bicubic")
    assert get("timm/test_convnext").preprocess.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("resnet81", "is not a network of timm"),
        ("resnte18", "did you mean timm/resnet18?"),
        ("resnet18.a9", "has a tag that timm"),
        ("test_vit", "computes a sequence of tokens"),
        ("../resnet18", "is not a name of timm"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(name: str, why: str):
    """Unknown names, unknown tags and transformers are refused with the reason."""
    with pytest.raises(SettingsError) as caught:
        get(f"timm/{name}")
    assert caught.value.reason == "ARCHITECTURE"
    assert why in caught.value.message
    assert "\n" not in caught.value.message


def test_facts_need_no_pytorch_once_they_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What one process found is in the cache, so that the next rejects wrong options without importing PyTorch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timm_facts.answer.cache_clear()
    here = known_networks.get("timm/test_resnet")
    script = (
        "import sys; from penult.export.config import known_networks as k; "
        "print(k.get('timm/test_resnet') == eval(sys.argv[1], vars(k)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, repr(here)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_weights_of_timm_load_from_safetensors(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A whole model's file fits its body, its classifier is left out, and nothing is said about it."""
    import timm

    model = timm.create_model("test_resnet", num_classes=5)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    chosen = settings(arch="timm/test_resnet", weights=str(tmp_path / "model.safetensors"), freeze=5)
    body = build(get("timm/test_resnet"), chosen, 2).body.state_dict()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in body.items())
    assert not capsys.readouterr().err


def test_without_internet_the_error_says_what_to_download(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """It names the file of timm's default weights, in one line, and the way to give it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    chosen = settings(arch="timm/test_resnet", weights="imagenet", freeze=5)
    with pytest.raises(SettingsError) as caught:
        build(get("timm/test_resnet"), chosen, 2)
    assert caught.value.reason == "WEIGHTS"
    assert "download model.safetensors of timm/test_resnet.r160_in1k" in caught.value.message
    assert "\n" not in caught.value.message


def test_all_is_frozen_with_the_dense_layers(settings: Settings):
    """--freeze all leaves the head alone to learn."""
    architecture = get("timm/mobilenetv3_small_050")
    net = build(architecture, settings(arch=architecture.name), classes=2)
    freeze_stages(net, architecture, FREEZE_ALL)
    groups = parameter_groups(net, architecture, settings(arch=architecture.name))
    assert [group["name"] for group in groups] == ["head"]
