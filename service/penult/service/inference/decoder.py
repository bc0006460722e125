"""Decode images to pixels, within a budget of pixels, so that a few huge images cannot use up the memory."""

from collections.abc import Callable
from dataclasses import dataclass

from penult.bundle import formats
from penult.bundle.errors import ImageError
from penult.bundle.guards import ImageLimits, PixelBudget
from penult.bundle.preprocess import (
    Pixels,
    Preprocess,
    crop_opened,
    crop_rgb,
    decoding_pixels,
    open_image,
    ready_crop,
    upright_size,
)
from penult.service.errors import Overloaded

_RETRY_MS = 1000


@dataclass(slots=True)  # not frozen: such fields cost three times as much to set
class EncodedPhoto:
    """The bytes of an image file."""

    data: bytes


@dataclass(slots=True)
class RawPhoto:
    """Decoded pixels. `rgb` has height * width * 3 bytes; with `is_crop` it is the network's input, unchanged."""

    height: int
    width: int
    rgb: bytes
    is_crop: bool = False


Photo = EncodedPhoto | RawPhoto
# Gets an image's width and height in pixels, upright, and whether it is the network's input unchanged.
OnSize = Callable[[int, int, bool], object]

FORMATS = (*(kind.lower() for kind in formats.FORMATS), "other", "pixels", "crop")


def format_of(photo: Photo) -> str:
    """Return jpeg, png, … or other, by an image's first bytes; pixels or crop if it came decoded."""
    if isinstance(photo, RawPhoto):
        return "crop" if photo.is_crop else "pixels"
    return (formats.format_of(photo.data) or "other").lower()


def size_bytes(photo: Photo) -> int:
    """Return how many bytes an image uses in memory while it waits, at least 1."""
    return len(photo.rgb if isinstance(photo, RawPhoto) else photo.data) or 1


class Decoder:
    """Turns images into the network's input, on the caller's thread."""

    def __init__(self, limits: ImageLimits, budget: PixelBudget) -> None:
        """Keep these limits."""
        self._limits, self._budget = limits, budget

    def crop(self, photo: Photo, spec: Preprocess, on_size: OnSize | None = None) -> Pixels:
        """Return the network's input, uint8 [crop, crop, 3].

        `on_size` gets the size of the image before it is decoded.

        Raises ImageError, and Overloaded if there is no memory. This raises a new error, because the traceback and the
        cause of the first hold hundreds of MiB of half-decoded pixels. They would stay until Python collects cycles. In
        a test, five files of 140 bytes held 560 MiB.
        """
        refused: ImageError | Overloaded
        try:
            return self._crop(photo, spec, on_size)
        except ImageError as error:
            refused = ImageError(error.reason, error.message)
        except MemoryError:
            refused = Overloaded(
                "MEMORY_FULL", "there is no memory left for a photo of that size; try again", retry_after_ms=_RETRY_MS
            )
        try:
            raise refused
        finally:
            del refused  # its traceback holds this frame

    def _crop(self, photo: Photo, spec: Preprocess, on_size: OnSize | None) -> Pixels:
        if isinstance(photo, RawPhoto):
            if on_size:
                on_size(photo.width, photo.height, photo.is_crop)
            read = ready_crop if photo.is_crop else crop_rgb
            return read(photo.rgb, photo.height, photo.width, spec, self._limits)
        image = open_image(photo.data, self._limits, spec)
        if on_size:
            on_size(*upright_size(image), False)
        with self._budget.hold(decoding_pixels(image)):
            return crop_opened(image, spec)
