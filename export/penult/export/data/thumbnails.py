"""Small grey images of photos, to compare them by."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penult.bundle.preprocess import Pixels, Preprocess
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.splitting import Photo
from penult.interrupts import pool

Grey = NDArray[np.uint8]

SIDE = 64
# A center crop of the same part of a photo as most networks see.
_SPEC = Preprocess(resize=73, crop=SIDE)
_BATCH = 64
# Photos with a shorter side have no detail to compare: their thumbnails are blank, which is similar to nothing.
_MIN_SIDE = 32


def thumbnails(crops: Pixels) -> Grey:
    """Return grey thumbnails, uint8 [n, SIDE, SIDE], of crops uint8 [n, crop, crop, 3]."""
    small = np.empty((len(crops), SIDE, SIDE), np.uint8)
    for row, crop in enumerate(crops):
        small[row] = resized(np.asarray(Image.fromarray(crop).convert("L")), SIDE)
    return small


def read_thumbnails(photos: Sequence[Photo]) -> Grey:
    """Return the thumbnails of photos, uint8 [N, SIDE, SIDE]; raise DiskError if one can no longer be read."""
    reader = PhotoReader(_SPEC, Cache(0), _BATCH)
    found, at = np.empty((len(photos), SIDE, SIDE), np.uint8), 0
    for pixels, _ in reader.crops(photos, "reading photos to compare"):
        found[at : at + len(pixels)] = thumbnails(pixels)
        at += len(pixels)
    with pool() as threads:
        found[np.fromiter(threads.map(_is_tiny, photos), bool, len(photos))] = 0
    return found


def _is_tiny(photo: Photo) -> bool:
    try:
        with Image.open(photo.path) as image:
            return min(image.size) < _MIN_SIDE
    except OSError:  # a format that Pillow alone does not know is no tiny photo
        return False


def resized(grey: Grey, side: int) -> Grey:
    """Return a grey image, uint8 [height, width], as uint8 [side, side]."""
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BILINEAR))
