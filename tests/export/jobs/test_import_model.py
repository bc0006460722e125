"""`penult import`: models that other programs wrote become bundles that answer as they do, or are refused in one line."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import FLOAT
from onnxscript import opset17 as op
from torch import nn

import penult.export
from penult.bundle.errors import PenultError
from penult.bundle.preprocess import Preprocess
from penult.bundle.reader import read_bundle
from penult.client import Client
from penult.export.errors import ParityError
from penult.export.jobs import import_model as job
from penult.export.onnx.foreign import read_foreign
from penult.export.onnx.head import reads_descriptor
from penult.export.onnx.original import Original
from penult.export.onnx.penultimate import find_head
from penult.export.onnx.runtime import ExportedModel
from penult.service.models.loader import Placement, load

SIDE = 16
NAMES = ("ant", "bee", "cat")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SPEC = json.dumps({"resize": 20, "mean": MEAN, "std": STD})


class Net(nn.Module):
    """A small classifier; `layout` is NCHW or NHWC, `end` comes after the logits."""

    def __init__(self, layout: str = "NCHW", end: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layout, self.end = layout, end or nn.Identity()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(12, len(NAMES))

    def describe(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the last layer reads."""
        return self.body(pixels.permute(0, 3, 1, 2) if self.layout == "NHWC" else pixels).mean((2, 3)).view(-1, 12)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the program answers."""
        return self.end(self.head(self.describe(pixels)))


class ConvHead(Net):
    """A classifier whose last layer is a convolution before the pooling, as SqueezeNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(12, len(NAMES), 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return torch.relu(self.last(self.body(pixels))).mean((2, 3))


def write(net: nn.Module, path: Path, dynamo: bool = False, is_nhwc: bool = False, **more: Any) -> Path:
    """Export with one of torch's two exporters, for one image at a time unless `more` says otherwise."""
    image = torch.rand(1, SIDE, SIDE, 3) if is_nhwc else torch.rand(1, 3, SIDE, SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (image,), path, dynamo=dynamo, verbose=False, input_names=["image"], **more)
    return path


@onnxscript.script()
def classify(image: FLOAT[None, 3, SIDE, SIDE], conv: FLOAT[12, 3, 3, 3], dense: FLOAT[12, 3]) -> FLOAT[None, 3]:
    """A classifier as onnxscript compiles it from Python."""
    maps = op.Relu(op.Conv(image, conv, strides=[2, 2], pads=[1, 1, 1, 1]))
    return op.MatMul(op.Flatten(op.GlobalAveragePool(maps)), dense)


def scripted(path: Path) -> tuple[Net, Path]:
    """Return a model of onnxscript, and the same network in PyTorch."""
    net = Net()
    net.body, net.head = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.ReLU()), nn.Linear(12, 3, bias=False)
    proto = classify.to_model_proto()
    weights = {"conv": net.body[0].weight.detach().numpy(), "dense": net.head.weight.detach().numpy().T}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in weights.items()
    )
    path.write_bytes(proto.SerializeToString())
    return net, path


OPEN = {"dynamic_axes": {"image": {0: "n"}}}
WRITERS: dict[str, Callable[[Path], tuple[Net, Path]]] = {
    "one image": lambda path: (net := Net(), write(net, path)),
    "any number": lambda path: (net := Net(), write(net, path, **OPEN)),
    "dynamo, weights in a file": lambda path: (net := Net(), write(net, path, dynamo=True)),
    "softmax": lambda path: (net := Net(end=nn.Softmax(1)), write(net, path, **OPEN)),
    "log-softmax": lambda path: (net := Net(end=nn.LogSoftmax(1)), write(net, path)),
    "NHWC": lambda path: (net := Net("NHWC"), write(net, path, is_nhwc=True)),
    "old opset": lambda path: (net := Net(), write(net, path, opset_version=9)),
    "convolution": lambda path: (net := ConvHead(), write(net, path)),
    "onnxscript": scripted,
}  # fmt: skip


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A file of class names."""
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file for any number of images."""
    return write(Net(), tmp_path / "net.onnx", **OPEN)


