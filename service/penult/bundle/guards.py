"""Checks on encoded photos that run before a decoder allocates anything.

Wrong sizes, signatures and scan counts are known attacks (research/reliability.md, section 3). Pillow alone accepts
some of them. It fills a PNG whose pixel data stop early with black, and decodes a progressive JPEG of 1,500 scans for
nine seconds.
"""

import re
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from penult.bundle.containers import Stored, View
from penult.bundle.errors import ImageError
from penult.bundle.formats import FORMATS, SERVED, can_read_heic, format_of, listed, title
from penult.extras import how_to_install

_CHANNELS_BY_PNG_COLOUR = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: (x offset, y offset, x step, y step) of each pass of an interlaced PNG.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_DEFLATED_STEP_BYTES, _INFLATE_STEP_BYTES = 1 << 16, 1 << 20
# A marker that begins a segment: in entropy-coded data 0xFF is followed by 0x00 or a restart marker only.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", 0xD9
# Between scans. An encoder writes a table or two for each scan.
_MAX_SEGMENTS = 1 << 16


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one image, and the formats that it may have.

    The defaults admit the photos of every phone: 200 megapixels are 16,320 x 12,240. A file of `max_bytes` fits into a
    message of 64 MiB. `max_decoded_pixels` limits the memory of decoding, in pixels of 4 bytes. A JPEG is decoded at a
    fraction of its size, other files may need the memory of several pixels for one.
    """

    max_bytes: int = 63 << 20
    max_pixels: int = 200_000_000
    max_side: int = 65_500  # more than that libjpeg does not decode
    max_scans: int = 64
    max_decoded_pixels: int = 200_000_000
    formats: tuple[str, ...] = SERVED

    def __str__(self) -> str:
        """Name what a file may have, as notes and docs do."""
        sizes = f"{self.max_bytes >> 20} MiB, {self.max_pixels:,} pixels, {self.max_side:,} pixels a side"
        return f"{sizes}, {4 * self.max_decoded_pixels / 1e6:,.0f} MB of memory to decode it"

    def check_bytes(self, size_bytes: int) -> None:
        """Raise ImageError for an empty file or one above `max_bytes`."""
        if size_bytes == 0:
            raise ImageError(
                "IMAGE_EMPTY",
                f"the image is empty (0 bytes); send the bytes of a {listed(self.formats, 'or')} file",
            )
        if size_bytes > self.max_bytes:
            raise ImageError(
                "IMAGE_TOO_MANY_BYTES", f"the image has {size_bytes:,} bytes; at most {self.max_bytes:,} are accepted"
            )

    def check_format(self, data: bytes) -> str:
        """Return an image's format by its first bytes; raise ImageError unless it is accepted and can be read."""
        kind = format_of(data)
        if kind is None:
            raise ImageError(
                "IMAGE_UNKNOWN_FORMAT",
                f"the data are not a {listed(self.formats, 'or')} image; convert the file to one of them",
            )
        if kind not in self.formats:
            raise ImageError(
                "IMAGE_UNKNOWN_FORMAT",
                f"the image is {_article(kind)}, and the server accepts {listed(self.formats, 'and')}; convert the "
                f"file, or add {kind.lower()} to penult serve --image-formats",
            )
        if kind == "HEIC" and not can_read_heic():
            raise ImageError("IMAGE_NEEDS_EXTRA_HEIC", f"the image is a HEIC; to read it, {how_to_install('heic')}")
        return kind

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

    def check_cost(self, decoding_pixels: int, kind: str) -> None:
        """Raise ImageError where decoding allocates more than `max_decoded_pixels`."""
        if decoding_pixels > self.max_decoded_pixels:
            raise ImageError(
                "IMAGE_TOO_MANY_PIXELS",
                f"to decode this {kind} takes {4 * decoding_pixels / 1e6:,.0f} MB of memory; at most "
                f"{4 * self.max_decoded_pixels / 1e6:,.0f} MB are given; send a smaller image, or a baseline JPEG",
            )

    def check_scans(self, data: bytes, first_scan: int) -> None:
        """Raise ImageError for a JPEG with more than `max_scans` scans, the first of which begins at `first_scan`."""
        # A cheap bound first: what looks like a scan may also stand in metadata, or behind the picture's end.
        if data.count(_START_OF_SCAN, first_scan) > self.max_scans and _count_scans(data, first_scan) > self.max_scans:
            raise ImageError("IMAGE_TOO_MANY_SCANS", f"the JPEG has more than the {self.max_scans} scans accepted")


