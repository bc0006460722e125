"""The parts of BMP and GIF files that their pixels need, and their sizes, before a decoder opens them."""

import struct

from penult.bundle.containers import MAX_PARTS, Stored
from penult.bundle.errors import ImageError

_CORE_HEADER_BYTES, _CORE, _INFO = 26, 12, 54
_RGB_BITS = 24
_RLE = (1, 2)
# Pillow decodes run lengths in Python, at some 4 million pixels or bytes a second.
_MAX_RLE_PIXELS, _MAX_RLE_BYTES = 1 << 22, 1 << 22

_GIF_SCREEN_BYTES, _GIF_FRAME_BYTES = 13, 10
_EXTENSION, _FRAME = 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9
_GIF_END = b";"


def walk_bmp(data: bytes) -> Stored:
    """Return a BMP's size and what decoding it takes; raise ImageError.

    The header decides everything. Rows are not compressed, but for run lengths of palette indices.
    """
    (offset,) = struct.unpack_from("<I", data, 10)
    try:
        width, height, bits, compression = _bmp_header(data)
    except struct.error as error:
        raise ImageError("IMAGE_TRUNCATED", "the BMP ends within its header; send the whole file") from error
    whole = width * height
    if compression in _RLE:
        if whole > _MAX_RLE_PIXELS or len(data) - offset > _MAX_RLE_BYTES:
            raise ImageError(
                "IMAGE_TOO_MANY_PIXELS",
                f"a BMP with run lengths may have {_MAX_RLE_PIXELS:,} pixels; send an uncompressed BMP, or a PNG",
            )
    elif offset + (width * bits + 31) // 32 * 4 * height > len(data):
        raise ImageError("IMAGE_TRUNCATED", "the BMP ends before its last row; send the whole file")
    return Stored([data], size=(width, height), decoding_pixels=whole if bits == _RGB_BITS else 2 * whole)


def _bmp_header(data: bytes) -> tuple[int, int, int, int]:
    """Return width, height, bits of a pixel and compression; a negative height says that the first row is on top."""
    if int.from_bytes(data[14:18], "little") == _CORE:
        width, height, _, bits = struct.unpack_from("<4H", data, 18)
        return width, height, bits, 0
    width, height, _, bits, compression = struct.unpack_from("<2i2HI", data, 18)
    return width, abs(height), bits, compression


def walk_gif(data: bytes) -> Stored:
    """Return the first picture of a GIF with its palette and transparency; raise ImageError.

    A picture may be larger than the screen, and decoders then enlarge the screen.
    """
    if len(data) < _GIF_SCREEN_BYTES:
        raise _gif_ends()
    width, height, flags = struct.unpack_from("<2HB", data, 6)
    at = _GIF_SCREEN_BYTES + _palette_bytes(flags)
    view, control = memoryview(data), b""
    screen = bytes(view[:at])
    for _ in range(MAX_PARTS):
        if at + 2 > len(data):
            raise _gif_ends()
        start, kind = at, data[at]
        if kind == _FRAME:
            end = _end_of_frame(data, at)
            left, top, across, down = struct.unpack_from("<4H", data, at + 1)
            size = (max(width, left + across), max(height, top + down))
            return Stored(
                [screen + control, view[start:end], _GIF_END], size=size, decoding_pixels=2 * size[0] * size[1]
            )
        if kind != _EXTENSION:
            raise ImageError("IMAGE_CORRUPT", "the GIF's blocks are damaged; send the original file")
        at = _end_of_blocks(data, at + 2)
        if data[start + 1] == _GRAPHIC_CONTROL:
            control = bytes(view[start:at])
    raise ImageError("IMAGE_CORRUPT", "the GIF has more parts than a picture needs; send the original file")


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_frame(data: bytes, at: int) -> int:
    if at + _GIF_FRAME_BYTES >= len(data):
        raise _gif_ends()
    # Behind the palette stands one byte, the size of the first code.
    return _end_of_blocks(data, at + _GIF_FRAME_BYTES + _palette_bytes(data[at + 9]) + 1)


def _end_of_blocks(data: bytes, at: int) -> int:
    """Return where the blocks that begin at `at` end: each has its length before it, and the last has none."""
    for _ in range(MAX_PARTS):
        if at >= len(data):
            raise _gif_ends()
        length = data[at]
        at += 1 + length
        if not length:
            return at
    raise ImageError("IMAGE_CORRUPT", "the GIF has more parts than a picture needs; send the original file")


def _gif_ends() -> ImageError:
    return ImageError("IMAGE_TRUNCATED", "the GIF ends before its first picture does; send the whole file")