@pytest.fixture
def run(penult: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run penult import with --preprocess into models/pets."""

    def run(source: Path, *more: object, preprocess: str = SPEC) -> tuple[int, str, str]:
        out = tmp_path / "models" / "pets"
        return penult("import", source, "--out", out, "--preprocess", preprocess, *more)

    return run


@pytest.mark.parametrize("how", WRITERS)
def test_a_bundle_answers_as_the_original(how: str, tmp_path: Path, labels: Path, run: Callable[..., Any]):
    """Logits and descriptors of several images at once equal PyTorch's, whatever wrote the file, and goldens replay."""
    net, source = WRITERS[how](tmp_path / "net.onnx")
    code, _, err = run(source, "--labels", labels)
    assert code == 0, err
    bundle = read_bundle(tmp_path / "models" / "pets")
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    image = torch.from_numpy(((pixels / 255 - MEAN) / STD).astype(np.float32))
    with torch.no_grad():
        net.end = nn.Identity()
        given = image if net.layout == "NHWC" else image.permute(0, 3, 1, 2)
        expected = net(given).numpy(), net.describe(given).numpy()
    for actual, wanted in zip(ExportedModel(bundle.onnx, bundle.manifest).run(pixels), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-4 * np.abs(wanted).max())
    assert load(bundle, Placement("cpu")).scorers == ("dense",) == bundle.manifest.scorers
    assert (bundle.manifest.classes, bundle.manifest.descriptor_length) == (NAMES, 12)
    record = bundle.manifest.training["imported"]
    assert (record["kind"], record["file"], len(record["sha256"])) == ("onnx", "net.onnx", 64)
    assert record.get("left_out") == {"softmax": "Softmax", "log-softmax": "LogSoftmax"}.get(how)


def test_labelled_photos_give_svm_baseline_and_report(
    tmp_path: Path, model: Path, make_photos: Callable[..., Path], run: Callable[..., Any], penult: Callable[..., Any]
):
    """Folders name the classes and both scorers are measured; another SVM, of other classes, can follow."""
    photos = make_photos(tmp_path / "photos", dict.fromkeys(NAMES, 12))
    code, out, err = run(model, "--photos", photos, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert set(answer["test"]) == {"dense", "svm"}
    assert answer["parity"]["logits_difference"] < 1e-4
    bundle = read_bundle(tmp_path / "models" / "pets")
    assert bundle.manifest.classes == NAMES
    assert bundle.baseline
    assert "trained elsewhere" in (tmp_path / "models" / "pets" / "1" / "report" / "index.html").read_text()
    card = (tmp_path / "models" / "pets" / "1" / "MODEL_CARD.md").read_text()
    assert "imported from `net.onnx`" in card
    assert "initial weights were random" not in card
    others = make_photos(tmp_path / "others", {"x": 8, "y": 8}, seed=1)
    assert penult("svm", tmp_path / "models" / "pets", others)[0] == 0
    after = read_bundle(tmp_path / "models" / "pets").manifest
    assert (after.classes, after.scorers, after.fingerprint) == (("x", "y"), ("svm",), bundle.manifest.fingerprint)


def test_photos_of_other_classes_have_the_svm_alone(
    tmp_path: Path, model: Path, labels: Path, make_photos: Callable[..., Path], run: Callable[..., Any]
):
    """If --labels names other classes than the photos have, the dense head is silent, and the manifest says why."""
    photos = make_photos(tmp_path / "photos", {"x": 10, "y": 10})
    code, _, err = run(model, "--labels", labels, "--photos", photos)
    assert code == 0, err
    manifest = read_bundle(tmp_path / "models" / "pets").manifest
    assert (manifest.classes, manifest.scorers, manifest.logits_length) == (("x", "y"), ("svm",), 3)
    assert manifest.training["classes"] == list(NAMES)


@pytest.mark.server
def test_it_is_served_with_goldens_of_unlabelled_photos(
    tmp_path: Path, model: Path, labels: Path, photo_bytes: Callable[[int], bytes], run: Callable[..., Any],
    start_server: Callable[..., Any], penult: Callable[..., Any],
):  # fmt: skip
    """Images without folders become the goldens; a server answers with the names of --labels, and stores descriptors."""
    folder = tmp_path / "some"
    folder.mkdir()
    images = {photo_bytes(seed) for seed in range(4)}
    for number, image in enumerate(images):
        (folder / f"{number}.png").write_bytes(image)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, _, err = run(model, "--labels", labels, "--photos", folder)
    assert code == 0, err
    assert "left out" in err
    assert set(read_bundle(tmp_path / "models" / "pets").goldens.images) == images
    (folder / "broken.png").unlink()
    target = start_server(tmp_path / "models").target
    with Client(target) as client:
        assert client.classify([images.pop()], model="pets").results[0].label in NAMES
    code, _, err = penult("index", "add", "some", folder, "--model", "pets", "--target", target)
    assert code == 0, err
    with Client(target) as client:
        assert client.lookup([folder / "0.png"], "some", k=1).results[0][0].similarity == pytest.approx(1, abs=1e-4)


def test_nothing_is_published_if_answers_differ(
    tmp_path: Path, model: Path, labels: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """A bundle whose network gives other answers than the original is refused by the parity gate."""
    right = job.to_bundle

    def wrong(foreign: Any, head: Any, manifest: Any, ranks: Any) -> bytes:
        return right(foreign, head, replace(manifest, preprocess=Preprocess(20, SIDE)), ranks)

    monkeypatch.setattr(job, "to_bundle", wrong)
    code, _, err = run(model, "--labels", labels)
    assert code == 1
    assert "nothing is published" in err
    assert not list((tmp_path / "models").glob("pets/*"))
    assert ParityError.__doc__


def test_a_named_descriptor_is_pooled(tmp_path: Path, model: Path, labels: Path, run: Callable[..., Any]):
    """--descriptor takes any tensor, maps as their mean over places; the dense head keeps its own layer."""
    maps = next(n.output[0] for n in onnx.load(model).graph.node if n.op_type == "Relu")
    assert run(model, "--labels", labels, "--descriptor", maps)[0] == 0
    bundle = read_bundle(tmp_path / "models" / "pets")
    assert bundle.manifest.descriptor_length == 8
    assert not reads_descriptor(bundle.onnx, bundle.manifest)
    code, _, err = run(model, "--labels", labels, "--descriptor", maps + "x")
    assert (code, err.count("\n")) == (1, 1)
    assert f"did you mean {maps}" in err
    assert run(model, "--labels", labels)[0] == 0
    usual = read_bundle(tmp_path / "models" / "pets")
    assert reads_descriptor(usual.onnx, usual.manifest)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"id2label": {"0": "ant", "1": "bee", "2": "cat"}}', ""),
        ('{"cat": 2, "ant": 0, "bee": 1}', ""),
        ('{"0": ["n1", "ant"], "1": ["n2", "bee"], "2": ["n3", "cat"]}', ""),
        ('["ant", "bee", "cat"]', ""),
        ("ant\nbee\n", "has 2 names, and the model gives 3 scores"),
        ("ant\nbee\nant\n", "'ant' twice, for classes 0 and 2"),
        ("ant\n\ncat\n", "no name for class 1"),
        ('{"0": "ant", "2": "cat"}', "no list of names and no id2label"),
        ('{"a": 1', "no list of names and no id2label"),
    ],
)
def test_labels(content: str, told: str, tmp_path: Path, model: Path, run: Callable[..., Any]):
    """Names come from lines, lists, id2label, class numbers or Keras; a wrong file is refused in one line."""
    path = tmp_path / "labels"
    path.write_text(content)
    code, _, err = run(model, "--labels", path)
    assert code == bool(told), err
    if told:
        assert told in err
        assert err.count("\n") <= 2
    else:
        assert read_bundle(tmp_path / "models" / "pets").manifest.classes == NAMES


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "--preprocess is missing"),
        ("{", "not JSON"),
        ('{"mean": [0, 0, 0], "resize": 20}', "std missing"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1]}', "resize missing"),
        ('{"mean": [0, 0], "std": [1, 1, 1], "resize": 20}', "values to unpack"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": 40, "crop": 32}', "crop is 32, and the model's input has 16"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": 20, "interpolation": "lanczos"}', "'lanczos' is not one of"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": 20, "means": 1}', "did you mean mean?"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": 20, "rescale": 0}', "rescale is 0"),
        ("absent.json", "cannot be read"),
    ],
)
def test_wrong_preprocessing_is_refused(given: str, told: str, model: Path, labels: Path, run: Callable[..., Any]):
    """What is missing, unknown or impossible in --preprocess is said in one line."""
    code, _, err = run(model, "--labels", labels, preprocess=given)
    assert (code, err.count("\n")) == (1, 1), err
    assert told in err


