"""Good bundles to mutate: a small network by hand, an SVM on its descriptors, goldens of noisy photos, a baseline."""

import io
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from PIL import Image
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from penult.bundle.baseline import Baseline, Limit, Residual
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.bundle.scores import as_columns
from penult.bundle.writer import publish

SIDE, LENGTH, CLASSES = 16, 48, ("red", "green", "blue")
SPEC = Preprocess(resize=SIDE, crop=SIDE)


@dataclass(frozen=True)
class Good:
    """A published bundle, and the parts that it was made from."""

    folder: Path
    network: onnx.ModelProto
    pipeline: Pipeline
    goldens: Goldens
    baseline: Baseline

    def pickled(self) -> bytes:
        """Return svm.pkl."""
        return (self.folder / "svm.pkl").read_bytes()


def network(seed: int, length: int = LENGTH) -> onnx.ModelProto:
    """Build columns' means as the descriptor, a random linear head, and SIDE x SIDE pixels."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        columns (uint8[N,{SIDE},{SIDE},3] pixels) => (float[N,3] logits, float[N,{length}] descriptor)
        {{ axis = Constant<value_ints = [1]>() shape = Constant<value_ints = [-1, {length}]>()
           as_float = Cast<to = 1>(pixels) scaled = Div(as_float, white)
           means = ReduceMean<keepdims = 0>(scaled, axis) descriptor = Reshape(means, shape)
           weighted = MatMul(descriptor, weights) logits = Add(weighted, bias) }}""")
    rng = np.random.default_rng(seed)
    values = {"weights": rng.normal(size=(length, 3)), "bias": rng.normal(size=3), "white": np.array(255)}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items())
    return model


def photo(rng: np.random.Generator, label: int, kind: str = "PNG") -> bytes:
    """Make a noisy photo, brighter in one of red, green and blue."""
    pixels = rng.integers(0, 160, (24, 30, 3))
    pixels[..., label] += 90
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def make(root: Path, kernel: str = "rbf", seed: int = 0) -> Good:
    """Publish a good bundle as the next version of ROOT/light."""
    rng, model = np.random.default_rng(seed), network(seed)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(photos: list[bytes]) -> list[np.ndarray]:
        return session.run(["logits", "descriptor"], {"pixels": np.stack([crop_encoded(p, SPEC) for p in photos])})

    labels = np.arange(60) % 3
    descriptors = run([photo(rng, label) for label in labels])[1]
    steps = (Normalizer(), SVC(C=10)) if kernel == "rbf" else (StandardScaler(), LinearSVC(random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence does not matter here
        pipeline = make_pipeline(*steps).fit(descriptors, labels)
    images = tuple(photo(rng, n % 3, ("PNG", "JPEG")[n % 2]) for n in range(6))
    logits, found = run(list(images))
    scores = as_columns(pipeline.decision_function(found))
    goldens = Goldens(images, np.stack([crop_encoded(p, SPEC) for p in images]), logits, found, scores)
    units = descriptors[:20] / np.linalg.norm(descriptors[:20], axis=1, keepdims=True)
    directions = np.linalg.qr(units.T)[0][:, :2].astype(np.float32)
    baseline = Baseline(
        units, Limit(0.5, 0.01, 0.2, 40), 0.1, np.full(3, 1 / 3, np.float32), {"dense": 0.8, "svm": 0.9},
        photos=20, residual=Residual(units.mean(axis=0), directions), residual_limit=Limit(0.4, 0.02, 0.3, 40),
    )  # fmt: skip
    manifest = Manifest("columns", CLASSES, SPEC, LENGTH, "svm", {"dense": 1.0, "svm": 1.0})
    files = {
        "model.onnx": model.SerializeToString(),
        "svm.pkl": pickle.dumps(pipeline, protocol=5),
        "golden.npz": goldens.to_bytes(),
        "baseline.npz": baseline.to_bytes(),
        "report/index.html": b"<p>report</p>",
    }
    return Good(publish(root / "light", manifest, files), model, pipeline, goldens, baseline)
