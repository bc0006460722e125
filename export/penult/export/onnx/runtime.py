"""Run the exported model as the service will. No other module of this room imports onnxruntime to run a model."""

from collections.abc import Iterable

import numpy as np
import onnxruntime as ort

from penult.bundle.class_map import LinearHead
from penult.bundle.manifest import Manifest
from penult.bundle.map_support import FEATURES
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.export.data.loader import Batch

VERSION = ort.__version__


class ExportedModel:
    """An ONNX model on the CPU provider, the reference for goldens and metrics."""

    def __init__(self, onnx: bytes, manifest: Manifest, dense_head: LinearHead | None = None) -> None:
        """Load the model from its bytes; onnxruntime's exceptions pass through.

        `dense_head` is what an earlier version with this network makes class maps with.
        """
        self.onnx, self.dense_head = onnx, dense_head
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self._input = manifest.input_name
        self._outputs = [manifest.logits_name, manifest.descriptor_name]

    def run(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Map uint8 [N, crop, crop, 3] to logits float32 [N, classes] and descriptors float32 [N, length]."""
        logits, descriptor = self._session.run(self._outputs, {self._input: pixels})
        return logits, descriptor

    @property
    def has_features(self) -> bool:
        """Whether the feature map, which class maps are computed from, is an output."""
        return FEATURES in {value.name for value in self._session.get_outputs()}

    def run_features(self, pixels: Pixels) -> tuple[Floats, Floats, Floats]:
        """Run as run() does; return the feature map too, float32 [views x N, channels, height, width]."""
        logits, descriptor, features = self._session.run([*self._outputs, FEATURES], {self._input: pixels})
        return logits, descriptor, features

    def run_all(self, batches: Iterable[Batch]) -> tuple[Floats, Floats, np.ndarray]:
        """Run every batch; return logits, descriptors and labels, each with N rows."""
        rows = [(*self.run(pixels), labels) for pixels, labels in batches]
        logits, descriptors, labels = (np.concatenate(column) for column in zip(*rows, strict=True))
        return logits, descriptors, labels


class ExportedHead:
    """The dense head of a model (penult.export.onnx.head)."""

    def __init__(self, onnx: bytes, manifest: Manifest) -> None:
        """Load it; onnxruntime's exceptions pass through."""
        self._session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self._names = manifest.descriptor_name, manifest.logits_name

    def run(self, descriptors: Floats) -> Floats:
        """Map descriptors float32 [N, length] to logits float32 [N, classes]."""
        logits: Floats = self._session.run([self._names[1]], {self._names[0]: descriptors})[0]
        return logits
