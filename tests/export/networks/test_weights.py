"""A wrong file of --weights: one line that says what it is, and what to do."""

import argparse
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from penult.export.config.known_networks import NETWORKS
from penult.export.errors import SettingsError
from penult.export.networks import weights, weights_file, weights_names
from penult.export.networks.architectures import get, names

_ONNX = b"\x08\x08\x12\x07pytorch"
_SAFETENSORS = (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}' + bytes(40)


def _zip(*files: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in files:
                archive.writestr(name, b"x")

    return write


def _told(path: Path, arch: str = "resnet18") -> str:
    """Return the only line with which these weights are refused, as building a network would refuse them."""
    with pytest.raises(SettingsError) as caught:
        weights_file.check(str(path), NETWORKS[arch])
        weights.match(get(arch).body().state_dict(), weights.read(str(path)), str(path), arch)
    assert caught.value.reason == "WEIGHTS"
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://x/git-lfs/spec\noid sha256:0\n", "git lfs pull"),
        (_ONNX, "is an ONNX model"),
        (_SAFETENSORS, "is truncated or damaged"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "as Keras writes"),
        (b"\x1f\x8b\x08" + bytes(40), "is compressed"),
        (pickle.dumps({"a": 1}), "which penult does not load"),
        (b"PK\x03\x04" + bytes(100), "is truncated or damaged"),
        (_zip("w/data.pkl", "w/constants.pkl"), "is TorchScript"),
        (_zip("config.json"), "is a zip archive"),
        (b"no weights", "is damaged or was not written by torch.save()"),
        (lambda path: torch.save([1], path), "contains a list, not a state dict"),
        (lambda path: torch.save(None, path), "contains nothing, not a state dict"),
        (lambda path: torch.save({1: torch.zeros(1)}, path), "contains a dict, not a state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "has no named tensors"),
        (lambda path: torch.save({"args": argparse.Namespace()}, path), "pickled objects (argparse.Namespace)"),
        (lambda path: torch.save(nn.Linear(1, 1), path), "pickled objects (torch.nn.modules.linear.Linear)"),
        (
            lambda path: torch.save({"epoch": 3, "network": {"a": torch.zeros(1)}, "optimizer": {}}, path),
            "it is under the key 'network': torch.save(torch.load(",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_state_dict_is_named(tmp_path: Path, content: Any, told: str):
    """Each kind of file that people give is called what it is, and what runs code is never run."""
    path = tmp_path / "given.pth"
    content(path) if callable(content) else path.write_bytes(content)
    assert told in _told(path)


def test_a_folder_and_a_slip_of_the_finger(tmp_path: Path):
    """A folder names a file inside; a wrong name the nearest file beside, or the word that was meant."""
    (tmp_path / "resnet.pth").touch()
    assert f"is a folder; give the state-dict file, such as {tmp_path / 'resnet.pth'}" in _told(tmp_path)
    assert f"did you mean {tmp_path / 'resnet.pth'}?" in _told(tmp_path / "resnet.pt")
    assert "did you mean imagenet?" in _told(Path("imagnet"))


def _weights_of(name: str) -> dict[str, torch.Tensor]:
    """Return a state dict of torchvision's whole network, or of tiny5, in zeros that take no time."""
    if name == "tiny5":
        return {key: torch.zeros_like(value) for key, value in get(name).body().state_dict().items()}
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    return {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("name", names())
def test_every_network_is_recognised(name: str):
    """By names and shapes, each of the networks is told from all others, whatever its head."""
    assert weights.looks_like(_weights_of(name)) == (name, 1.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state, "they fit resnet50: give --arch resnet50"),
        (lambda state: state | {"x.weight": torch.zeros(1)}, "they are most similar to resnet50: give --arch resnet50"),
        (
            lambda state: {"model": {f"net.{key}": value for key, value in state.items()}},
            "they fit resnet50: give --arch resnet50",
        ),
        (
            lambda state: {f"vision.tower.{key}": value for key, value in state.items()} | {"neck": torch.zeros(1)},
            "without the prefix 'vision.tower.' they fit resnet50: torch.save("
            "{k.removeprefix('vision.tower.'): v for k, v in state.items() if k.startswith('vision.tower.')}, …), and give --arch resnet50",
        ),
        (lambda state: {"embeddings.weight": torch.zeros(2)}, "they fit none of the networks that penult knows"),
    ],
    ids=["whole", "more", "wrapped", "prefixed", "strange"],
)  # fmt: skip
def test_weights_of_another_network_name_it(change: Callable[..., Any], told: str):
    """Weights that do not fit are told with what they are of, or what to take off their names."""
    own = get("resnet18").body().state_dict()
    with pytest.raises(SettingsError) as caught:
        weights.match(own, change(_weights_of("resnet50")), "w.pth", "resnet18")
    assert caught.value.message.startswith("--weights w.pth does not fit --arch resnet18: ")
    assert caught.value.message.endswith(told)


def test_weights_that_nearly_fit_say_how_many_do():
    """One wrong tensor of the right network is named, without advice to take another network."""
    own = get("tiny5").body().state_dict()
    with pytest.raises(SettingsError, match=r"stages.2.0.weight has shape \(3,\), not .*; 96% of the tensors fit"):
        weights.match(own, own | {"stages.2.0.weight": torch.zeros(3)}, "w.pth", "tiny5")


@pytest.mark.parametrize("name", names())
def test_the_table_of_networks_is_right(name: str):
    """What is known without PyTorch is what torchvision and the network say: downloads and descriptor length."""
    network = NETWORKS[name]
    there = [] if name == "tiny5" else [weight.name for weight in torchvision.models.get_model_weights(name)]
    known = {"imagenet": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"}
    assert {known[download] for download in network.downloads} == {*known.values()} & {*there}
    with torch.device("meta"):
        body, size = get(name).body().eval(), network.preprocess.crop
        assert body(torch.zeros(1, 3, size, size)).shape == (1, network.descriptor_length)


def _wrapped(*path: str, prefix: str = "", beside: dict[str, Any] | None = None) -> Callable[[dict[str, Any]], Any]:
    """Return a function that puts a state dict under keys, with a prefix before its names."""

    def wrap(state: dict[str, Any]) -> Any:
        content = {prefix + key: value for key, value in state.items()} | (beside or {})
        for key in reversed(path):
            content = {key: content, "epoch": 3}
        return content

    return wrap


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (_wrapped(), ""),
        (_wrapped("state_dict"), "under the key 'state_dict' fit"),
        (_wrapped("model"), "under the key 'model' fit"),
        (_wrapped("model_state_dict"), "under the key 'model_state_dict' fit"),
        (_wrapped("model_ema"), "under the key 'model_ema' fit"),
        (_wrapped("model", "state_dict"), "under the key 'model.state_dict' fit"),
        *((_wrapped(prefix=f"{p}."), f"without the prefix '{p}.' fit") for p in weights_names.PREFIXES),
        (_wrapped(prefix="_orig_mod.module."), "without the prefix '_orig_mod.module.' fit"),
        (
            _wrapped("state_dict", prefix="model.", beside={"loss.weight": torch.ones(2)}),
            "under the key 'state_dict' and without the prefix 'model.' fit; 1 others are not used, such as loss.weight",
        ),
    ],
)  # fmt: skip
def test_what_tools_put_around_a_network_is_taken_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrap: Callable[..., Any], said: str
):
    """Wrappers and prefixes, also nested, are taken off if all tensors then fit, and a note says so."""
    own, path = get("tiny5").body().state_dict(), tmp_path / "w.pth"
    torch.save(wrap(dict(own)), path)
    found = weights.match(own, weights.read(str(path)), str(path), "tiny5")
    assert all(torch.equal(found[key], own[key]) for key in own)
    assert capsys.readouterr().err == (f"note: --weights {path}: the tensors {said}\n" if said else "")


def test_a_prefix_is_not_taken_off_if_the_rest_does_not_fit(tmp_path: Path):
    """One missing tensor under a prefix is named as missing, and nothing is loaded."""
    own = get("tiny5").body().state_dict()
    content = {f"module.{key}": value for key, value in own.items() if key != "stages.2.0.weight"}
    with pytest.raises(SettingsError, match=r"does not fit --arch tiny5: stages\.2\.0\.weight is missing"):
        weights.match(own, content, "w.pth", "tiny5")


def test_weights_of_a_network_of_timm_name_it():
    """A file that fits no network of torchvision is compared with common ones of timm."""
    import timm

    with torch.device("meta"):
        state = timm.create_model("ghostnet_100").state_dict()
    own = get("tiny5").body().state_dict()
    with pytest.raises(SettingsError, match="they fit timm/ghostnet_100: give --arch timm/ghostnet_100"):
        weights.match(own, state, "w.pth", "tiny5")
