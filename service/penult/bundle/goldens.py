"""golden.npz: a few real images with the outputs that the bundle must give.

They are replayed by the export, by `penult check`, and by the service on the device that will serve. A wrong decoder,
runtime, driver or library version is detected before the first request.
"""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import BundleError, ImageError
from penult.bundle.manifest import DENSE, SVM, Manifest
from penult.bundle.npz import read_npz
from penult.bundle.preprocess import Pixels, crop_encoded
from penult.bundle.scores import Floats, largest_difference, pieces

# Relative to the largest expected value: measured export and runtime differences are below 6e-5 on CPUs.
TOLERANCE = 1e-4
# Of the SVM alone, on the recorded descriptors: it is computed in another way than scikit-learn does it.
SVM_TOLERANCE = 1e-5
# Of the largest score: classes this near to each other are equal in float32.
TIE = 1e-6
# Differences of smaller distances than this, 1 - cosine, are relative to it.
_MIN_NOVELTY = 0.01
# Decoders may round differently between library versions; more than one grey level is another picture.
PIXEL_TOLERANCE = 1
# Eight photos of 8 MiB, and their crops, have room; a bomb has not.
_MAX_BYTES, _MAX_PHOTOS = 128 << 20, 64

# What turned a picture, or whitened other pixels of it, when bundles were made by earlier versions (CHANGELOG.md).
_READ_OTHERWISE_BEFORE = (
    b"tiff:Orientation", b"XML:com.adobe.xmp", b"Raw profile type exif", b"tEXtexif\0", b"tEXttransparency\0", b"tRNS",
)  # fmt: skip

RunModel = Callable[[Pixels], tuple[Floats, Floats]]
RunSvm = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Goldens:
    """Photos and what they must give.

    `images`: N encoded photos. `crops`: uint8 [N, crop, crop, 3]. `logits`: float32 [N, logits_length]. `descriptor`:
    float32 [N, descriptor_length]. `svm_scores`: float32 [N, classes], or [0, 0] without an SVM. `novelty`: float32 [N]
    in bundles of one class, else None.
    """

    images: tuple[bytes, ...]
    crops: Pixels
    logits: Floats
    descriptor: Floats
    svm_scores: Floats
    novelty: Floats | None = None

    def to_bytes(self) -> bytes:
        """Return the file's bytes; the photos stand end to end, with their lengths beside them."""
        more: dict[str, Any] = {} if self.novelty is None else {"novelty": self.novelty}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            image_bytes=np.frombuffer(b"".join(self.images), dtype=np.uint8),
            image_lengths=np.array([len(image) for image in self.images], dtype=np.int64),
            crops=self.crops,
            logits=self.logits,
            descriptor=self.descriptor,
            svm_scores=self.svm_scores,
            **more,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Goldens":
        """Read the file's bytes; raise BundleError."""
        try:
            arrays = read_npz(data, _MAX_BYTES)
            images = _split(arrays["image_bytes"], arrays["image_lengths"])
            fields = {name: arrays[name] for name in ("crops", "logits", "descriptor", "svm_scores")}
            novelty = arrays.get("novelty")
        except Exception as error:  # the file is input: a name may lack, a kind be another
            raise BundleError("GOLDEN_INVALID", "golden.npz cannot be read; restore the bundle") from error
        if not images:
            raise BundleError("GOLDEN_EMPTY", "golden.npz holds no photo, so nothing can be checked; train again")
        if not _are_right(len(images), **fields) or not _is_novelty(novelty, len(images)):
            raise BundleError("GOLDEN_INVALID", "golden.npz holds no photos with their answers; restore the bundle")
        return cls(images, **fields, novelty=novelty)


def _split(joined: NDArray[Any], lengths: NDArray[Any]) -> tuple[bytes, ...]:
    """Return the photos that stand end to end; raise ValueError where the lengths do not add up."""
    if joined.dtype != np.uint8 or joined.ndim != 1 or lengths.dtype.kind != "i" or lengths.ndim != 1:
        raise ValueError("image_bytes or image_lengths is of another kind")
    if len(lengths) > _MAX_PHOTOS or (lengths < 0).any() or lengths.sum() != len(joined):
        raise ValueError("image_lengths do not add up")
    data, ends = joined.tobytes(), np.cumsum(lengths).tolist()
    return tuple(data[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True))


