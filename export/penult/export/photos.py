"""Photos as arrays: crops for measuring, augmented crops for learning, kept in memory as far as the budget goes."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penult.bundle.preprocess import Pixels, Preprocess, crop_encoded, decode
from penult.export.augment import Augmentation
from penult.export.data import Photo
from penult.export.progress import bar

Batch = tuple[Pixels, NDArray[np.int64]]
_AHEAD = 3


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
        return self._batches(photos, self._crop, what)

    def augmented(self, photos: Sequence[Photo], augmentation: Augmentation, seed: str, what: str) -> Iterator[Batch]:
        """Yield the photos in an order and with crops that `seed` alone decides, whatever the threads do."""
        order = list(range(len(photos)))
        random.Random(f"order {seed}").shuffle(order)
        seeds = {photos[index].path: f"{seed} {index}" for index in order}

        def crop(photo: Photo) -> Pixels:
            return augmentation(self._shrunk(photo), self.spec, random.Random(seeds[photo.path]))

        return self._batches([photos[index] for index in order], crop, what)

    def _batches(self, photos: Sequence[Photo], crop: Callable[[Photo], Pixels], what: str) -> Iterator[Batch]:
        groups = [photos[at : at + self.batch_size] for at in range(0, len(photos), self.batch_size)]
        with ThreadPoolExecutor() as threads:
            pending = [[threads.submit(crop, photo) for photo in group] for group in groups[:_AHEAD]]
            for at, group in enumerate(bar(groups, what, len(groups))):
                pixels = np.stack([future.result() for future in pending.pop(0)])
                if at + _AHEAD < len(groups):
                    pending.append([threads.submit(crop, photo) for photo in groups[at + _AHEAD]])
                yield pixels, np.array([photo.label for photo in group], dtype=np.int64)

    def _crop(self, photo: Photo) -> Pixels:
        return self.cache.get(("crop", photo.sha256), lambda: crop_encoded(photo.read(), self.spec))

    def _shrunk(self, photo: Photo) -> Image.Image:
        """Return the whole photo with its shorter side at the training size: what augmentation cuts from."""
        return Image.fromarray(self.cache.get(("whole", photo.sha256), lambda: self._decode_shrunk(photo)))

    def _decode_shrunk(self, photo: Photo) -> Pixels:
        image = decode(photo.read())
        size = self.spec.resized_size(*image.size)
        return np.asarray(image if size[0] > image.size[0] else image.resize(size, Image.Resampling.BILINEAR))
