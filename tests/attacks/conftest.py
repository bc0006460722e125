"""Helpers of the attacks: a model small enough to be no bottleneck, one slow enough to be, a server to be hurt."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest

# The helpers beside this file: tests are imported one by one, without a package around them.
sys.path.append(str(Path(__file__).parent))

from mix import SIDE, grey

from penult.bundle.goldens import Goldens
from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.bundle.scores import as_columns
from penult.bundle.writer import publish

_TEMPERATURES = {"dense": 1.0, "svm": 1.0}


def _network(work_side: int) -> bytes:
    """Build a network of two classes, dark and bright; matrix products of `work_side` take its time."""
    work, zeros = "", ""
    if work_side:
        zeros = ", nothing"
        work = f"""square = Constant<value_ints = [{work_side}, {work_side}]>()
            last = Constant<value_ints = [0, 1]>()
            mean = ReduceMean<keepdims = 1>(descriptor, last) product = Expand(mean, square)
            squared = MatMul(product, product)
            largest = ReduceMax<keepdims = 1>(squared, last) nothing = Mul(largest, zero)"""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        brightness (uint8[N,{SIDE},{SIDE},3] pixels) => (float[N,2] logits, float[N,3] descriptor)
        <float[3,2] weights = {{-4, 4, -4, 4, -4, 4}}, float[2] bias = {{6, -6}}, float scale = {{{1 / 255}}},
         float zero = {{0}}>
        {{ sides = Constant<value_ints = [1, 2]>()
           as_float = Cast<to = 1>(pixels)
           scaled = Mul(as_float, scale)
           descriptor = ReduceMean<keepdims = 0>(scaled, sides)
           weighted = MatMul(descriptor, weights)
           plain = Add(weighted, bias)
           {work}
           logits = Sum(plain{zeros}) }}""")
    return model.SerializeToString()


def _svm(descriptors: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Fit an SVM on descriptors of dark and bright; return its pickle and its scores of them."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    svm = make_pipeline(StandardScaler(), LinearSVC()).fit(descriptors, [0, 1])
    return pickle.dumps(svm, protocol=5), as_columns(svm.decision_function(descriptors))


@pytest.fixture(scope="session")
def publish_model() -> Callable[..., Path]:
    """Publish the model `light` below a folder, with a dense head and an SVM: publish_model(root, work_side=0)."""

    def make(root: Path, work_side: int = 0) -> Path:
        network, spec = _network(work_side), Preprocess(resize=SIDE, crop=SIDE)
        images = (grey(20), grey(230))
        crops = np.stack([crop_encoded(image, spec) for image in images])
        options = ort.SessionOptions()
        options.log_severity_level = 4  # an unused initialiser is not worth a word
        logits, descriptor = ort.InferenceSession(network, options).run(["logits", "descriptor"], {"pixels": crops})
        svm, scores = _svm(descriptor)
        goldens = Goldens(images, crops, logits, descriptor, scores)
        manifest = Manifest("brightness", ("dark", "bright"), spec, 3, "dense", _TEMPERATURES)
        return publish(
            root / "light", manifest, {"model.onnx": network, "golden.npz": goldens.to_bytes(), "svm.pkl": svm}
        )

    return make


@pytest.fixture(scope="session")
def light(publish_model, tmp_path_factory) -> Path:
    """A repository whose model takes no time: what an attack costs is not hidden behind it."""
    root = tmp_path_factory.mktemp("light")
    publish_model(root)
    return root


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A photo that is bright."""
    return grey(230)
