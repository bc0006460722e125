"""golden.npz: a few real photos with the answers expected of the bundle.

They are replayed wherever a bundle is taken up (export, `penult check`, the service on the device that will serve), so
that a wrong decoder, runtime, driver or library version is found before the first answer, not after.
"""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penult.bundle.errors import BundleError, ImageError
from penult.bundle.manifest import DENSE, SVM, Manifest
from penult.bundle.preprocess import Pixels, crop_encoded
from penult.bundle.scores import Floats, largest_difference

# Relative to the largest expected value: measured export and runtime differences are below 6e-5 on CPUs.
TOLERANCE = 1e-4
# Of the SVM alone, on the recorded descriptors: it is computed in another way than scikit-learn does it.
SVM_TOLERANCE = 1e-5
# Decoders may round differently between library versions; more than one grey level is another picture.
PIXEL_TOLERANCE = 1

RunModel = Callable[[Pixels], tuple[Floats, Floats]]
RunSvm = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Goldens:
    """Photos and what they must give.

    `images`: N encoded photos. `crops`: uint8 [N, crop, crop, 3]. `logits`: float32 [N, logits_length]. `descriptor`:
    float32 [N, descriptor_length]. `svm_scores`: float32 [N, classes], or [0, 0] without an SVM.
    """

    images: tuple[bytes, ...]
    crops: Pixels
    logits: Floats
    descriptor: Floats
    svm_scores: Floats

    def to_bytes(self) -> bytes:
        """Return the file's bytes; the photos stand end to end, with their lengths beside them."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            image_bytes=np.frombuffer(b"".join(self.images), dtype=np.uint8),
            image_lengths=np.array([len(image) for image in self.images], dtype=np.int64),
            crops=self.crops,
            logits=self.logits,
            descriptor=self.descriptor,
            svm_scores=self.svm_scores,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Goldens":
        """Read the file's bytes; raise BundleError."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                ends = np.cumsum(arrays["image_lengths"])
                joined = arrays["image_bytes"].tobytes()
                images = tuple(joined[end - n : end] for end, n in zip(ends, arrays["image_lengths"], strict=True))
                fields = {name: arrays[name] for name in ("crops", "logits", "descriptor", "svm_scores")}
        except Exception as error:  # a zip of arrays: zipfile, NumPy and zlib each raise their own
            raise BundleError("GOLDEN_INVALID", "golden.npz cannot be read; restore the bundle") from error
        if not images:
            raise BundleError("GOLDEN_EMPTY", "golden.npz holds no photo, so nothing can be checked; train again")
        return cls(images, **fields)


def replay(
    goldens: Goldens, manifest: Manifest, run_model: RunModel, run_svm: RunSvm | None, tolerance: float = TOLERANCE
) -> float:
    """Check every golden photo from its bytes to its scores; return the largest relative difference seen.

    `tolerance` is relative to the largest expected value. Raises BundleError where pixels, values or labels differ.
    """
    crops = _crops(goldens, manifest)
    logits, descriptor = run_model(crops)
    found = [
        _compare("logits", logits, goldens.logits, tolerance),
        _compare("descriptors", descriptor, goldens.descriptor, tolerance),
    ]
    if DENSE in manifest.scorers:  # else the photos were not chosen to be clear cases of the dense head
        _compare_labels(DENSE, logits, goldens.logits)
    if run_svm is not None:
        scores = run_svm(descriptor)
        found.append(_compare("SVM scores", scores, goldens.svm_scores, tolerance))
        _compare_labels(SVM, scores, goldens.svm_scores)
        found.append(_compare("SVM scores", run_svm(goldens.descriptor), goldens.svm_scores, SVM_TOLERANCE))
    return max(found)


def choose(scores: Floats, labels: Sequence[int], count: int) -> list[int]:
    """Return the rows of `count` photos that make good goldens: clear cases, spread over the classes.

    `scores` is [N, classes], `labels` N true classes. A near tie would flip on another device without any fault.
    """
    ordered = np.sort(scores, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    by_margin = sorted(range(len(labels)), key=lambda row: -float(margins[row]))
    before: Counter[int] = Counter()
    rank = {}
    for row in by_margin:
        rank[row] = before[labels[row]]
        before[labels[row]] += 1
    return sorted(by_margin, key=lambda row: rank[row])[:count]


def _crops(goldens: Goldens, manifest: Manifest) -> Pixels:
    try:
        crops = np.stack([crop_encoded(image, manifest.preprocess) for image in goldens.images])
    except ImageError as error:
        raise BundleError("GOLDEN_PIXELS", f"a golden photo cannot be decoded here: {error.message}") from error
    if crops.shape != goldens.crops.shape:
        raise BundleError("GOLDEN_PIXELS", "golden photos decode to another size than when the bundle was made")
    worst = int(np.abs(crops.astype(np.int16) - goldens.crops).max())
    if worst > PIXEL_TOLERANCE:
        raise BundleError(
            "GOLDEN_PIXELS",
            f"golden photos decode {worst} grey levels differently here than when the bundle was made; install the "
            "library versions that the manifest names",
        )
    return crops


def _compare(what: str, actual: Floats, expected: Floats, tolerance: float) -> float:
    difference = largest_difference(actual, expected)
    if difference > tolerance:
        raise BundleError(
            "GOLDEN_VALUES",
            f"golden photos give other {what} here: off by {difference:.1e} of the largest, {tolerance:.0e} is allowed",
        )
    return difference


def _compare_labels(scorer: str, actual: Floats, expected: Floats) -> None:
    wrong = int((actual.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if wrong:
        raise BundleError("GOLDEN_LABELS", f"{wrong} golden photos get another class from the {scorer} scorer here")
