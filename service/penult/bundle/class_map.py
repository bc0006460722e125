"""Class maps: how much each place of a photo adds to the score of a class. The places add up to the score.

Some networks end in the mean of a feature map over its places, which a linear layer reads. With a feature map F
[channels, height, width] and weights w of a class, place (y, x) then adds w · F[:, y, x] / places to the score of the
class. The bias is added once. A linear SVM reads the descriptor of unit length. So its terms are also divided by the
length of the descriptor. Zhou et al. 2016, "Learning deep features for discriminative localization", describe the map
of a dense head.

With several views of a photo, the score is the mean over views. So is the map, after each view is turned back.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import BundleError
from penult.bundle.npz import read_npz
from penult.bundle.preprocess import Preprocess
from penult.bundle.scores import Floats

Area = tuple[float, float, float, float]

# 1,000 classes of 2,048 channels are 8 MiB.
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class ClassMap:
    """What each place of a photo adds to the score of a class.

    The sum of `values` and `offset` is the score.

    Attributes:
        label: The class.
        values: float32 [h, w], from the top left. A negative value speaks against the class.
        offset: What is added wherever the network looks, the bias.
        area: What the map covers: left, top, right and bottom in pixels of the upright photo.
    """

    label: str
    values: Floats
    offset: float
    area: Area

    @property
    def score(self) -> float:
        """The sum of map and offset: a logit of the dense head, or a decision value of the SVM."""
        return float(self.values.sum(dtype=np.float64)) + self.offset


@dataclass(frozen=True)
class LinearHead:
    """A scorer that is linear in the mean feature map.

    Attributes:
        weights: float32 [classes, channels].
        bias: float32 [classes].
        is_normalised: True if the scorer reads the descriptor of unit length, as the SVM does.
    """

    weights: Floats
    bias: Floats
    is_normalised: bool = False

    def scores(self, descriptor: Floats) -> Floats:
        """Return the scores float32 [classes] of one descriptor float32 [channels]."""
        scores: Floats = self.weights @ descriptor / self._length(descriptor) + self.bias
        return scores

    def maps(self, features: Floats, descriptor: Floats, columns: Sequence[int] | NDArray[np.intp]) -> Floats:
        """Return the maps of some classes of one photo, float32 [len(columns), h, w].

        Args:
            features: float32 [views, channels, h, w], the feature map of each view in the order of the network.
            descriptor: float32 [channels], the mean of the feature map.
            columns: The classes.
        """
        views, channels, height, width = features.shape
        rows = self.weights[np.asarray(columns)] / np.float32(self._length(descriptor) * height * width * views)
        seen = [rows @ view.reshape(channels, height * width) for view in features]
        if views == 1:
            return np.asarray(seen[0].reshape(-1, height, width))
        parts = [turned_back(part.reshape(-1, height, width), view, views) for view, part in enumerate(seen)]
        return np.asarray(np.sum(parts, axis=0))

    def to_bytes(self) -> bytes:
        """Return the bytes of a file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, weights=self.weights, bias=self.bias)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, classes: int, channels: int) -> "LinearHead":
        """Read a dense head; raise BundleError unless it has these sizes."""
        try:
            arrays = read_npz(data, _MAX_BYTES)
            weights, bias = arrays["weights"], arrays["bias"]
        except Exception as error:  # the file is input: a name may lack, a kind be another
            raise _invalid() from error
        shapes = weights.shape == (classes, channels) and bias.shape == (classes,)
        if not shapes or {weights.dtype, bias.dtype} != {np.dtype(np.float32)}:
            raise _invalid()
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            raise _invalid()
        return cls(weights, bias)

    def _length(self, descriptor: Floats) -> float:
        """Return what scores are divided by: the length of the descriptor, or 1."""
        if not self.is_normalised:
            return 1.0
        return float(np.linalg.norm(descriptor)) or 1.0


def _invalid() -> BundleError:
    return BundleError("CLASS_MAPS_INVALID", "dense_head.npz holds no dense head of this model; restore the bundle")


def largest_error(head: LinearHead, features: Floats, descriptors: Floats, scores: Floats, views: int) -> float:
    """Return the largest difference between sums of maps and scores, relative to the largest score.

    Args:
        head: The scorer.
        features: float32 [views x N, channels, h, w], the first view of all photos first.
        descriptors: float32 [N, channels].
        scores: float32 [N, classes].
        views: How many views of a photo the network reads.
    """
    by_view = by_views(features, views)
    columns = np.arange(scores.shape[1])
    sums = [
        head.maps(by_view[:, row], descriptor, columns).sum(axis=(1, 2)) + head.bias
        for row, descriptor in enumerate(descriptors)
    ]
    return float(np.abs(np.stack(sums) - scores).max()) / (float(np.abs(scores).max()) or 1.0)


def by_views(features: Floats, views: int) -> Floats:
    """Return features [views x N, channels, h, w] as [views, N, channels, h, w]."""
    return features.reshape(views, -1, *features.shape[1:])


def turned_back(maps: Floats, view: int, views: int) -> Floats:
    """Return maps [..., h, w] of one of 1, 2, 4 or 8 views as they lie on the photo.

    The views are those of `penult train --views`, in its order. The first two are the photo and its mirror image. With
    8 views, both follow upside down. With 4 or 8, all of these follow transposed.
    """
    before = view
    if views >= 4 and view >= views // 2:
        maps, before = np.swapaxes(maps, -1, -2), view - views // 2
    if before & 2:
        maps = maps[..., ::-1, :]
    return maps[..., ::-1] if before & 1 else maps


def area_of(spec: Preprocess, width: int, height: int) -> Area:
    """Return which rectangle of an upright photo of `width` x `height` pixels the network sees.

    It is the middle square, as penult.bundle.preprocess crops it, or nearly all if `fit` is "stretch".
    """
    resized_width, resized_height = spec.resized_size(width, height)
    across, down = width / resized_width, height / resized_height
    left, top = round((resized_width - spec.crop) / 2), round((resized_height - spec.crop) / 2)
    right, bottom = (left + spec.crop) * across, (top + spec.crop) * down
    return left * across, top * down, min(right, width), min(bottom, height)