def _are_right(
    photos: int, crops: NDArray[Any], logits: NDArray[Any], descriptor: NDArray[Any], svm_scores: NDArray[Any]
) -> bool:
    """Return True if the arrays have the types that Goldens names, one row per image, and are finite."""
    answers = (logits, descriptor, svm_scores)
    return (
        crops.dtype == np.uint8
        and crops.ndim == 4
        and crops.shape == (photos, crops.shape[1], crops.shape[1], 3)
        and all(values.dtype == np.float32 and values.ndim == 2 for values in answers)
        and len(logits) == len(descriptor) == photos
        and len(svm_scores) in (0, photos)
        and all(bool(np.isfinite(values).all()) for values in answers)
    )


def _is_novelty(values: NDArray[Any] | None, photos: int) -> bool:
    return values is None or bool(
        values.dtype == np.float32 and values.shape == (photos,) and (values >= 0).all() and (values <= 2).all()
    )


def replay(
    goldens: Goldens,
    manifest: Manifest,
    run_model: RunModel,
    run_svm: RunSvm | None,
    tolerance: float = TOLERANCE,
    run_novelty: RunSvm | None = None,
) -> float:
    """Check every golden photo from its bytes to its scores; return the largest relative difference seen.

    `tolerance` is relative to the largest expected value. `run_novelty` gives the novelty in bundles of one class, from
    descriptors. Raises BundleError where pixels, values or labels differ.
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
    if run_novelty is not None:
        found.append(_compare_novelty(run_novelty(descriptor), goldens.novelty, tolerance))
        found.append(_compare_novelty(run_novelty(goldens.descriptor), goldens.novelty, TOLERANCE))
    return max(found)


def choose(scores: Floats, labels: Sequence[int], count: int) -> list[int]:
    """Return the rows of `count` photos that make good goldens: clear cases, spread over the classes.

    `scores` is [N, classes], `labels` N true classes. A near tie would flip on another device without any fault.
    """
    margins = np.empty(len(scores), dtype=np.float32)
    for rows in pieces(*scores.shape):
        two = np.partition(scores[rows], -2, axis=1)[:, -2:]
        margins[rows] = two[:, 1] - two[:, 0]
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
    off = np.abs(crops.astype(np.int16) - goldens.crops).reshape(len(crops), -1).max(axis=1)
    for place in np.flatnonzero(off > PIXEL_TOLERANCE):
        if any(mark in goldens.images[place] for mark in _READ_OTHERWISE_BEFORE):
            crops[place], off[place] = goldens.crops[place], 0  # the network still has to give the recorded answers
    worst = int(off.max())
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


def _compare_novelty(actual: Floats, expected: Floats | None, tolerance: float) -> float:
    if expected is None:
        raise BundleError(
            "GOLDEN_INVALID", "golden.npz holds no novelty, which a model of one class needs; train again"
        )
    # If all of them are copies of training photos, rounding is all that is left of their distances.
    scale = np.full(1, _MIN_NOVELTY, dtype=np.float32)
    return _compare("novelty", np.append(actual, scale), np.append(expected, scale), tolerance)


def _compare_labels(scorer: str, actual: Floats, expected: Floats) -> None:
    rows, named = np.arange(len(expected)), actual.argmax(axis=1)
    # Classes that tie within rounding may be named either way: no fault, and no photo's class.
    is_tie = expected.max(axis=1) - expected[rows, named] <= TIE * np.abs(expected).max(initial=0.0)
    wrong = int(((named != expected.argmax(axis=1)) & ~is_tie).sum())
    if wrong:
        raise BundleError("GOLDEN_LABELS", f"{wrong} golden photos get another class from the {scorer} scorer here")