def _article(kind: str) -> str:
    return f"an {title(kind)}" if kind == "AVIF" else f"a {title(kind)}"


# A service's, and those of learning, which reads all formats.
DEFAULT_LIMITS = ImageLimits()
LEARNING_LIMITS = ImageLimits(formats=FORMATS)


class PixelBudget:
    """Lets threads decode at most `most_pixels` at one time; a single larger photo goes alone."""

    def __init__(self, most_pixels: int) -> None:
        """Start with nothing in use."""
        self._most, self._used = most_pixels, 0
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for `pixels`, and take it for as long as the block runs."""
        with self._freed:
            self._freed.wait_for(lambda: self._used == 0 or self._used + pixels <= self._most)
            self._used += pixels
        try:
            yield
        finally:
            with self._freed:
                self._used -= pixels
                self._freed.notify_all()


def check_webp_complete(data: bytes) -> None:
    """Raise ImageError where a WebP is shorter than its header says."""
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise ImageError("IMAGE_TRUNCATED", "the WebP ends before its last byte; send the whole file")


def webp_size(webp: Stored) -> tuple[int, int]:
    """Return a WebP's width and height, of its canvas if it has one.

    Without a size in its header it is (1, 1), and the decoder rejects the file.
    """
    data = webp.file().read(30)
    kind, header = data[12:16], data[20:30]
    if len(header) < 10 or int.from_bytes(data[16:20], "little") < 10:
        return 1, 1
    if kind == b"VP8X":
        return 1 + int.from_bytes(header[4:7], "little"), 1 + int.from_bytes(header[7:10], "little")
    if kind == b"VP8L":
        sides = int.from_bytes(header[1:5], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        # Two bits of each are how a viewer should scale it. The decoder rejects a side of 0.
        width, height = (int.from_bytes(header[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return max(1, width), max(1, height)
    return 1, 1


def check_png_complete(png: Stored) -> None:
    """Raise ImageError unless a PNG's pixel data inflate to at least the length that its header promises."""
    if not png.has_end:
        raise ImageError("IMAGE_TRUNCATED", "the PNG has no end; send the whole file")
    if len(png.header) != 13:
        raise ImageError("IMAGE_CORRUPT", "the PNG's header is damaged; send the original file")
    missing = _png_raw_length(png.header)
    try:
        for block_bytes in _inflated(png.pixels):
            missing -= block_bytes
            if missing <= 0:
                return
    except zlib.error as error:
        raise ImageError("IMAGE_CORRUPT", "the PNG's pixel data are damaged; send the original file") from error
    raise ImageError("IMAGE_TRUNCATED", "the PNG ends before its last row; send the whole file")


def _inflated(pieces: Iterable[View]) -> Iterator[int]:
    """Yield the growth of a zlib stream in bytes, step by step, with at most one step in memory."""
    inflater = zlib.decompressobj()
    for piece in pieces:
        for at in range(0, len(piece), _DEFLATED_STEP_BYTES):
            left: View = piece[at : at + _DEFLATED_STEP_BYTES]
            while len(left):
                yield len(inflater.decompress(left, _INFLATE_STEP_BYTES))
                left = inflater.unconsumed_tail
            if inflater.eof:
                return
    while block := inflater.decompress(b"", _INFLATE_STEP_BYTES):  # what was inflated and had no room in the last step
        yield len(block)


def _count_scans(data: bytes, at: int) -> int:
    """Count a JPEG's scans up to its end, segment by segment: phones append films, metadata holds thumbnails."""
    scans = 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if not found:
            return scans
        marker, at = data[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            return scans
        scans += marker == _START_OF_SCAN[1]
        at += int.from_bytes(data[at : at + 2], "big")
    return _MAX_SEGMENTS


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
