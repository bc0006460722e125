"""baseline.npz: descriptors and results at training time, the reference for drift and novelty.

The novelty of an image is the part of its descriptor outside the directions in which training images differ. This is
the residual of Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022. Older bundles hold the
distance to the nearest of some training images instead, as 1 - cosine (Sun et al., "Out-of-Distribution Detection with
Deep Nearest Neighbors", ICML 2022). New bundles hold both, so that an older penult can serve them.

With one class, novelty is the distance to the nearest training images, or a measure of the SVM in svm.pkl. The
distances of held-out images then give each image its probability.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import BundleError
from penult.bundle.manifest import BASELINE_NAME, SVM, Manifest
from penult.bundle.npz import read_npz
from penult.bundle.scores import Floats, wilson

_MAX_REFERENCES, _MAX_BYTES = 100_000, 128 << 20
_MAX_PHOTOS = 10**9


@dataclass(frozen=True)
class Limit:
    """The novelty above which an image counts as novel, and the images that it was measured on.

    `share` of the held-out `photos` were above `threshold`, half of them above `usual`. Older bundles hold neither the
    number of photos nor the usual novelty: both are 0.
    """

    threshold: float
    share: float
    usual: float = 0.0
    photos: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """The share of the model's own kind of photos that may lie above, 95 % (Wilson); 0 to 1 where unknown."""
        if not self.photos:
            return 0.0, 1.0
        return wilson(self.share, self.photos)


@dataclass(frozen=True)
class Residual:
    """The space of training images: `mean` [length] and orthonormal `directions` [length, n], float32."""

    mean: Floats
    directions: Floats

    def distance(self, descriptors: Floats) -> Floats:
        """Return how long the rest of each unit descriptor is, float32 [N], of float32 [N, length]."""
        rest = descriptors / _lengths(descriptors)[:, None] - self.mean
        along = rest @ self.directions
        found: Floats = np.sqrt(np.maximum(np.vecdot(rest, rest) - np.vecdot(along, along), np.float32(0)))
        return found


def nearest_distance(references: Floats, descriptors: Floats, neighbours: int = 1) -> Floats:
    """Return 1 - cosine to the nearest of unit `references` [n, length], float32 [N], of float32 [N, length].

    With more `neighbours`, it is the mean over so many nearest.
    """
    alike: NDArray[np.float32] = descriptors @ references.T
    if neighbours == 1:
        nearest = alike.max(axis=1)
    else:
        nearest = np.partition(alike, -neighbours, axis=1)[:, -neighbours:].mean(axis=1)
    found: Floats = 1 - nearest / _lengths(descriptors)
    return np.maximum(found, np.float32(0))


def _lengths(descriptors: Floats) -> Floats:
    """Return how long each descriptor is, never 0."""
    found: Floats = np.maximum(np.sqrt(np.vecdot(descriptors, descriptors)), np.float32(1e-12))
    return found


@dataclass(frozen=True)
class Baseline:
    """Statistics of held-out images.

    `references` are unit descriptors of training images, float32 [n, descriptor_length]. `nearest` is the limit of the
    distance to them, `distance` its mean over validation images. `class_share` is the share of each class among the
    results of the default scorer, float32 [classes]. `confidence` is the mean probability of the best class, by scorer.
    `photos` is the number of validation images, 0 if unknown. `residual` and its limit are None in old bundles.

    With one class, `residual` is None, and `svm_limit` is the limit of the one-class SVM if that is served. `held_out`
    has the distances of the held-out images by the measure that is served, float32 [n], in rising order. The distance
    to `references` is the mean over the nearest `neighbours`.
    """

    references: Floats
    nearest: Limit
    distance: float
    class_share: Floats
    confidence: Mapping[str, float]
    photos: int = 0
    residual: Residual | None = None
    residual_limit: Limit | None = None
    svm_limit: Limit | None = None
    held_out: Floats | None = None
    neighbours: int = 1

    @property
    def limit(self) -> Limit:
        """The limit of `novelty`."""
        return self.svm_limit or self.residual_limit or self.nearest

    @property
    def threshold(self) -> float:
        """The novelty above which a photo counts as novel."""
        return self.limit.threshold

    def novelty(self, descriptors: Floats) -> Floats:
        """Return how far photos lie from the training photos, float32 [N], of float32 [N, descriptor_length]."""
        if self.residual:
            return self.residual.distance(descriptors)
        return nearest_distance(self.references, descriptors, self.neighbours)

    def probability(self, distances: Floats) -> Floats:
        """Return the share of held-out images at least as far, float32 [N], of novelties float32 [N].

        The image itself counts as one of them. This is the p-value of Vovk et al., "Algorithmic Learning in a Random
        World", 2005. Of images of the class, at most a share p has a probability of at most p.
        """
        assert self.held_out is not None  # bundles of one class have it
        further = len(self.held_out) - np.searchsorted(self.held_out, distances, side="left")
        return np.asarray((further + 1) / (len(self.held_out) + 1), dtype=np.float32)

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        near, more = self.nearest, dict[str, Any]()
        if self.residual and self.residual_limit:
            limit = self.residual_limit
            more = {
                "mean": self.residual.mean,
                "directions": self.residual.directions,
                "residual": np.array([limit.threshold, limit.share, limit.usual], dtype=np.float64),
            }
        if self.svm_limit:
            limit = self.svm_limit
            more["svm"] = np.array([limit.threshold, limit.share, limit.usual], dtype=np.float64)
        if self.held_out is not None:
            more |= {"held_out": self.held_out, "neighbours": np.int64(self.neighbours)}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            references=self.references,
            numbers=np.array([near.threshold, near.share, self.distance], dtype=np.float64),
            class_share=self.class_share,
            scorers=np.array(list(self.confidence), dtype=np.str_),
            confidence=np.array(list(self.confidence.values()), dtype=np.float64),
            usual=np.float64(near.usual),
            photos=np.array([self.photos, self.limit.photos], dtype=np.int64),
            **more,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, manifest: Manifest) -> "Baseline":
        """Read the file's bytes; raise BundleError where they do not belong to the manifest."""
        try:
            found = _read(read_npz(data, _MAX_BYTES))
            _check(found, manifest)
        except Exception as error:  # the file is input: a name may lack, a kind be another
            raise BundleError("BASELINE_INVALID", f"{BASELINE_NAME} cannot be right; restore the bundle") from error
        return found


