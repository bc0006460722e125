"""Lower precision (quantize, train --int8): other numbers inside, the same face, a gate that refuses, all made anew."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from tests.export.splits import splits_of

from penult.bundle.errors import BundleError
from penult.bundle.goldens import TOLERANCE
from penult.bundle.naming import versions
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.scores import largest_difference
from penult.bundle.writer import publish
from penult.client import Client
from penult.export.config.quantize import QuantizeSettings
from penult.export.config.refit import RefitSettings
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.errors import QuantizeError, SettingsError
from penult.export.jobs.packaging import Result
from penult.export.jobs.quantize import calibration_photos, quantize
from penult.export.jobs.refit import refit
from penult.export.onnx.int8 import to_int8
from penult.service.models.loader import Placement, load

# A power of two, so that the float network stays the same bit for bit.
LOPSIDED = 2.0**14


@pytest.fixture(scope="module")
def quantized(copy_model: Callable[[Path], Path], digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Version 2 of a copy of the model: the network in int8."""
    copy = copy_model(tmp_path_factory.mktemp("models"))
    return quantize(QuantizeSettings(copy, digits))


@pytest.fixture(scope="module")
def bundle(quantized: Result) -> Bundle:
    """That version, read."""
    return read_bundle(quantized.folder.parent)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_class_maps_are_kept(precision: str, bundle: Bundle, model: Path, some_digits: Path):
    """The feature map stays an output in lower precision, and its maps add up to both scores on the golden photos."""
    if precision == "fp16":
        bundle = read_bundle(quantize(QuantizeSettings(model, some_digits, to="fp16", max_loss=99.0)).folder.parent)
    loaded = load(bundle, Placement("cpu"))
    assert loaded.mapper is not None
    assert set(loaded.mapper.heads) == {"dense", "svm"}


@pytest.fixture
def lopsided(model: Path) -> Path:
    """The model with a version 2 that answers as version 1 does, and whose first channel is 16,384 times as large.

    The second convolution divides by as much. One scale for all channels then leaves the others no step of 255: the
    case that int8 is known to spoil (Nagel et al. 2019).
    """
    before = read_bundle(model, 1)
    network = onnx.load_from_string(before.onnx)
    tensors = {tensor.name: tensor for tensor in network.graph.initializer}
    first, second = [node for node in network.graph.node if node.op_type == "Conv"][:2]
    for name, rows, factor in ((first.input[1], np.s_[:1], LOPSIDED), (first.input[2], np.s_[:1], LOPSIDED),
                               (second.input[1], np.s_[:, :1], 1 / LOPSIDED)):  # fmt: skip
        values = numpy_helper.to_array(tensors[name]).copy()
        values[rows] *= np.float32(factor)
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    files = {name: (model / "1" / name).read_bytes() for name in before.manifest.files}
    publish(model, before.manifest, files | {"model.onnx": network.SerializeToString()})
    load(read_bundle(model, 2), Placement("cpu"))
    return model


# -- the graph ---------------------------------------------------------------------------------------------------------


