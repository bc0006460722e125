"""`penult import`: checkpoints, timm folders and TorchServe's archives answer as their library does, or are refused."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.models._hub import save_for_hf
from torch import nn

from penult.bundle.reader import read_bundle
from penult.export.onnx.head import reads_descriptor
from penult.export.onnx.runtime import ExportedModel

# Of PyTorch's older exporters, which people's files come from.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)
# PyTorch takes two to five seconds to export one of these.
_exports_long = pytest.mark.server
NAMES = ("ant", "bee", "cat")
SIDE = 64
SMALL = json.dumps({"resize": 72, "crop": SIDE})
TIMM = "test_resnet"


def settled(net: nn.Module) -> nn.Module:
    """Return a network in eval mode whose batch norms have statistics of their own."""
    torch.manual_seed(2)
    for each in net.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.uniform_(-0.1, 0.1)
            each.running_var.uniform_(0.5, 1.5)
    return net.eval()


def of_torchvision(name: str = "squeezenet1_1") -> nn.Module:
    """Return a network of torchvision with random weights and three classes."""
    torch.manual_seed(1)
    return settled(torchvision.models.get_model(name, weights=None, num_classes=len(NAMES)))


def of_timm() -> nn.Module:
    """Return a small network of timm with random weights and three classes."""
    torch.manual_seed(1)
    return settled(timm.create_model(TIMM, num_classes=len(NAMES)))


def equal(folder: Path, net: nn.Module, describe: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Check logits and descriptors of a bundle against the original on the same pixels."""
    bundle = read_bundle(folder)
    spec = bundle.manifest.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (3, spec.crop, spec.crop, 3), np.uint8)
    image = torch.from_numpy(((pixels / 255 - spec.mean) / spec.std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = net(image).numpy(), describe(image).numpy()
    for actual, wanted in zip(ExportedModel(bundle.onnx, bundle.manifest).run(pixels), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-4 * np.abs(wanted).max())
    assert bundle.manifest.classes == NAMES


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A file of class names."""
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(NAMES))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of the model."""
    return tmp_path / "models" / "pets"


@pytest.fixture
def run(penult: Callable[..., tuple[int, str, str]], out: Path) -> Callable[..., tuple[int, str, str]]:
    """Run penult import into models/pets."""
    return lambda source, *more: penult("import", source, "--out", out, *more)


def test_a_checkpoint_of_torchvision(tmp_path: Path, labels: Path, out: Path, run: Callable[..., Any]):
    """Tensors in a training tool's wrapper become the network; what --preprocess omits is torchvision's."""
    net = of_torchvision()
    path = tmp_path / "last.ckpt"
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state | {"loss.weight": torch.ones(3)}}, path)
    code, _, err = run(path, "--arch", "squeezenet1_1", "--labels", labels, "--preprocess", SMALL)
    assert code == 0, err
    equal(out, net, lambda image: net.features(image).mean((2, 3)))
    assert "under the key 'state_dict' and without the prefix 'net.'" in err
    assert "preprocessing from --preprocess and torchvision's for squeezenet1_1: resize 72, crop 64" in err
    manifest = read_bundle(out).manifest
    assert (manifest.architecture, manifest.preprocess.mean) == ("squeezenet1_1", (0.485, 0.456, 0.406))
    record = manifest.training["imported"]
    assert (record["kind"], record["file"], len(record["sha256"])) == ("checkpoint", "last.ckpt", 64)
    assert record["producer"].startswith("torchvision ")


@_exports_long
def test_a_checkpoint_of_timm(tmp_path: Path, labels: Path, out: Path, run: Callable[..., Any]):
    """A safetensors file becomes a network of timm, with timm's preprocessing; a module may be the descriptor."""
    net = of_timm()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    code, _, err = run(path, "--arch", f"timm/{TIMM}", "--labels", labels)
    assert code == 0, err
    equal(out, net, lambda image: net.forward_head(net.forward_features(image), pre_logits=True))
    config = net.default_cfg
    manifest = read_bundle(out).manifest
    assert (manifest.preprocess.crop, manifest.preprocess.interpolation) == (160, config["interpolation"])
    assert f"preprocessing from timm's for timm/{TIMM}" in err
    assert reads_descriptor(read_bundle(out).onnx, manifest)
    code, _, err = run(
        path, "--arch", f"timm/{TIMM}", "--labels", labels, "--descriptor", "layer2", "--preprocess", SMALL
    )
    assert code == 0, err
    assert "descriptor output of layer2" in err
    with torch.no_grad():
        length = net.forward_intermediates(torch.zeros(1, 3, SIDE, SIDE), indices=[2], intermediates_only=True)[
            0
        ].shape[1]
    assert read_bundle(out).manifest.descriptor_length == length
    code, _, err = run(path, "--arch", f"timm/{TIMM}", "--labels", labels, "--descriptor", "layer9")
    assert (code, "did you mean layer" in err) == (1, True)