def test_rescale_changes_the_unit_of_mean_and_deviation(
    tmp_path: Path, model: Path, labels: Path, run: Callable[..., Any]
):
    """Mean and deviation of pixels from 0 to 255 give the same network as those of 0 to 1."""
    spec = {"resize": 20, "mean": [255 * m for m in MEAN], "std": [255 * s for s in STD], "rescale": 1}
    for given in (json.dumps(spec), SPEC):
        assert run(model, "--labels", labels, preprocess=given)[0] == 0
    first, second = (read_bundle(tmp_path / "models" / "pets", version).manifest.preprocess for version in (1, 2))
    np.testing.assert_allclose([*first.mean, *first.std], [*second.mean, *second.std])


def graph(*nodes: Any, inputs: Any = None, batch: Any = "n", kind: int = TensorProto.FLOAT) -> bytes:
    """Return a model of these nodes from x [batch, 3, 16, 16] to y, with weights w [12, 3]."""
    image = helper.make_tensor_value_info("x", kind, [batch, 3, SIDE, SIDE])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [768, 3], np.linspace(-1, 1, 768 * 3))
    inside = helper.make_graph(
        list(nodes),
        "g",
        [image, *(inputs or [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])],
        [weights],
    )
    made = helper.make_model(inside, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)])
    made.ir_version = 9
    return made.SerializeToString()


