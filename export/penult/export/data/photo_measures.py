"""Measure brightness, contrast, sharpness and size of photos, cached by content; make thumbnails."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from penult.bundle.errors import ImageError
from penult.bundle.preprocess import Preprocess, decode_opened, decoding_pixels, open_image
from penult.console import progress
from penult.export.data.file_index import DECODING, OWN_LIMITS
from penult.export.data.row_cache import RowCache
from penult.export.data.splitting import Photo
from penult.export.errors import DiskError
from penult.interrupts import pool

# Photos are measured at the size that most networks use, so that sharpness does not depend on the camera's pixels.
_SIDE = 224
_SPEC = Preprocess(resize=_SIDE, crop=_SIDE)
_CHUNK = 64
_LAPLACE = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)


@dataclass(frozen=True)
class Measures:
    """What photos look like, each float32 [N].

    Attributes:
        width: In pixels, upright.
        height: In pixels, upright.
        brightness: Mean of the grey values, 0 to 255.
        contrast: Standard deviation of the grey values.
        sharpness: Standard deviation of the Laplacian, in grey values, of the photo at 224 pixels.
    """

    width: NDArray[np.float32]
    height: NDArray[np.float32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    sharpness: NDArray[np.float32]

    @property
    def aspect(self) -> NDArray[np.float32]:
        """The longer side over the shorter one."""
        long, short = np.maximum(self.width, self.height), np.minimum(self.width, self.height)
        return (long / short).astype(np.float32)


def measure(photos: Sequence[Photo]) -> Measures:
    """Measure photos; raise DiskError if one can no longer be read."""
    different = {photo.sha256: photo for photo in photos}
    places = {sha256: place for place, sha256 in enumerate(different)}
    cache, rows = RowCache("measures", str(_SIDE), 5), np.empty((len(different), 5), np.float32)
    new = []
    for sha256, place in places.items():
        if (known := cache.get(sha256)) is None:
            new.append(sha256)
        else:
            rows[place] = known
    for sha256, found in zip(new, _measured([different[sha256] for sha256 in new]), strict=True):
        rows[places[sha256]] = found
    if new:
        cache.keep(places, rows)
    return Measures(*rows[[places[photo.sha256] for photo in photos]].T)


def thumbnail(photo: Photo, side: int, quality: int) -> bytes:
    """Return a photo as a JPEG whose longer side has `side` pixels at most; raise DiskError."""
    image, _ = _decoded(photo, Preprocess(resize=side, crop=side))
    buffer = io.BytesIO()
    shrink = min(1.0, side / max(image.size))
    size = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
    image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _measured(photos: Sequence[Photo]) -> Iterator[tuple[float, ...]]:
    chunks = [photos[at : at + _CHUNK] for at in range(0, len(photos), _CHUNK)]
    with pool() as threads:
        done = threads.map(lambda chunk: [_measure(photo) for photo in chunk], chunks)
        for found in progress(done, "measuring photos", len(chunks)):
            yield from found


def _measure(photo: Photo) -> tuple[float, ...]:
    image, (width, height) = _decoded(photo, _SPEC)
    grey = image.convert("L")
    shrink = _SIDE / min(grey.size)
    if shrink < 1:
        grey = grey.resize((max(1, round(grey.width * shrink)), max(1, round(grey.height * shrink))), reducing_gap=2)
    values = np.asarray(grey, dtype=np.float32)
    edges = np.asarray(grey.filter(_LAPLACE), dtype=np.float32)[1:-1, 1:-1]
    return width, height, float(values.mean()), float(values.std()), float(edges.std()) if edges.size else 0.0


def _decoded(photo: Photo, spec: Preprocess) -> tuple[Image.Image, tuple[int, int]]:
    """Return a photo, at a fraction of its size if that is enough, and its full upright size."""
    try:
        data = photo.read()
        image = open_image(data, OWN_LIMITS)
        full = image.size
        image = open_image(data, OWN_LIMITS, spec)
        with DECODING.hold(decoding_pixels(image)):
            decoded = decode_opened(image)
    except ImageError as error:
        raise DiskError(
            "PHOTO_CHANGED", f"photo {photo.path} can no longer be read ({error.reason}); restore it"
        ) from error
    is_turned = (decoded.width > decoded.height) != (full[0] > full[1])
    return decoded, full[::-1] if is_turned else full
