"""BMPs and GIFs of the corpus."""

import io
import struct
from collections.abc import Iterable
from functools import cache, partial

import numpy as np
from PIL import Image
from tests.attacks.case import HEIGHT, WIDTH, Case, cuts, encode, picture

_LARGEST = 2**31 - 1


def bmp(
    width: int, height: int, bits: int, compression: int, body: bytes, palette: bytes = b"", colors: int = 0
) -> bytes:
    """A BMP with these claims."""
    offset = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, colors, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


def _rows() -> bytes:
    """The picture's rows from the lowest up, blue first; 96 pixels need no padding."""
    return np.asarray(picture())[::-1, :, ::-1].tobytes()


def _bmp_kinds() -> Iterable[Case]:
    gray = bytes(level for level in range(256) for _ in (0, 0, 0, 0))
    row = b"".join(bytes((2, level)) for level in range(0, 2 * 48, 2))
    lengths = b"".join(row + b"\0\0" for _ in range(HEIGHT)) + b"\0\1"
    upside_down = np.asarray(picture())[:, :, ::-1].tobytes()
    core = b"BM" + struct.pack("<IHHI", 26 + len(_rows()), 0, 0, 26) + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    for mode in ("1", "L", "P", "RGBA"):
        yield Case(f"bmp-{mode}", encode(picture().convert(mode), "BMP"), like="png" if mode == "RGBA" else "")
    for name, data, like in (
        ("top-down", bmp(WIDTH, -HEIGHT, 24, 0, upside_down), "png"),
        ("core-header", core + _rows(), "png"),
        ("trailing", bmp(WIDTH, HEIGHT, 24, 0, _rows() + b"more" * 99), "png"),
        ("run-lengths", bmp(WIDTH, HEIGHT, 8, 1, lengths, gray, 256), ""),
        ("1x1", bmp(1, 1, 24, 0, bytes(4)), ""),
        ("1x20000", bmp(1, 20_000, 24, 0, bytes(80_000)), ""),
    ):
        yield Case(f"bmp-{name}", data, like=like)
    for mode in ("RGB", "P"):
        yield Case(f"bmp-large-{mode}", partial(encode, Image.new(mode, (4000, 4000)), "BMP"), is_slow=True)