FLAT = helper.make_node("Flatten", ["x"], ["f"])
RELU = helper.make_node("Relu", ["f"], ["d"])
DENSE = helper.make_node("MatMul", ["d", "w"], ["l"])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"not a model", "as ONNX"),
        (graph(FLAT, RELU, DENSE, helper.make_node("Sigmoid", ["l"], ["y"])), "ends in Sigmoid"),
        (graph(FLAT, RELU, DENSE, helper.make_node("ArgMax", ["l"], ["y"], axis=1)), "ends in ArgMax"),
        (graph(FLAT, RELU, DENSE, helper.make_node("Mine", ["l"], ["y"], domain="mine")), "not ONNX's own (mine.Mine)"),
        (graph(FLAT, RELU, helper.make_node("Tanh", ["d"], ["y"])), "Tanh is before the logits"),
        (graph(FLAT, helper.make_node("MatMul", ["f", "w"], ["y"]), kind=TensorProto.UINT8), "is uint8"),
        (graph(helper.make_node("Reshape", ["x", "s"], ["f"]), RELU, helper.make_node("MatMul", ["d", "w"], ["y"]),
               inputs=[helper.make_tensor_value_info("s", TensorProto.INT64, [2])]), "has 2 inputs (x, s)"),
        (graph(FLAT, RELU, helper.make_node("MatMul", ["d", "w"], ["m"]), helper.make_node("Expand", ["m", "one"], ["e"]),
               batch=1), "not a valid ONNX model"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(
    data: bytes, told: str, tmp_path: Path, labels: Path, run: Callable[..., Any]
):
    """Damaged files, other outputs than scores, custom operators and further inputs are refused in one line."""
    source = tmp_path / "net.onnx"
    source.write_bytes(data)
    code, _, err = run(source, "--labels", labels)
    assert (code, err.count("\n")) == (1, 1), err
    assert told in err


def test_a_batch_fixed_inside_the_graph_is_refused(tmp_path: Path, labels: Path, run: Callable[..., Any]):
    """A graph that can only run one image is not published."""
    shape = helper.make_node("Constant", [], ["s"], value=helper.make_tensor("s", TensorProto.INT64, [2], [1, 3]))
    nodes = (FLAT, RELU, DENSE, shape, helper.make_node("Reshape", ["t", "s"], ["y"]))
    turned = helper.make_node("Transpose", ["l"], ["t"], perm=[1, 0])
    source = tmp_path / "net.onnx"
    source.write_bytes(graph(*nodes[:3], turned, *nodes[3:], batch=1))
    code, _, err = run(source, "--labels", labels, "--descriptor", "d")
    assert (code, err.count("\n")) == (1, 1), err
    assert "fixed number of images" in err


def test_missing_weights_and_names_are_said(tmp_path: Path, model: Path, labels: Path, run: Callable[..., Any]):
    """Weights in a file that is not there, and a model without class names, are refused in one line."""
    source = tmp_path / "apart.onnx"
    onnx.save(onnx.load(model), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin, which is missing" in run(source, "--labels", labels)[2]
    assert "class names are missing" in run(model)[2]


def test_the_original_is_run_in_batches_of_its_own_size(tmp_path: Path):
    """A graph for one image answers for each of several images."""
    foreign = read_foreign(write(Net(), tmp_path / "net.onnx"))
    found = Original(foreign, find_head(foreign)).run(
        np.arange(3 * SIDE * SIDE * 3, dtype=np.uint8).reshape(3, SIDE, SIDE, 3), Preprocess(SIDE, SIDE)
    )
    assert {len(values) for values in found.values()} == {3}


def test_from_python(tmp_path: Path, labels: Path, model: Path):
    """The function publishes what the command does, and raises the same errors."""
    out = tmp_path / "models" / "pets"
    result = penult.export.import_model(model, out, labels=labels, preprocess=SPEC, on_line=[].append)
    assert result.folder == out / "1"
    assert result.metrics["parity"]
    with pytest.raises(PenultError, match="class names are missing"):
        penult.export.import_model(model, out, preprocess=SPEC)