def test_every_convolution_works_on_integers(bundle: Bundle):
    """Pixels and weights of all convolutions come as integers, the weights in 7 bits: 8 would saturate without VNNI."""
    graph = onnx.load_from_string(bundle.onnx).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 5
    for node in convolutions:
        pixels, weights = (made_by[name] for name in node.input[:2])
        assert (pixels.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert tensors[pixels.input[2]].dtype == np.uint8
        integers = tensors[weights.input[0]]
        assert integers.dtype == np.int8
        assert np.abs(integers.astype(int)).max() == 64
        assert tensors[weights.input[1]].shape == integers.shape[:1]  # a scale per channel


def test_the_face_is_the_float_models(bundle: Bundle, quantized: Result):
    """Input, outputs and dynamic batch are those of the float model, in one file a third of its size."""
    before = read_bundle(quantized.folder.parent, 1)
    faces = []
    for data in (before.onnx, bundle.onnx):
        graph = onnx.load_from_string(data).graph
        faces.append([(v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
                      for v in (*graph.input, *graph.output)])  # fmt: skip
        assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)
    assert faces[0] == faces[1]
    assert faces[1][0] == ("pixels", onnx.TensorProto.UINT8, ["batch", 32, 32, 3])
    assert {kind for _, kind, _ in faces[1][1:]} == {onnx.TensorProto.FLOAT}
    assert len(bundle.onnx) < len(before.onnx) / 2


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_and_threads_decide_nothing(bundle: Bundle, threads: int):
    """The goldens' answers repeat in batches of 1, 3 and 8, with one thread and two, well within the tolerance."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(bundle.onnx, options, providers=["CPUExecutionProvider"])
    goldens = bundle.goldens
    for batch in (1, 3, 8):
        parts = [session.run(["logits", "descriptor"], {"pixels": goldens.crops[at : at + batch]})
                 for at in range(0, len(goldens.crops), batch)]  # fmt: skip
        logits, descriptor = (np.concatenate(column) for column in zip(*parts, strict=True))
        assert largest_difference(logits, goldens.logits) < TOLERANCE / 10
        assert largest_difference(descriptor, goldens.descriptor) < TOLERANCE / 10


def test_a_model_without_convolutions_is_refused(bundle: Bundle):
    """A graph that int8 leaves as it was is an error, not a model."""
    value = onnx.helper.make_tensor_value_info
    pixels, out = (value(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in ("pixels", "logits"))
    node = onnx.helper.make_node("Softmax", ["pixels"], ["logits"])
    plain = onnx.helper.make_model(onnx.helper.make_graph([node], "plain", [pixels], [out]),
                                   opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)  # fmt: skip
    with pytest.raises(QuantizeError) as caught:
        to_int8(plain.SerializeToString(), bundle.manifest, [np.zeros((2, 4), np.float32)])
    assert caught.value.reason == "INT8_FLOAT"


# -- calibration -------------------------------------------------------------------------------------------------------


def test_photos_held_out_decide_nothing(model: Path, digits: Path, tmp_path: Path, quantized: Result):
    """With inverted validation and test photos the int8 network is the same, byte for byte: it never saw them."""
    settings = TrainSettings(digits, model, weights="none", freeze=0)
    splits = splits_of(settings)
    for part in ("train", "val", "test"):
        for photo in getattr(splits, part):
            folder = tmp_path / "photos" / part / splits.classes[photo.label]
            folder.mkdir(parents=True, exist_ok=True)
            if part == "train":
                shutil.copy(photo.path, folder)
            else:
                Image.fromarray(255 - np.asarray(Image.open(photo.path).convert("RGB"))).save(folder / photo.path.name)
    result = quantize(QuantizeSettings(model, tmp_path / "photos", max_loss=99))
    assert result.metrics["test"]["dense"]["accuracy"] < 0.9  # the photos really are others
    assert (result.folder / "model.onnx").read_bytes() == (quantized.folder / "model.onnx").read_bytes()


def test_calibration_takes_training_photos_of_every_class():
    """Every class gives alike as far as it can, copies of held-out photos are left out, and the seed decides."""

    def photos(label: int, count: int) -> tuple[Photo, ...]:
        return tuple(Photo(Path(f"{label}-{n}"), label, f"{label}-{n}") for n in range(count))

    held_out = (Photo(Path("copy"), 0, "0-3"), Photo(Path("other"), 1, "x"))
    splits = Splits(("a", "b"), photos(0, 50) + photos(1, 5), held_out[:1], held_out[1:], ())
    chosen = calibration_photos(splits, 0, 20)
    assert Counter(photo.label for photo in chosen) == {0: 15, 1: 5}
    assert set(chosen) < set(splits.train)
    assert not {photo.sha256 for photo in chosen} & {"0-3", "x"}
    assert chosen == calibration_photos(splits, 0, 20) != calibration_photos(splits, 1, 20)
    assert len(calibration_photos(splits, 0)) == 54


# -- the version -------------------------------------------------------------------------------------------------------


def test_what_it_costs_is_recorded(bundle: Bundle, quantized: Result):
    """Manifest, metrics, report and card tell of precision, calibration and loss, by scorer."""
    told = quantized.metrics["int8"]
    assert (told["float_version"], told["photos"], told["max_loss"]) == (1, 137, 0.5)
    assert set(told["scorers"]) == {"dense", "svm"}
    for figures in told["scorers"].values():
        assert figures["loss"] == pytest.approx(100 * (figures["float"] - figures["int8"]))
        assert figures["agreement"] > 0.97
    assert told["descriptor_cosine_min"] > 0.99
    training = bundle.manifest.training
    assert (training["precision"], bundle.manifest.precision) == ("int8", "int8")
    assert training["calibration"] == {"ranges": "min-max", "activations": "uint8", "weights": "int8 per channel",
                                       "reduce_range": True, "photos": 256, "float_version": 1}  # fmt: skip
    page, card = ((quantized.folder / name).read_text() for name in ("report/index.html", "MODEL_CARD.md"))
    for text in (page, card):
        assert "in int8" in text
        assert "byte for byte" not in text
        assert f"{100 * told['scorers']['svm']['agreement']:.1f} %" in text


def test_everything_is_of_the_int8_network(bundle: Bundle, quantized: Result):
    """Fingerprint, goldens and SVM are other ones than the float version's; the history of its training is the same."""
    before = read_bundle(quantized.folder.parent, 1)
    assert bundle.manifest.fingerprint != before.manifest.fingerprint
    assert bundle.svm != before.svm
    assert bundle.manifest.temperatures != before.manifest.temperatures
    difference = largest_difference(
        bundle.goldens.descriptor, load(before, Placement("cpu")).session.run(bundle.goldens.crops)[1]
    )
    assert TOLERANCE < difference < 0.2
    history = [(quantized.folder.parent / version / "history.csv").read_bytes() for version in ("1", "2")]
    assert history[0] == history[1]
    assert quantized.metrics["test"][bundle.manifest.default_scorer]["accuracy"] > 0.95


def test_it_passes_every_check_and_serves(
    quantized: Result, digits: Path, penult: Callable[..., tuple[int, str, str]], start_server: Callable[..., Any]
):
    """`penult check` finds it good, and a server names the test photos as the offline predictions do."""
    code, out, err = penult("check", quantized.folder.parent)
    assert (code, err) == (0, "")
    assert out.startswith("digits version 2: good.")
    rows = [
        line.split(",") for line in (quantized.folder / "report" / "predictions.csv").read_text().splitlines()[1:81]
    ]
    with Client(start_server(quantized.folder.parent.parent).target) as client:
        for scorer, column in (("dense", 2), ("svm", 4)):
            answer = client.classify([digits / row[0] for row in rows], model="digits", scorer=scorer)
            assert answer.version == 2
            assert [result.label for result in answer.results] == [row[column] for row in rows]


def test_it_is_for_cpus(bundle: Bundle):
    """An int8 version goes to the CPU by itself, and is refused on CUDA with one line: no kernel there adds integers."""
    assert load(bundle, Placement("auto")).session.provider == "CPUExecutionProvider"
    with pytest.raises(BundleError) as caught:
        load(bundle, Placement("cuda"))
    assert caught.value.reason == "INT8_DEVICE"


def test_a_new_svm_keeps_the_precision(quantized: Result, some_digits: Path, tmp_path: Path):
    """`penult svm` on an int8 version keeps its network and says so."""
    copy = shutil.copytree(quantized.folder.parent, tmp_path / "digits")
    refit(RefitSettings(copy, some_digits, kernel="linear"))
    before, after = read_bundle(copy, 2), read_bundle(copy, 3)
    assert after.manifest.precision == "int8"
    assert after.onnx == before.onnx


def test_a_version_with_other_classes_can_be_int8(model: Path, digits: Path, tmp_path: Path):
    """Where the SVM names other classes than the network, it alone is compared, and stays the only scorer."""
    for part in ("train", "val", "test"):
        for digit, name in enumerate(("zero", "one", "two")):
            photos = sorted((digits / ("test" if part == "test" else "train") / str(digit)).iterdir())
            (tmp_path / "names" / part / name).mkdir(parents=True)
            for photo in photos[40:60] if part == "val" else photos[:40]:
                shutil.copy(photo, tmp_path / "names" / part / name)
    refit(RefitSettings(model, tmp_path / "names", kernel="linear"))
    result = quantize(QuantizeSettings(model, tmp_path / "names"))
    made = read_bundle(model, 3)
    assert made.manifest.scorers == ("svm",)
    assert (made.manifest.precision, made.manifest.training["svm"]["kernel"]) == ("int8", "linear")
    assert set(result.metrics["int8"]["scorers"]) == {"svm"}
    assert "dense head is not used" in (result.folder / "MODEL_CARD.md").read_text()
    load(made, Placement("cpu"))


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_a_network_that_int8_spoils_is_refused(
    lopsided: Path, some_digits: Path, penult: Callable[..., tuple[int, str, str]]
):
    """More loss than allowed ends with exit code 1 and one line with the figures; nothing is published."""
    code, out, err = penult("quantize", lopsided, some_digits)
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert line.startswith("penult: int8 classifies ")
    assert "more than --max-loss 0.5; no int8 version is published; serve version 2" in line
    assert versions(lopsided) == [1, 2]
    assert [entry.name for entry in lopsided.iterdir() if entry.name.startswith(".")] == []


def test_a_loss_that_is_allowed_is_published(lopsided: Path, some_digits: Path):
    """The same network passes where --max-loss allows what it loses, and its metrics say how much that was."""
    told = quantize(QuantizeSettings(lopsided, some_digits, max_loss=99)).metrics["int8"]
    assert versions(lopsided) == [1, 2, 3]
    assert (told["float_version"], told["max_loss"]) == (2, 99)
    assert 0.5 < told["loss"] <= 99
    load(read_bundle(lopsided, 3), Placement("cpu"))


# -- float16 -----------------------------------------------------------------------------------------------------------


def test_float16_is_a_version_like_any(model: Path, digits: Path, penult: Callable[..., tuple[int, str, str]]):
    """`penult quantize --to fp16` publishes half the bytes behind the same gate; the next version loads and is as good."""
    code, out, _ = penult("quantize", model, digits, "--to", "fp16", "--json")
    told = json.loads(out)["fp16"]
    assert code == 0
    assert (told["float_version"], told["loss"]) == (1, 0)
    assert min(figures["agreement"] for figures in told["scorers"].values()) == 1
    before, after = read_bundle(model, 1), read_bundle(model, 2)
    assert (after.manifest.precision, after.manifest.training["calibration"]) == ("fp16", {"float_version": 1})
    assert len(after.onnx) < 0.6 * len(before.onnx)
    assert after.manifest.fingerprint != before.manifest.fingerprint
    difference = largest_difference(
        after.goldens.descriptor, load(before, Placement("cpu")).session.run(after.goldens.crops)[1]
    )
    assert 1e-6 < difference < 5e-3
    load(after, Placement("cpu"))
    for name in ("report/index.html", "MODEL_CARD.md"):
        text = (model / "2" / name).read_text()
        assert "in fp16" in text
        assert "8-bit" not in text
    code, _, err = penult("quantize", model, digits)
    assert (code, err.splitlines()[-1]) == (
        1, "penult: version 2 of digits is fp16 already; give --version of a float one",
    )  # fmt: skip


def test_float16_is_for_every_architecture(model: Path, some_digits: Path):
    """What int8 is refused for may be float16: it is not about CPUs."""
    manifest = json.loads((model / "1" / "manifest.json").read_text())
    (model / "1" / "manifest.json").write_text(json.dumps(manifest | {"architecture": "mobilenet_v3_small"}))
    with pytest.raises(SettingsError, match="int8 is for resnet18"):
        quantize(QuantizeSettings(model, some_digits))
    assert quantize(QuantizeSettings(model, some_digits, to="fp16")).folder == model / "2"


# -- the verbs ---------------------------------------------------------------------------------------------------------


def test_the_verb_answers_in_json(penult: Callable[..., tuple[int, str, str]], model: Path, some_digits: Path):
    """`penult quantize --json` prints bundle, scorer, test metrics, seconds and what int8 cost."""
    options = ["--version", "1", "--max-loss", "2", "--seed", "0", "--no-report-photos", "--json"]
    code, out, _ = penult("quantize", model, some_digits, *options)
    told = json.loads(out)
    assert code == 0
    assert told["bundle"] == str(model / "2")
    assert told["test"][told["default_scorer"]]["accuracy"] > 0.95
    assert told["int8"]["max_loss"] == 2
    assert told["int8"] == json.loads((model / "2" / "metrics.json").read_bytes())["int8"]
    assert told["seconds"] > 0
    assert "errors.png" not in {path.name for path in (model / "2" / "report").iterdir()}


def test_int8_of_int8_is_refused(penult: Callable[..., tuple[int, str, str]], quantized: Result, digits: Path):
    """The newest version being int8 already, the line asks for a float one."""
    code, out, err = penult("quantize", quantized.folder.parent, digits)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "penult: version 2 of digits is int8 already; give --version of a float one"


@pytest.mark.parametrize(
    ("words", "told"),
    [(["absent", "photos"], "holds no version"), (["digits", "photos"], "does not exist"),
     (["digits", "photos", "--version", "7"], "has no version 7"),
     (["digits", "photos", "--max-loss", "-1"], "--max-loss -1.0 must be at least 0"),
     (["digits", "photos", "--max-loss", "nan"], "--max-loss nan must be at least 0")],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_work_is_one_line(
    penult: Callable[..., tuple[int, str, str]], model: Path, words: list[str], told: str
):
    """A model, version, folder or loss that cannot be ends with exit code 1 and one line; nothing is published."""
    code, out, err = penult("quantize", model.parent / words[0], model.parent / words[1], *words[2:])
    assert (code, out) == (1, "")
    assert told in err.splitlines()[-1]
    assert versions(model) == [1]


def test_networks_that_would_not_gain_are_refused(
    penult: Callable[..., tuple[int, str, str]], model: Path, digits: Path, tmp_path: Path
):
    """Other architectures are refused with the reason: before training by `train --int8`, at once by `quantize`."""
    code, out, err = penult("train", digits, "--arch", "mobilenet_v2", "--int8", "--out", tmp_path / "m")
    assert (code, out) == (1, "")
    assert "slower than in float" in err.splitlines()[-1]
    assert not (tmp_path / "m").exists()
    before = read_bundle(model, 1)
    files = {name: (model / "1" / name).read_bytes() for name in before.manifest.files}
    publish(model, replace(before.manifest, architecture="efficientnet_b0"), files)
    with pytest.raises(SettingsError) as caught:
        quantize(QuantizeSettings(model, digits))
    assert caught.value.reason == "INT8_ARCHITECTURE"
    with pytest.raises(SettingsError, match="with --sweep, which publishes nothing"):
        TrainSettings(Path("d"), Path("o"), int8=True, sweep="freeze")


def test_pytorch_is_not_loaded(model: Path, some_digits: Path):
    """The whole verb runs without torch, whose import alone would take seconds."""
    code = f"""
import sys
from penult import cli
code = cli.main(["quantize", {str(model)!r}, {str(some_digits)!r}, "--json"])
print(code, [name for name in ("torch", "torchvision") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr
    assert versions(model) == [1, 2]


# -- train --int8 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def train_int8(
    penult: Callable[..., tuple[int, str, str]], few_digits: Path, trained: Any, tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """train_int8(weights, *options): a head on a frozen tiny5 that has learnt ten digits, below tmp_path/few."""

    def run(weights: Path, *options: str) -> tuple[int, str, str]:
        fixed = ["--arch", "tiny5", "--weights", weights, "--freeze", "all", "--lr-head", "0.03", "--augment", "gentle"]
        return penult("train", few_digits, *fixed, "--int8", "--device", "cpu", "--out", tmp_path / "few", *options)

    return run


@pytest.fixture
def good_weights(models: Path) -> Path:
    """The state dict of the trained model."""
    return models.parent / "tiny5.pt"


@pytest.fixture
def bad_weights(good_weights: Path, tmp_path: Path) -> Path:
    """The same network in float, lopsided as above: what batch norm makes larger, the next convolution divides by."""
    state = torch.load(good_weights)
    for key in ("stages.0.1.weight", "stages.0.1.bias"):
        state[key][0] *= LOPSIDED
    state["stages.1.0.weight"][:, 0] /= LOPSIDED
    torch.save(state, tmp_path / "lopsided.pt")
    return tmp_path / "lopsided.pt"


def test_training_publishes_float_and_int8(
    train_int8: Callable[..., tuple[int, str, str]], good_weights: Path, tmp_path: Path
):
    """`train --int8 --json` publishes version 1 in float and version 2 in int8, and tells of both in one object."""
    code, out, _ = train_int8(good_weights, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["bundle"], told["int8"]["bundle"]) == (str(tmp_path / "few" / "1"), str(tmp_path / "few" / "2"))
    manifests = [read_bundle(tmp_path / "few", version).manifest for version in (1, 2)]
    assert [manifest.precision for manifest in manifests] == ["float", "int8"]
    assert manifests[0].training["settings"] == manifests[1].training["settings"]
    assert manifests[0].training["data_sha256"] == manifests[1].training["svm"]["data_sha256"]
    assert told["int8"]["float_version"] == 1
    assert told["int8"]["loss"] <= 0.5
    load(read_bundle(tmp_path / "few", 2), Placement("cpu"))
    # Once more with --resume: both are there already, and are told of as before.
    code, out, _ = train_int8(good_weights, "--json", "--resume")
    assert (code, json.loads(out)) == (0, told)
    assert versions(tmp_path / "few") == [1, 2]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_refusal_leaves_the_float_version(
    train_int8: Callable[..., tuple[int, str, str]], bad_weights: Path, tmp_path: Path, as_json: bool
):
    """Where int8 loses too much, the training is not lost: version 1 stays, the exit code is 1, the line says why."""
    code, out, err = train_int8(bad_weights, *(["--json"] if as_json else []))
    assert code == 1
    assert versions(tmp_path / "few") == [1]
    line = err.splitlines()[-1]
    assert line.startswith("penult: version 1 is published, in float; int8 classifies ")
    assert str(tmp_path / "few" / "1") in out
    if as_json:
        told = json.loads(out)
        assert told["test"]["dense"]["accuracy"] > 0.9
        assert told["int8"] == {"refused": line.partition("in float; ")[2]}
    load(read_bundle(tmp_path / "few", 1), Placement("cpu"))
