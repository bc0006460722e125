"""Checks on encoded photos that run before a decoder allocates anything.

Sizes, signatures and scan counts are attacks in one line each (research/reliability.md, section 3); Pillow alone lets
some of them pass: it decodes a PNG whose pixel data stop early into a black rest, and a progressive JPEG of 1,500
scans for nine seconds.
"""

import re
import struct
import zlib
from dataclasses import dataclass

from penult.bundle.errors import ImageError

_CHANNELS_BY_PNG_COLOUR = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: (x offset, y offset, x step, y step) of each pass of an interlaced PNG.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_INFLATE_STEP_BYTES = 1 << 20
# A marker that begins a segment: in entropy-coded data 0xFF is followed by 0x00 or a restart marker only.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", 0xD9


@dataclass(frozen=True)
class ImageLimits:
    """What one photo may cost."""

    max_bytes: int = 8 << 20
    max_pixels: int = 50_000_000
    max_side: int = 16_384
    max_scans: int = 64

    def check_bytes(self, size_bytes: int) -> None:
        """Raise ImageError for an empty file or one above `max_bytes`."""
        if size_bytes == 0:
            raise ImageError("IMAGE_EMPTY", "the image is empty (0 bytes); send the bytes of a JPEG, PNG or WebP file")
        if size_bytes > self.max_bytes:
            raise ImageError(
                "IMAGE_TOO_MANY_BYTES", f"the image has {size_bytes:,} bytes; at most {self.max_bytes:,} are accepted"
            )

    def check_size(self, width: int, height: int) -> None:
        """Raise ImageError for sides outside 1..max_side, or more than max_pixels in all."""
        if width < 1 or height < 1:
            raise ImageError("IMAGE_NO_PIXELS", f"the image is {width} x {height}; both sides must be at least 1")
        if max(width, height) > self.max_side or width * height > self.max_pixels:
            raise ImageError(
                "IMAGE_TOO_MANY_PIXELS",
                f"the image is {width} x {height}; at most {self.max_side:,} a side and {self.max_pixels:,} pixels "
                "are accepted",
            )

    def check_scans(self, data: bytes) -> None:
        """Raise ImageError for a JPEG with more than `max_scans` scans."""
        # A cheap bound first: what looks like a scan may also stand in metadata, or behind the picture's end.
        if data.count(_START_OF_SCAN) > self.max_scans and _count_scans(data) > self.max_scans:
            raise ImageError("IMAGE_TOO_MANY_SCANS", f"the JPEG has more than the {self.max_scans} scans accepted")


def image_format(data: bytes) -> str:
    """Return "JPEG", "PNG" or "WEBP" from the signature; raise ImageError for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise ImageError(
        "IMAGE_UNKNOWN_FORMAT", "the data are not a JPEG, PNG or WebP image; convert the file to one of them"
    )


def check_webp_complete(data: bytes) -> None:
    """Raise ImageError where a WebP is shorter than its header says."""
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise ImageError("IMAGE_TRUNCATED", "the WebP ends before its last byte; send the whole file")


def webp_size(data: bytes) -> tuple[int, int]:
    """Return a WebP's width and height, of its canvas where it has one; (1, 1) where its header says none.

    Such a file is for the decoder to refuse.
    """
    kind, header = data[12:16], data[20:30]
    if len(header) < 10 or int.from_bytes(data[16:20], "little") < 10:
        return 1, 1
    if kind == b"VP8X":
        return 1 + int.from_bytes(header[4:7], "little"), 1 + int.from_bytes(header[7:10], "little")
    if kind == b"VP8L":
        sides = int.from_bytes(header[1:5], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        # Two bits of each are how a viewer should scale it. The decoder tells what is wrong with a side of 0.
        width, height = (int.from_bytes(header[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return max(1, width), max(1, height)
    return 1, 1


def check_png_complete(data: bytes) -> None:
    """Raise ImageError unless a PNG's pixel data inflate to at least the length that its header promises."""
    header, compressed = _png_parts(data)
    expected = _png_raw_length(header)
    inflater, produced = zlib.decompressobj(), 0
    try:
        while produced < expected:
            block = inflater.decompress(compressed, _INFLATE_STEP_BYTES)
            produced, compressed = produced + len(block), inflater.unconsumed_tail
            if not block:
                raise ImageError("IMAGE_TRUNCATED", "the PNG ends before its last row; send the whole file")
    except zlib.error as error:
        raise ImageError("IMAGE_CORRUPT", "the PNG's pixel data are damaged; send the original file") from error


def _count_scans(data: bytes) -> int:
    """Count a JPEG's scans, segment by segment, up to its end: a phone may append a film, and metadata a thumbnail."""
    scans, at = 0, 2
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN[1]
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _png_parts(data: bytes) -> tuple[bytes, bytes]:
    """Return the 13 bytes of IHDR and the joined IDAT chunks; raise ImageError where the chunks do not add up."""
    header, at = b"", 8
    pixels: list[bytes] = []
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR" and not pixels:  # the decoder has its header by then, and does not look at another
            header = body
        elif kind == b"IDAT":
            pixels.append(body)
        elif kind == b"IEND":
            if len(header) != 13:
                raise ImageError("IMAGE_CORRUPT", "the PNG's header is damaged; send the original file")
            return header, b"".join(pixels)
        at += 12 + length
    raise ImageError("IMAGE_TRUNCATED", "the PNG has no end; send the whole file")


def _png_raw_length(header: bytes) -> int:
    """Return how many bytes a PNG's pixel data have before compression: a filter byte and the packed pixels per row."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS_BY_PNG_COLOUR.get(colour, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for x0, y0, dx, dy in passes:
        columns, rows = max(0, -(-(width - x0) // dx)), max(0, -(-(height - y0) // dy))
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total
