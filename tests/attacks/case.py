"""What one image of the corpus is, and the picture that most of them show. No file is stored: all are made by code."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 72


@dataclass(frozen=True)
class Case:
    """One image with the answer that it must get.

    `reason` is the item error's reason, all of them with the code INVALID_ARGUMENT; "" stands for a good image. Where
    `like` names another case, both show the same picture: their crops have at least this cosine, each crop taken
    relative to its own mean. `is_slow` marks photos of 49 million pixels and more; what makes one is called when its
    data are wanted.
    """

    name: str
    made: bytes | Callable[[], bytes]
    reason: str = ""
    like: str = ""
    cosine: float = 0.99
    is_slow: bool = False

    @cached_property
    def data(self) -> bytes:
        """The file."""
        return self.made if isinstance(self.made, bytes) else self.made()


@cache
def picture() -> Image.Image:
    """A picture that looks different from every side: slopes of colour, a bright disc, a dark bar."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([40 + 2 * x, 30 + 2 * y, 200 - x - y], axis=-1)
    rgb[(x - 30) ** 2 + (y - 22) ** 2 < 150] = (250, 240, 90)
    rgb[(x > 55) & (y > 44) & (y < 56)] = (10, 20, 30)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cuts(name: str, data: bytes, shares: tuple[float, ...], reasons: dict[float, str]) -> list[Case]:
    """The first part of a file, cut at shares of its length; truncated, unless `reasons` says otherwise."""
    return [
        Case(f"{name}-cut-{share}", data[: int(share * len(data))], reasons.get(share, "IMAGE_TRUNCATED"))
        for share in shares
    ]


def exif(orientation: object, kind: int = 3, count: int = 1) -> bytes:
    """A TIFF block with nothing but an orientation; `kind` is TIFF's number of its type."""
    value = orientation if isinstance(orientation, bytes) else int(orientation).to_bytes(4, "little")
    entry = (
        (0x0112).to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + count.to_bytes(4, "little")
        + value[:4].ljust(4, b"\0")
    )
    return b"II*\0\x08\0\0\0" + b"\x01\0" + entry + bytes(4)


# How the picture is stored so that a viewer who honours the orientation sees it upright.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(orientation: int, image: Image.Image | None = None) -> Image.Image:
    """The picture as a camera held that way stores it."""
    turn = STORED[orientation]
    upright = image or picture()
    return upright if turn is None else upright.transpose(turn)
