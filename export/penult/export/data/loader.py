"""Photos as arrays: crops for measuring, augmented crops for learning, kept in memory as far as the budget goes."""

import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penult.bundle.errors import ImageError
from penult.bundle.guards import ImageLimits
from penult.bundle.preprocess import (
    CROP,
    Pixels,
    Preprocess,
    crop_opened,
    decode,
    decode_opened,
    decoding_pixels,
    open_image,
)
from penult.console import progress
from penult.export.data.dataset import Photo
from penult.export.data.file_index import DECODING, OWN_LIMITS
from penult.export.data.transforms import Augmentation
from penult.export.errors import DiskError
from penult.interrupts import pool

T = TypeVar("T")

Batch = tuple[Pixels, NDArray[np.int64]]
Bounds = Callable[[int], tuple[int, int]]
_AHEAD = 3
# A bundle's golden photos are read whenever it is loaded.
_GOLDEN_LIMITS = ImageLimits(max_bytes=8 << 20, max_pixels=50_000_000)


@dataclass(frozen=True)
class LearningBatch:
    """One process's part of a batch: uint8 [n, crop, crop, 3], labels int64 [n], from row `first` on of the `whole`.

    `whole` are the labels of all processes' photos, int64 [N].
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    first: int
    whole: NDArray[np.int64]


@dataclass
class Cache:
    """Decoded arrays by key, first come first kept, until `most_bytes` are used; the rest is decoded each time."""

    most_bytes: int
    used_bytes: int = 0
    arrays: dict[tuple[str, str], Pixels] = field(default_factory=dict)

    def get(self, key: tuple[str, str], make: Callable[[], Pixels]) -> Pixels:
        """Return the array of `key`, from memory or from `make`."""
        found = self.arrays.get(key)
        if found is None:
            found = make()
            if self.used_bytes + found.nbytes <= self.most_bytes:
                self.arrays[key] = found
                self.used_bytes += found.nbytes
        return found


@dataclass(frozen=True)
class PhotoReader:
    """Reads photos in batches on threads, in order, a few batches ahead of the consumer."""

    spec: Preprocess
    cache: Cache
    batch_size: int

    def crops(self, photos: Sequence[Photo], what: str) -> Iterator[Batch]:
        """Yield (uint8 [n, crop, crop, 3], labels int64 [n]): the pixels that the service would see."""
        groups = self._groups(photos)
        for pixels, group in zip(self._cut(groups, self._crop, what, self.spec.crop), groups, strict=True):
            yield pixels, np.array([photo.label for photo in group], dtype=np.int64)

    def stack(self, photos: Sequence[Photo]) -> Pixels:
        """Return the crops of a few photos at once, uint8 [n, crop, crop, 3]."""
        return np.stack([self._crop(photo) for photo in photos])

    def augmented(
        self, photos: Sequence[Photo], augmentation: Augmentation, seed: str, what: str, bounds: Bounds, side: int = 0
    ) -> Iterator[LearningBatch]:
        """Yield the photos in an order and with crops that `seed` alone decides, whatever threads and processes do.

        `bounds` tells which rows of a batch of some size are this process's; `side` is the crops' in pixels (0: as in
        serving).
        """
        spec = _smaller(self.spec, side or self.spec.crop)
        order = list(range(len(photos)))
        random.Random(f"order {seed}").shuffle(order)
        wholes = self._groups(order)
        rows = [bounds(len(group)) for group in wholes]
        parts = [group[start:end] for group, (start, end) in zip(wholes, rows, strict=True)]

        def crop(index: int) -> Pixels:
            return augmentation(self._shrunk(photos[index]), spec, random.Random(f"{seed} {index}"))

        labels = (np.array([photos[index].label for index in group], dtype=np.int64) for group in wholes)
        pixels = self._cut(parts, crop, what, spec.crop)
        for cut, whole, (start, end) in zip(pixels, labels, rows, strict=True):
            yield LearningBatch(cut, whole[start:end], start, whole)

    def _groups(self, items: Sequence[T]) -> list[Sequence[T]]:
        return [items[at : at + self.batch_size] for at in range(0, len(items), self.batch_size)]

    def _cut(
        self, groups: Sequence[Sequence[T]], crop: Callable[[T], Pixels], what: str, side: int
    ) -> Iterator[Pixels]:
        """Yield uint8 [n, side, side, 3] per group; some groups ahead are being cut on threads meanwhile."""
        empty = np.empty((0, side, side, 3), dtype=np.uint8)
        with pool() as threads:
            pending = [[threads.submit(crop, item) for item in group] for group in groups[:_AHEAD]]
            for at in progress(range(len(groups)), what, len(groups)):
                cut = [future.result() for future in pending.pop(0)]
                if at + _AHEAD < len(groups):
                    pending.append([threads.submit(crop, item) for item in groups[at + _AHEAD]])
                yield np.stack(cut) if cut else empty

    def _crop(self, photo: Photo) -> Pixels:
        make = partial(crop_opened, spec=self.spec)
        return self.cache.get(("crop", photo.sha256), lambda: _made_of(photo, make, self.spec))

    def _shrunk(self, photo: Photo) -> Image.Image:
        """Return the whole photo at the training size, squeezed if serving squeezes: what augmentation cuts from."""
        return Image.fromarray(self.cache.get(("whole", photo.sha256), lambda: self._decode_shrunk(photo)))

    def _decode_shrunk(self, photo: Photo) -> Pixels:
        image = _made_of(photo, decode_opened, None, self.spec)
        size = self.spec.resized_size(*image.size)
        is_small = self.spec.fit == CROP and size[0] > image.size[0]
        return np.asarray(image if is_small else image.resize(size, Image.Resampling.BILINEAR))


def as_served(data: bytes, spec: Preprocess) -> bytes:
    """Return an encoded photo as it is, or as a small PNG if it is too large for a bundle that is quick to load."""
    try:
        open_image(data, _GOLDEN_LIMITS)
    except ImageError:
        image, small = decode(data, OWN_LIMITS, spec), io.BytesIO()
        image.resize(spec.resized_size(*image.size), Image.Resampling.BILINEAR).save(small, "PNG")
        return small.getvalue()
    return data


def _made_of(
    photo: Photo, make: Callable[[Image.Image], T], spec: Preprocess | None, spare: Preprocess | None = None
) -> T:
    """Return what `make` makes of a photo opened for `spec`; for `spare` if that takes more memory than is given.

    Raises DiskError if the photo has changed, and is none any more.
    """
    data = photo.read()
    try:
        try:
            image = open_image(data, OWN_LIMITS, spec)
        except ImageError:
            if spare is None:
                raise
            image = open_image(data, OWN_LIMITS, spare)
        with DECODING.hold(decoding_pixels(image)):
            return make(image)
    except ImageError as error:
        raise DiskError(
            "PHOTO_CHANGED", f"photo {photo.path} cannot be read any more ({error.reason}); restore it"
        ) from error


def _smaller(spec: Preprocess, crop: int) -> Preprocess:
    """Return the preprocessing at another scale: the same part of the photo in fewer (or more) pixels."""
    return replace(spec, crop=crop, resize=max(crop, round(spec.resize * crop / spec.crop)))
