"""Run a model as it was written, and compare the model of the bundle with it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from penult.bundle.goldens import TIE, TOLERANCE
from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Pixels, Preprocess
from penult.bundle.scores import Floats, largest_difference, softmax
from penult.export.errors import ParityError
from penult.export.onnx.foreign import ForeignModel, refusal
from penult.export.onnx.penultimate import Head, with_outputs

RunModel = Callable[[Pixels], tuple[Floats, Floats]]


class OriginalModel(ABC):
    """A model as it was written, whatever runs it."""

    def __init__(self, head: Head) -> None:
        """Remember the names of its tensors."""
        self._head = head

    @abstractmethod
    def run(self, pixels: Pixels, spec: Preprocess) -> dict[str, Any]:
        """Return the outputs of uint8 crops [n, crop, crop, 3] by name, after the same preprocessing in NumPy."""

    def shapes(self, spec: Preprocess) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of logits and descriptor of one image, without the batch; raise ImportModelError."""
        found = self.run(np.zeros((1, spec.crop, spec.crop, 3), np.uint8), spec)
        logits, descriptor = (found[name] for name in (self._head.logits, self._head.descriptor))
        for what, values in (("scores", logits), ("descriptor", descriptor)):
            if values.dtype != np.float32:
                raise refusal(f"the {what} of the model are {values.dtype}; export the model in float32")
        if logits.shape[2:] not in ((), (1, 1)) or logits.ndim < 2:
            raise refusal(f"the scores of the model are {list(logits.shape)}; a classifier gives [N, classes]")
        if descriptor.ndim not in (2, 4):
            raise refusal(
                f"the descriptor {self._head.descriptor} is {list(descriptor.shape)}; name a tensor [N, length] or "
                "[N, C, H, W] with --descriptor"
            )
        return logits.shape[1:], descriptor.shape[1:]


class Original(OriginalModel):
    """A model as it was written, on onnxruntime's CPU provider, with float input."""

    def __init__(self, foreign: ForeignModel, head: Head) -> None:
        """Load it; raise ImportModelError if onnxruntime does not."""
        super().__init__(head)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self._names = list(dict.fromkeys((head.answer, head.logits, head.descriptor)))
        self._foreign = foreign
        try:
            self._session = ort.InferenceSession(
                with_outputs(foreign, tuple(self._names)), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a dozen of its own
            raise refusal(
                f"onnxruntime {ort.__version__} cannot load the model ({_one_line(error)}); export it again"
            ) from error

    def run(self, pixels: Pixels, spec: Preprocess) -> dict[str, Any]:
        """Return the outputs of uint8 crops [n, crop, crop, 3] by name, after the same preprocessing in NumPy."""
        scaled = (pixels.astype(np.float64) / 255 - spec.mean) / spec.std
        floats = scaled.astype(np.float32)
        if not self._foreign.is_nhwc:
            floats = np.ascontiguousarray(floats.transpose(0, 3, 1, 2))
        found = [self._batch(part) for part in self._parts(floats)]
        return {
            name: np.concatenate(column)[: len(pixels)]
            for name, column in zip(self._names, zip(*found, strict=True), strict=True)
        }

    def _parts(self, floats: Floats) -> list[Floats]:
        """Cut into the batches that the graph takes; the last one is filled up."""
        size = self._foreign.batch or len(floats)
        padded = floats[np.minimum(np.arange(-(-len(floats) // size) * size), len(floats) - 1)]
        return np.split(padded, len(padded) // size)

    def _batch(self, floats: Floats) -> list[Any]:
        try:
            found: list[Any] = self._session.run(self._names, {self._foreign.input_name: floats})
        except Exception as error:
            raise refusal(
                f"the model cannot run images [{', '.join(map(str, floats.shape))}] ({_one_line(error)}); check the "
                "crop of --preprocess"
            ) from error
        return found


def check_runs(data: bytes, manifest: Manifest) -> None:
    """Raise ImportModelError if onnxruntime cannot run the model of a bundle on any number of images."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    side = manifest.preprocess.crop
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for count in (1, 3):
            found = session.run(None, {manifest.input_name: np.zeros((count, side, side, 3), np.uint8)})
            if any(len(values) != count for values in found):
                raise ValueError(f"{count} images give {len(found[0])} answers")
    except Exception as error:
        raise refusal(
            f"the model runs a fixed number of images only ({_one_line(error)}); export it with a dynamic batch size"
        ) from error


@dataclass(frozen=True)
class ImportParity:
    """The largest differences, relative to the largest value of the original."""

    photos: int
    logits_difference: float
    descriptor_difference: float

    def as_json(self) -> dict[str, Any]:
        """Return the entry "parity" of metrics.json."""
        return asdict(self)


def check_original(
    original: OriginalModel, head: Head, spec: Preprocess, run: RunModel, batches: Iterable[Pixels]
) -> ImportParity:
    """Compare the model of the bundle with the original; raise ParityError if they differ by more than 1e-4.

    Args:
        original: The model as it was written.
        head: Its tensors.
        spec: The preprocessing.
        run: Runs the model of the bundle on uint8 pixels.
        batches: Crops, uint8 [n, crop, crop, 3].
    """
    differences, wrong, photos = [], 0, 0
    for pixels in batches:
        expected, (logits, descriptor) = original.run(pixels, spec), run(pixels)
        known = _flat(expected[head.logits])
        differences.append(
            (largest_difference(logits, known), largest_difference(descriptor, _flat(expected[head.descriptor])))
        )
        if head.softmax:
            answered = _flat(expected[head.answer])
            shares = np.exp(answered) if head.softmax == "LogSoftmax" else answered
            differences.append((largest_difference(softmax(logits), shares), 0.0))
        wrong += _other_labels(logits, known)
        photos += len(pixels)
    of_logits, of_descriptor = np.max(differences, axis=0).tolist()
    if wrong or max(of_logits, of_descriptor) > TOLERANCE:
        raise ParityError(
            "PARITY",
            f"the bundle would differ from the original on {photos} photos: {wrong} labels differ, values by "
            f"{max(of_logits, of_descriptor):.1e} of the largest (at most {TOLERANCE:.0e}); nothing is published",
        )
    return ImportParity(photos, of_logits, of_descriptor)


def _flat(values: Floats) -> Floats:
    """Return [N, length]; of maps, the mean over places."""
    return values if values.ndim == 2 else np.asarray(values.mean(axis=(2, 3), dtype=np.float64), np.float32)


def _other_labels(actual: Floats, expected: Floats) -> int:
    rows, named = np.arange(len(expected)), actual.argmax(axis=1)
    is_tie = expected.max(axis=1) - expected[rows, named] <= TIE * np.abs(expected).max(initial=0.0)
    return int(((named != expected.argmax(axis=1)) & ~is_tie).sum())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(" .:;")
