"""Load photos as arrays: center crops for measuring, augmented crops for training, cached up to a memory budget."""

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
from penult.bundle.formats import SERVED, format_of
from penult.bundle.guards import ImageLimits
from penult.bundle.preprocess import (
    CROP,
    Pixels,
    Preprocess,
    crop_opened,
    decode_opened,
    decoding_pixels,
    in_srgb,
    open_image,
    profile_of,
)
from penult.console import progress
from penult.export.data.file_index import DECODING, OWN_LIMITS
from penult.export.data.splitting import Photo
from penult.export.data.transforms import Augmentation
from penult.export.errors import DiskError
from penult.interrupts import pool

T = TypeVar("T")

Batch = tuple[Pixels, NDArray[np.int64]]
Bounds = Callable[[int], tuple[int, int]]
_AHEAD = 3
# Golden photos are read every time a bundle is loaded, so they must be small.
_GOLDEN_LIMITS = ImageLimits(max_bytes=8 << 20, max_pixels=50_000_000)


@dataclass(frozen=True)
class LearningBatch:
    """One process's part of a batch.

    Attributes:
        pixels: uint8 [n, crop, crop, 3].
        labels: int64 [n].
        first: The first row of this part in the whole batch.
        whole: The labels of the whole batch, int64 [N].
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    first: int
    whole: NDArray[np.int64]


@dataclass
class Cache:
    """Decoded arrays by key. The first ones are kept, up to `max_bytes`; the others are decoded every time."""

    max_bytes: int
    used_bytes: int = 0
    arrays: dict[tuple[str, str], Pixels] = field(default_factory=dict)

    def get(self, key: tuple[str, str], make: Callable[[], Pixels]) -> Pixels:
        """Return the array of `key`, from memory or from `make()`."""
        found = self.arrays.get(key)
        if found is None:
            found = make()
            if self.used_bytes + found.nbytes <= self.max_bytes:
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
        """Yield the crops that the service uses, uint8 [n, crop, crop, 3], with labels int64 [n]."""
        groups = self._groups(photos)
        for pixels, group in zip(self._cut(groups, self._crop, what, self.spec.crop), groups, strict=True):
            yield pixels, np.array([photo.label for photo in group], dtype=np.int64)

    def stack(self, photos: Sequence[Photo]) -> Pixels:
        """Return the crops of a few photos at once, uint8 [n, crop, crop, 3]."""
        return np.stack([self._crop(photo) for photo in photos])

    def augmented(
        self, photos: Sequence[Photo], augmentation: Augmentation, seed: str, what: str, bounds: Bounds, side: int = 0
    ) -> Iterator[LearningBatch]:
        """Yield augmented crops; order and crops depend on `seed` alone, not on threads or processes.

        Args:
            photos: The photos of the epoch.
            augmentation: Cuts a crop.
            seed: Decides order and crops.
            what: Names the progress bar.
            bounds: Returns first and last row of this process in a batch of the given size.
            side: Side of the crops in pixels; 0 is the size of serving.
        """
        # The same part of the photo as in serving, with fewer or more pixels.
        crop = side or self.spec.crop
        spec = replace(self.spec, crop=crop, resize=max(crop, round(self.spec.resize * crop / self.spec.crop)))
        order = list(range(len(photos)))
        random.Random(f"order {seed}").shuffle(order)
        wholes = self._groups(order)
        rows = [bounds(len(group)) for group in wholes]
        parts = [group[start:end] for group, (start, end) in zip(wholes, rows, strict=True)]

        def cut(index: int) -> Pixels:
            return augmentation(self._shrunk(photos[index]), spec, random.Random(f"{seed} {index}"))

        labels = (np.array([photos[index].label for index in group], dtype=np.int64) for group in wholes)
        crops = self._cut(parts, cut, what, spec.crop)
        for pixels, whole, (start, end) in zip(crops, labels, rows, strict=True):
            yield LearningBatch(pixels, whole[start:end], start, whole)

    def _groups(self, items: Sequence[T]) -> list[Sequence[T]]:
        return [items[at : at + self.batch_size] for at in range(0, len(items), self.batch_size)]

    def _cut(
        self, groups: Sequence[Sequence[T]], crop: Callable[[T], Pixels], what: str, side: int
    ) -> Iterator[Pixels]:
        """Yield uint8 [n, side, side, 3] per group, while threads cut the next groups."""
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
        """Return the whole photo at the size that augmentation crops from; stretched if serving stretches."""
        return Image.fromarray(self.cache.get(("whole", photo.sha256), lambda: self._decode_shrunk(photo)))

    def _decode_shrunk(self, photo: Photo) -> Pixels:
        return _made_of(photo, self._shrink, None, self.spec)

    def _shrink(self, opened: Image.Image) -> Pixels:
        image = decode_opened(opened)
        size = self.spec.resized_size(*image.size)
        is_small = self.spec.fit == CROP and size[0] > image.size[0]
        small = image if is_small else image.resize(size, Image.Resampling.BILINEAR)
        return in_srgb(np.asarray(small), opened, self.spec)


def as_served(data: bytes, spec: Preprocess) -> bytes:
    """Return an encoded photo as a bundle stores it, for every service to read.

    A photo in a format that every service accepts stays as it is. Another becomes a PNG of the same pixels. If it would
    make the bundle slow to load, it becomes a smaller PNG. A PNG keeps the ICC profile.
    """
    try:
        open_image(data, _GOLDEN_LIMITS)
        return data
    except ImageError:
        opened, encoded = open_image(data, OWN_LIMITS, spec), io.BytesIO()
    image = decode_opened(opened)
    if format_of(data) in SERVED or 3 * image.width * image.height > _GOLDEN_LIMITS.max_bytes:
        image = image.resize(spec.resized_size(*image.size), Image.Resampling.BILINEAR)
    image.save(encoded, "PNG", icc_profile=profile_of(opened) or None)
    return encoded.getvalue()


def _made_of(
    photo: Photo, make: Callable[[Image.Image], T], spec: Preprocess | None, spare: Preprocess | None = None
) -> T:
    """Return `make(image)` of a photo opened for `spec`, or for `spare` if `spec` needs too much memory.

    Raises:
        DiskError: The photo has changed and can no longer be read.
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
            "PHOTO_CHANGED", f"photo {photo.path} can no longer be read ({error.reason}); restore it"
        ) from error
