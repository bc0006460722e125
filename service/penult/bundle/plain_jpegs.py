"""Open an encoded image with Pillow, or a plain JPEG with simplejpeg, whose libjpeg-turbo decodes it in one call.

Both return the same pixels. simplejpeg takes less CPU time, because nothing is copied line by line
(bench/RESULTS.md). It reports warnings of libjpeg-turbo as errors. Pillow then decodes the file again and decides
whether it is accepted.
"""

from typing import Any

import numpy as np
from PIL import Image

from penult.bundle.containers import Stored
from penult.bundle.errors import ImageError

try:
    import simplejpeg
except ImportError:  # Pillow alone returns the same, so an operator may uninstall a libjpeg-turbo with a fault
    simplejpeg = None

_BASELINE, _BITS, _COLOURS, _FRAME_BYTES = 0xC0, 8, 3, 18
# Below this, two scales may give one size.
_LEAST_SIDE = 16
# Pillow decodes larger files alone. A damaged one is otherwise decoded twice, and one with metadata is copied, which
# must not take more time and memory than the largest accepted file.
_MOST_PIXELS, _MOST_BYTES = 50_000_000, 16 << 20


def open_parts(stored: Stored, kind: str) -> Image.Image:
    """Read the header of a file of any format but HEIC; no pixel is decoded yet. Raises ImageError."""
    size = _plain_size(stored) if simplejpeg and kind == "JPEG" else None
    return PlainJpeg(stored, size) if size else _open_with_pillow(stored, kind)


def _plain_size(stored: Stored) -> tuple[int, int] | None:
    """Return the width and height of a baseline JPEG of three colours in one scan, and None for another."""
    frame = stored.frames[0] if len(stored.frames) == 1 else b""
    if len(frame) != _FRAME_BYTES or (frame[0], frame[3], frame[8]) != (_BASELINE, _BITS, _COLOURS):
        return None
    width, height = int.from_bytes(frame[6:8], "big"), int.from_bytes(frame[4:6], "big")
    is_plain = (
        stored.scan_components == _COLOURS
        and min(width, height) >= _LEAST_SIDE
        and width * height <= _MOST_PIXELS
        and sum(map(len, stored.parts)) <= _MOST_BYTES
        and stored.has_end  # libjpeg-turbo fills what is missing, which takes a tenth of a second for 200 bytes
    )
    return (width, height) if is_plain else None


def _open_with_pillow(stored: Stored, kind: str) -> Image.Image:
    try:
        return Image.open(stored.file(), formats=[kind])
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, … on bad bytes
        raise ImageError("IMAGE_CORRUPT", f"the {kind} header cannot be read; send the original file") from error


class PlainJpeg(Image.Image):
    """A JPEG whose size is known, decoded when load() is called."""

    def __init__(self, stored: Stored, size: tuple[int, int]) -> None:
        """Keep the file's parts until then."""
        super().__init__()
        self._mode, self._size = "RGB", size
        self._stored, self._wanted = stored, (0, 0)

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> None:
        """Decode at 1/8, 1/4 or 1/2, if at least `size` is left; as JpegImageFile does."""
        if size:
            possible = min(whole // part for whole, part in zip(self._size, size, strict=True))
            scale = next(scale for scale in (8, 4, 2, 1) if scale <= possible)
            self._wanted, self._size = size, (-(-self.width // scale), -(-self.height // scale))

    def load(self) -> Any:
        """Decode the pixels, once."""
        if self._im is None:
            self.im = self._decode()
        return super().load()

    def _decode(self) -> Any:
        width, height = self._size
        least_width, least_height = self._size if any(self._wanted) else (0, 0)
        # Where rows begin at multiples of 16, libjpeg-turbo writes past the caches, and resizing reads memory.
        room = np.empty(4 + 4 * width * height, np.uint8)[4:]
        try:
            pixels = simplejpeg.decode_jpeg(
                self._stored.joined(), "RGBX", min_height=least_height, min_width=least_width, buffer=room
            )
        except ValueError:
            return self._decode_with_pillow()
        if pixels.shape != (height, width, 4):
            return self._decode_with_pillow()
        # Pillow keeps RGB as 4 bytes a pixel, so these are its pixels, uncopied.
        return Image.core.map_buffer(room, self._size, "raw", 0, ("RGB", 0, 1))  # type: ignore[attr-defined]

    def _decode_with_pillow(self) -> Any:
        image = _open_with_pillow(self._stored, "JPEG")
        if any(self._wanted):
            image.draft(None, self._wanted)
        image.load()
        if (image.mode, image.size) != (self.mode, self._size):
            raise ImageError("IMAGE_CORRUPT", "the JPEG has two sizes; send the original file")
        return image.im
