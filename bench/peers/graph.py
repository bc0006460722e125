"""Run a bundle's graph as a good user of another server would: one small session, one fast decode.

Requests are crops, uint8 RGB of the network's size, or JPEGs. Answers are the five best classes of each image.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import simplejpeg
from PIL import Image

FOLDER = Path(os.environ["PEER_BUNDLE"])
TOP = 5


class Graph:
    """The model, in the caller's thread."""

    def __init__(self) -> None:
        """Load the graph, one thread a run."""
        manifest = json.loads((FOLDER / "manifest.json").read_bytes())
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        onnx = str(FOLDER / "model.onnx")
        self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self._input, self._classes = self._session.get_inputs()[0].name, manifest["classes"]
        self._crop, self._resize = manifest["preprocess"]["crop"], manifest["preprocess"]["resize"]

    def classify(self, crops: np.ndarray) -> list[dict[str, float]]:
        """Return the best classes of crops uint8 [N, crop, crop, 3]."""
        (logits,) = self._session.run(["logits"], {self._input: crops})
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        best = np.argsort(-scores, axis=1)[:, :TOP]
        return [{self._classes[n]: float(row[n]) for n in places} for row, places in zip(scores, best, strict=True)]

    def crops(self, pixels: bytes) -> np.ndarray:
        """Return crops for bytes that are crops."""
        return np.frombuffer(pixels, np.uint8).reshape(-1, self._crop, self._crop, 3)

    def decode(self, jpeg: bytes) -> np.ndarray:
        """Return the crop of a JPEG, with one resize of the part that is needed."""
        image = Image.fromarray(simplejpeg.decode_jpeg(jpeg, "RGB"))
        part = min(image.size) * self._crop / self._resize
        left, top = (image.width - part) / 2, (image.height - part) / 2
        box = (left, top, left + part, top + part)
        return np.asarray(image.resize((self._crop, self._crop), Image.Resampling.BILINEAR, box=box))