def _read(arrays: Mapping[str, NDArray[Any]]) -> Baseline:
    threshold, share, distance = (float(number) for number in arrays["numbers"])
    # What bundles of before do not hold.
    photos, held_out = (int(count) for count in arrays["photos"]) if "photos" in arrays else (0, 0)
    usual = float(arrays["usual"]) if "usual" in arrays else 0.0
    residual = limit = svm_limit = None
    if "svm" in arrays:
        far, above, middle = (float(number) for number in arrays["svm"])
        svm_limit = Limit(far, above, middle, held_out)
    if "residual" in arrays:
        residual = Residual(arrays["mean"], np.ascontiguousarray(arrays["directions"]))
        far, above, middle = (float(number) for number in arrays["residual"])
        limit = Limit(far, above, middle, held_out)
    return Baseline(
        np.ascontiguousarray(arrays["references"]), Limit(threshold, share, usual, held_out), distance,
        arrays["class_share"], dict(zip(arrays["scorers"].tolist(), arrays["confidence"].tolist(), strict=True)),
        photos, residual, limit, svm_limit, arrays.get("held_out"),
        int(arrays.get("neighbours", 1)),
    )  # fmt: skip


def _check(found: Baseline, manifest: Manifest) -> None:
    """Raise ValueError for what would fail, or mislead, when it is used."""
    references, shares, length = found.references, found.class_share, manifest.descriptor_length
    is_right = (
        references.dtype == shares.dtype == np.float32
        and references.ndim == 2
        and 1 <= len(references) <= _MAX_REFERENCES
        and references.shape[1] == length
        and bool(np.isfinite(references).all() and np.abs(np.linalg.norm(references, axis=1) - 1).max() < 1e-3)
        and shares.shape == (len(manifest.classes),)
        and bool((shares >= 0).all() and (shares <= 1).all())
        and 0 <= found.distance <= 2
        and 0 <= found.photos <= _MAX_PHOTOS
        and all(_is_right_limit(limit) for limit in (found.nearest, found.limit))
        and all(name in manifest.scorers for name in found.confidence)
        and all(0 <= value <= 1 for value in found.confidence.values())
        and (found.residual is None or _is_right_residual(found.residual, length))
        and _is_right_one_class(found, manifest)
    )
    if not is_right:
        raise ValueError("baseline")


def _is_right_one_class(found: Baseline, manifest: Manifest) -> bool:
    """Return True if what bundles of one class hold is there, and right; or absent, with more classes."""
    distances = found.held_out
    if not manifest.has_one_class:
        return distances is None and found.svm_limit is None and found.neighbours == 1
    return (
        distances is not None
        and found.residual is None
        and 1 <= found.neighbours <= len(found.references)
        and (found.svm_limit is not None) == (manifest.measure == SVM)
        and distances.dtype == np.float32
        and distances.ndim == 1
        and 1 <= len(distances) <= _MAX_REFERENCES
        and bool((distances >= 0).all() and (distances <= 2).all() and (np.diff(distances) >= 0).all())
    )


def _is_right_limit(limit: Limit) -> bool:
    return (
        0 < limit.threshold <= 2
        and 0 <= limit.share <= 1
        and 0 <= limit.usual <= 2
        and 0 <= limit.photos <= _MAX_PHOTOS
    )


def _is_right_residual(residual: Residual, length: int) -> bool:
    mean, directions = residual.mean, residual.directions
    return (
        mean.dtype == directions.dtype == np.float32
        and mean.shape == (length,)
        and directions.ndim == 2
        and len(directions) == length >= directions.shape[1]
        # What is bounded cannot overflow below; NaN is no smaller than anything.
        and bool((np.abs(mean) <= 1.001).all() and (np.abs(directions) <= 1.001).all())
        and bool(np.linalg.norm(mean) <= 1.001)
        and bool(np.abs(directions.T @ directions - np.eye(directions.shape[1])).max(initial=0.0) < 1e-3)
    )
