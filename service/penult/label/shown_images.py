"""Photos as the page shows them: decoded behind the usual guards, upright, small, and always encoded again.

No file's own bytes reach the browser. So an SVG or HTML file cannot be served, and a TIFF or HEIC is visible. A photo
is named by the digest of its bytes: the address of a picture says nothing of a path, and its contents never change.
"""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from PIL import Image

from penult.bundle.guards import LEARNING_LIMITS, PixelBudget
from penult.bundle.preprocess import SRGB, Preprocess, decode_opened, decoding_pixels, in_srgb, open_image
from penult.export.data.splitting import Photo

# Longest side in pixels: of the large photo, and of those in the grid and among the neighbours.
SHOWN, THUMBNAIL = 1280, 320
SIZES = (SHOWN, THUMBNAIL)
_QUALITY = 85
# A JPEG is decoded at a fraction that leaves at least this part of the size on its shorter side.
_SHORT_SIDE = 0.75
# Decoding at one time: 200 million pixels are 800 MB, and one such photo is decoded alone.
_BUDGET_PIXELS = 200_000_000


def image_url(photo: Photo) -> str:
    """Return the address of a photo on the page's server."""
    return f"/image/{photo.sha256}?size={SHOWN}"


def thumbnail_url(photo: Photo) -> str:
    """Return the address of its small picture."""
    return f"/image/{photo.sha256}?size={THUMBNAIL}"


class ShownImages:
    """The pictures of a set of photos; those of late are kept, up to a number of bytes. Usable from any thread."""

    def __init__(self, photo_of: Callable[[str], Photo | None], kept_bytes: int = 128 << 20) -> None:
        """Show the photos that `photo_of` finds by their digests, and no others."""
        self._photo_of = photo_of
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._room_bytes = kept_bytes
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
        self._budget = PixelBudget(_BUDGET_PIXELS)

    def jpeg(self, sha256: str, size: int) -> bytes | None:
        """Return a photo as a JPEG of at most `size` pixels a side; None if no photo has the digest.

        Raises:
            DiskError: the file can no longer be read.
            ImageError: it cannot be decoded.
        """
        photo = self._photo_of(sha256)
        if photo is None:
            return None
        key = (sha256, size)
        with self._lock:
            if found := self._kept.get(key):
                self._kept.move_to_end(key)
                return found
        with self._turns:
            made = self._make(photo.read(), size)
        self._keep(key, made)
        return made

    def _make(self, data: bytes, size: int) -> bytes:
        short = max(1, int(size * _SHORT_SIDE / 2))  # open_image() leaves twice of it
        spec = Preprocess(resize=short, crop=short, colors=SRGB)
        opened = open_image(data, LEARNING_LIMITS, spec)
        with self._budget.hold(decoding_pixels(opened)):
            image = fitted(decode_opened(opened), size)
            pixels = in_srgb(np.asarray(image), opened, spec)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()

    def _keep(self, key: tuple[str, int], made: bytes) -> None:
        with self._lock:
            self._room_bytes += len(self._kept.pop(key, b"")) - len(made)
            self._kept[key] = made
            while self._room_bytes < 0:
                _, dropped = self._kept.popitem(last=False)
                self._room_bytes += len(dropped)


def fitted(image: Image.Image, size: int) -> Image.Image:
    """Return an image of at most `size` pixels a side; a small one as it is."""
    longest = max(image.size)
    if longest <= size:
        return image
    width, height = (max(1, round(side * size / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