@_exports_long
def test_a_folder_of_timm(tmp_path: Path, out: Path, run: Callable[..., Any]):
    """A folder of the hub says itself which network, names and preprocessing it has."""
    net, folder = of_timm(), tmp_path / "hub"
    folder.mkdir()
    save_for_hf(net, folder, model_config={"label_names": list(NAMES)})
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, 96, 96], "crop_pct": 0.875, "mean": [0.5, 0.5, 0.5]}
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = run(folder)
    assert code == 0, err
    equal(out, net, lambda image: net.forward_head(net.forward_features(image), pre_logits=True))
    manifest = read_bundle(out).manifest
    assert (manifest.preprocess.resize, manifest.preprocess.crop, manifest.preprocess.mean) == (
        109,
        96,
        (0.5, 0.5, 0.5),
    )
    assert manifest.training["imported"]["kind"] == "huggingface"
    config["model_args"] = {"checkpoint_path": "x.pth"}
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = run(folder)
    assert (code, err.count("\n")) == (1, 1)
    assert "model_args of config.json has checkpoint_path" in err


# -- what does not fit -------------------------------------------------------------------------------------------------


def _with(net: nn.Module, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {key.replace("/", "."): value for key, value in (net.state_dict() | more).items()}


def _without(state: dict[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(start)}


@pytest.mark.parametrize(
    ("change", "words", "shown"),
    [
        (lambda state: state, (), "fit squeezenet1_1; give --arch squeezenet1_1"),
        (lambda state: state, ("--arch", "squezenet1_1"), "did you mean squeezenet1_1?"),
        (lambda state: state, ("--arch", "vit_b_16"), "is a transformer, and penult builds CNNs only"),
        (lambda state: state, ("--arch", "timm/vit_tiny_patch16_224"), "--arch timm/vit_tiny_patch16_224 "),
        (lambda state: state, ("--arch", "inception_v3"), "scales its input once more"),
        (lambda state: state, ("--arch", "resnet18"), "they fit squeezenet1_1: give --arch squeezenet1_1"),
        (lambda state: _without(state, "classifier"), ("--arch", "squeezenet1_1"), "has no head (classifier.1.weight is"),
        (lambda state: _without(state, "features.3."), ("--arch", "squeezenet1_1"), "features.3.squeeze.weight is missing"),
        (lambda state: _without(state, "classifier") | {"classifier.3.weight": torch.ones(3, 512)},
         ("--arch", "squeezenet1_1"), "its head has classifier.3.weight, and the layers between are not known"),
        (lambda state: {"x": torch.ones(1)}, (), "its tensors fit none that penult knows"),
        (lambda state: {"state_dict": state, "args": Path("x")}, ("--arch", "squeezenet1_1"), "contains pickled objects"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    change: Callable[[Any], Any],
    words: tuple[str, ...],
    shown: str,
    tmp_path: Path,
    labels: Path,
    run: Callable[..., Any],
):
    """Missing and unknown networks, transformers, missing tensors and other heads are refused in one line."""
    path = tmp_path / "w.pth"
    torch.save(change(of_torchvision().state_dict()), path)
    code, _, err = run(path, "--labels", labels, *words)
    assert (code, err.count("\n")) == (1, 1), err
    assert shown in err


def test_names_and_options_that_do_not_fit(tmp_path: Path, labels: Path, out: Path, run: Callable[..., Any]):
    """A wrong number of names, a missing file of names, and --arch for an ONNX file are refused in one line."""
    path, onnx_file = tmp_path / "w.pth", tmp_path / "net.onnx"
    torch.save(of_torchvision().state_dict(), path)
    onnx_file.write_bytes(b"\x08\x08\x12\x07pytorch")
    labels.write_text("ant\nbee\n")
    spec = ("--preprocess", json.dumps({"resize": 9, "mean": [0, 0, 0], "std": [1, 1, 1]}))
    for words, shown in (
        ((path, "--arch", "squeezenet1_1", "--labels", labels), "has 2 names, and the model gives 3 scores"),
        ((path, "--arch", "squeezenet1_1"), "class names are missing"),
        ((path, "--arch", "squeezenet1_1", "--labels", labels, "--preprocess", '{"rescale": 1}'), "give both too"),
        ((onnx_file, "--arch", "resnet18", "--labels", labels, *spec), "omit --arch"),
        ((tmp_path, "--labels", labels), "is a folder without config.json"),
    ):
        code, _, err = run(*words)
        assert (code, err.count("\n")) == (1, 1), err
        assert shown in err
    assert not out.exists()


# -- archives of TorchServe --------------------------------------------------------------------------------------------


def archive(
    path: Path, content: bytes | Path, name: str = "best.pth", handler: str = "image_classifier", names: Any = NAMES,
    **model: Any,
) -> Path:  # fmt: skip
    """Write an archive as torch-model-archiver does."""
    entry = {
        "modelName": "pets",
        "serializedFile": name,
        "handler": handler,
        "modelFile": "model.py",
        "modelVersion": "1",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
        file.writestr("model.py", "raise SystemExit('this code must not run')")
        file.writestr("index_to_name.json", json.dumps({str(n): ["n0", each] for n, each in enumerate(names)}))
        manifest = {"runtime": "python", "model": entry | model, "archiverVersion": "0.12.0"}
        file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    return path


@_exports_long
def test_an_archive_with_a_state_dict(tmp_path: Path, out: Path, run: Callable[..., Any]):
    """Names come from index_to_name.json, the network from the tensors, the preprocessing from the named handler."""
    net = of_torchvision()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    source = archive(tmp_path / "pets.mar", tmp_path / "w.pth", name="../../best.pth")
    code, _, err = run(source)
    assert code == 0, err
    equal(out, net, lambda image: net.features(image).mean((2, 3)))
    assert f"all tensors of 'best.pth' in {source} fit squeezenet1_1, which is used" in err
    assert "penult-import-" not in err
    assert "preprocessing from TorchServe's image_classifier handler: resize 256, crop 224" in err
    record = read_bundle(out).manifest.training["imported"]
    assert (record["kind"], record["file"]) == ("mar", "pets.mar")
    assert not list(tmp_path.parent.parent.glob("best.pth"))


def test_an_archive_with_onnx(tmp_path: Path, out: Path, run: Callable[..., Any]):
    """An ONNX file in an archive is imported as outside; its handler is not run, so --preprocess is needed."""
    net = of_torchvision()
    torch.onnx.export(net, (torch.zeros(1, 3, SIDE, SIDE),), tmp_path / "net.onnx", dynamo=False)
    source = archive(tmp_path / "pets.mar", tmp_path / "net.onnx", name="net.onnx", handler="mine.py")
    code, _, err = run(source)
    assert (code, "handler 'mine.py'" in err, "--preprocess is missing" in err) == (1, True, True)
    spec = {"resize": 72, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    code, _, err = run(source, "--preprocess", json.dumps(spec))
    assert code == 0, err
    equal(out, net, lambda image: net.features(image).mean((2, 3)))


def _scripted(path: Path) -> bytes:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    return path.read_bytes()


def _pickled(path: Path) -> bytes:
    torch.save(nn.Linear(2, 2), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "more", "shown"),
    [
        (_scripted, {}, "is TorchScript; convert it with"),
        (_pickled, {}, "contains pickled objects (torch.nn.modules.linear.Linear)"),
        (lambda path: bytes(64 << 20), {}, "times its size, which no weights do"),
        (lambda path: b"x", {"serializedFile": "/etc/passwd"}, "serializedFile of its MAR-INF/MANIFEST.json is '/etc/passwd'"),
        (lambda path: b"x", {"serializedFile": None}, "has no file of weights"),
        (lambda path: b"no weights", {}, "'best.pth' in"),
    ],
)  # fmt: skip
def test_archives_that_cannot_be_imported(
    content: Callable[[Path], bytes], more: dict[str, Any], shown: str, tmp_path: Path, run: Callable[..., Any]
):
    """Code, bombs, files outside and damage are refused in one line, and nothing in the archive is executed."""
    code, _, err = run(archive(tmp_path / "pets.mar", content(tmp_path / "w"), **more))
    assert (code, err.count("\n")) == (1, 1), err
    assert shown in err


def test_files_that_are_no_archives(tmp_path: Path, run: Callable[..., Any]):
    """A tar archive, a zip archive of another tool and a truncated one are refused in one line."""
    path = tmp_path / "pets.mar"
    whole = archive(path, b"x" * 9999).read_bytes()
    other = tmp_path / "other.mar"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("a", "b")
    for content, shown in (
        (b"\x1f\x8b\x08" + bytes(99), "is no zip archive"),
        (other.read_bytes(), "has no MAR-INF/MANIFEST.json"),
        (whole[: len(whole) - 30], "is no zip archive"),
        (whole.replace(b"x" * 3, b"y" * 3), ""),
    ):
        path.write_bytes(content)
        code, _, err = run(path)
        assert (code, err.count("\n")) == (1, 1), err
        assert shown in err


def test_onnx_is_recognised_by_its_content(tmp_path: Path, labels: Path, run: Callable[..., Any]):
    """An ONNX model under another name is read as one."""
    torch.onnx.export(of_torchvision(), (torch.zeros(1, 3, SIDE, SIDE),), tmp_path / "net.onnx", dynamo=False)
    path = (tmp_path / "net.onnx").rename(tmp_path / "net.pth")
    assert onnx.load(path).graph.node
    assert "--preprocess is missing" in run(path, "--labels", labels)[2]
