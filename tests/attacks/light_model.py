"""The model `light`: classes dark and bright, no work by default, so that it hides nothing of what an attack costs."""

import pickle
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort
from tests.attacks.mix import SIDE, grey

from penult.bundle.goldens import Goldens
from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.bundle.scores import as_columns
from penult.bundle.writer import publish

_TEMPERATURES = {"dense": 1.0, "svm": 1.0}


def publish_light(root: Path, work_side: int = 0) -> Path:
    """Publish `light` below a folder, with a dense head and an SVM; a product of `work_side` matrices takes its time."""
    network, spec = _network(work_side), Preprocess(resize=SIDE, crop=SIDE)
    images = (grey(20), grey(230))
    crops = np.stack([crop_encoded(image, spec) for image in images])
    options = ort.SessionOptions()
    options.log_severity_level = 4  # an unused initializer needs no warning
    logits, descriptor = ort.InferenceSession(network, options).run(["logits", "descriptor"], {"pixels": crops})
    svm, scores = _svm(descriptor)
    goldens = Goldens(images, crops, logits, descriptor, scores)
    manifest = Manifest("brightness", ("dark", "bright"), spec, 3, "dense", _TEMPERATURES)
    return publish(root / "light", manifest, {"model.onnx": network, "golden.npz": goldens.to_bytes(), "svm.pkl": svm})


def _network(work_side: int) -> bytes:
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