def _bmp_lies() -> Iterable[Case]:
    palette = bytes(1024)
    for name, data, reason in (
        ("bomb", bmp(60_000, 60_000, 24, 0, bytes(99)), "IMAGE_TRUNCATED"),
        ("bomb-run-lengths", bmp(30_000, 6_000, 8, 1, b"\0\1", palette), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-run-lengths-4", bmp(65_000, 3_000, 4, 2, b"\0\1", palette), "IMAGE_TOO_MANY_PIXELS"),
        ("run-lengths-too-long", bmp(9, 9, 8, 1, b"\0\0" * (5 << 20 >> 1), palette), "IMAGE_TOO_MANY_PIXELS"),
        ("run-lengths-end-early", bmp(99, 99, 8, 1, b"\x09\1\0\1", palette), "IMAGE_CORRUPT"),
        ("run-lengths-leap", bmp(2000, 2000, 8, 1, b"\0\2\xff\xff" * 99, palette), ""),
        ("largest", bmp(_LARGEST, -_LARGEST, 32, 0, bytes(99)), "IMAGE_TRUNCATED"),
        ("no-width", bmp(0, 9, 24, 0, bytes(99)), "IMAGE_NO_PIXELS"),
        ("negative-width", bmp(-9, 9, 24, 0, bytes(999)), "IMAGE_NO_PIXELS"),
        ("bits-0", bmp(9, 9, 0, 0, bytes(999)), "IMAGE_CORRUPT"),
        ("bits-65535", bmp(9, 9, 65_535, 0, bytes(1 << 20)), "IMAGE_CORRUPT"),
        ("png-inside", bmp(9, 9, 0, 5, encode(picture(), "PNG")), "IMAGE_CORRUPT"),
        ("bitfields-noise", bmp(9, 9, 32, 3, b"\xa5\x5a" * 500), "IMAGE_CORRUPT"),
        ("palette-of-2-billion", bmp(9, 9, 8, 0, bytes(999), palette, 2**31), "IMAGE_CORRUPT"),
        ("header-alone", encode(picture(), "BMP")[:20], "IMAGE_TRUNCATED"),
        ("text", b"BMW is no picture, whatever it begins with", "IMAGE_UNKNOWN_FORMAT"),
    ):
        yield Case(f"bmp-{name}", data, reason)


@cache
def gif(**options: object) -> bytes:
    """The picture as a GIF."""
    return encode(picture(), "GIF", **options)


def _blocks(data: bytes) -> bytes:
    return b"".join(bytes((len(data[at : at + 255]),)) + data[at : at + 255] for at in range(0, len(data), 255)) + b"\0"


def _screen(data: bytes, width: int, height: int) -> bytes:
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def _frame(data: bytes, *place: int) -> bytes:
    at = data.index(b"\x2c\0\0\0\0")
    return data[: at + 1] + struct.pack("<4H", *place) + data[at + 9 :]


def _before_frame(data: bytes, more: bytes) -> bytes:
    at = data.index(b"\x2c\0\0\0\0")
    return data[:at] + more + data[at:]


def _gif_kinds() -> Iterable[Case]:
    moving = io.BytesIO()
    picture().save(moving, "GIF", save_all=True, append_images=[picture().rotate(90), picture().rotate(180)])
    clear = Image.new("P", (WIDTH, HEIGHT), 3)
    for name, data, like in (
        ("not-interlaced", gif(interlace=0), "gif"),
        ("animated", moving.getvalue(), "gif"),
        ("clear", encode(clear, "GIF", transparency=3), "white"),
        ("gray", encode(picture().convert("L"), "GIF"), ""),
        ("comments", _before_frame(gif(), b"\x21\xfe" + _blocks(b"comment " * 99_999)), "gif"),
        ("extension-noise", _before_frame(gif(), b"\x21\x77" + _blocks(b"\xa5\x5a" * 999)), "gif"),
        ("trailing", gif() + b"more" * 99, "gif"),
        ("no-trailer", gif()[:-1], "gif"),
        ("frame-in-a-larger-screen", _screen(gif(), 200, 150), ""),
        ("frame-larger-than-its-screen", _screen(gif(), 9, 9), ""),
    ):
        yield Case(f"gif-{name}", data, like=like)
    large = partial(encode, Image.new("P", (6000, 5000)), "GIF", transparency=0)
    yield Case("gif-large", large, is_slow=True)


def _gif_lies() -> Iterable[Case]:
    at = gif().index(b"\x2c\0\0\0\0")
    for name, data, reason in (
        ("bomb-screen", _screen(gif(), 65_535, 65_535), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-frame", _frame(gif(), 0, 0, 65_000, 65_000), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-place", _frame(gif(), 65_000, 65_000, WIDTH, HEIGHT), "IMAGE_TOO_MANY_PIXELS"),
        ("no-pixels", _frame(_screen(gif(), 0, 0), 0, 0, 0, 0), "IMAGE_NO_PIXELS"),
        ("no-frame", gif()[:at] + b";", "IMAGE_TRUNCATED"),
        ("block-noise", gif()[:at] + b"\x99" * 99, "IMAGE_CORRUPT"),
        ("blocks-of-1-byte", _before_frame(gif(), b"\x21\xfe" + b"\1a" * 300_000 + b"\0"), "IMAGE_CORRUPT"),
        ("many-extensions", _before_frame(gif(), b"\x21\xfe\0" * 300_000), "IMAGE_CORRUPT"),
        ("code-size-99", gif()[: at + 10] + b"\x63" + gif()[at + 11 :], "IMAGE_CORRUPT"),
        ("too-few-pixels", gif()[: at + 11] + _blocks(gif()[at + 12 : at + 99]) + b";", "IMAGE_TRUNCATED"),
        ("pixel-noise", gif()[: at + 11] + _blocks(b"\xa5\x5a" * 500) + b";", "IMAGE_CORRUPT"),
        ("signature", b"GIF89a", "IMAGE_TRUNCATED"),
    ):
        yield Case(f"gif-{name}", data, reason)


def all_bitmaps() -> Iterable[Case]:
    """Every BMP and GIF of the corpus."""
    yield Case("bmp", encode(picture(), "BMP"), like="png")
    yield from _bmp_kinds()
    yield from _bmp_lies()
    early = {0.0005: "IMAGE_UNKNOWN_FORMAT"}
    yield from cuts("bmp", encode(picture(), "BMP"), (0.0005, 0.002, 0.1, 0.5, 0.9, 0.9999), early)
    yield Case("gif", gif(), like="png", cosine=0.97)
    yield from _gif_kinds()
    yield from _gif_lies()
    yield from cuts("gif", gif(), (0.0005, 0.002, 0.1, 0.5, 0.9, 0.999), early)
