"""Read the parts of a file of any format and open them for decoding; no pixel is decoded yet.

Pillow decodes all but HEIC, which pi-heif does, the extra `heic`.
"""

from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin, Image

from penult.bundle.bitmaps import walk_bmp, walk_gif
from penult.bundle.boxes import walk_boxes
from penult.bundle.containers import Stored, walk_jpeg, walk_png, walk_webp
from penult.bundle.formats import format_of
from penult.bundle.plain_jpegs import open_parts
from penult.bundle.tiffs import walk_tiff

# Enough to recognise a format.
_START_BYTES = 256
# Images are decoded side by side, each on one thread.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_WALKS = {
    "JPEG": walk_jpeg, "PNG": walk_png, "WEBP": walk_webp, "TIFF": walk_tiff, "BMP": walk_bmp, "GIF": walk_gif,
}  # fmt: skip


def walk(data: bytes, kind: str) -> Stored:
    """Return the parts that the pixels of a file of one of FORMATS need; raise ImageError."""
    return walk_boxes(data, kind) if kind in ("AVIF", "HEIC") else _WALKS[kind](data)


def open_stored(stored: Stored, kind: str) -> Image.Image:
    """Read the header of a file of one of FORMATS; no pixel is decoded yet. Raises ImageError."""
    return HeicImage(stored) if kind == "HEIC" else open_parts(stored, kind)


def read_exif(path: Path) -> Image.Exif:
    """Return the EXIF data of a file of any format, empty if it has none; raise whatever its decoder raises."""
    with path.open("rb") as file:
        kind = format_of(file.read(_START_BYTES))
    if kind != "HEIC":
        with Image.open(path) as image:
            return image.getexif()
    import pi_heif

    exif = Image.Exif()
    exif.load(pi_heif.open_heif(path).info.get("exif") or b"")
    return exif


class HeicImage(Image.Image):
    """A HEIC whose size is known, decoded when load() is called; libheif turns it upright."""

    def __init__(self, stored: Stored) -> None:
        """Keep the file's parts until then."""
        super().__init__()
        self._mode, self._size, self._stored = "RGB", stored.size or (0, 0), stored

    def load(self) -> Any:
        """Decode the pixels, once."""
        if self._im is None:
            self._decode()
        return super().load()

    def _decode(self) -> None:
        import pi_heif  # an extra, and few images are HEIC

        options = pi_heif.options
        options.DECODE_THREADS, options.THUMBNAILS, options.DEPTH_IMAGES, options.AUX_IMAGES = 1, False, False, False
        picture = pi_heif.open_heif(self._stored.joined())
        # Copied: the pixels are freed with `picture`.
        decoded = Image.frombytes(picture.mode, picture.size, picture.data, "raw", picture.mode, picture.stride, 1)
        decoded = decoded.convert("RGBA") if picture.mode == "RGBa" else decoded
        self.im, self._mode, self._size = decoded.im, decoded.mode, decoded.size
