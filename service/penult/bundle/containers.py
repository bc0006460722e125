"""The parts of a file that its pixels need, found without decoding anything.

JPEG, PNG and WebP carry text, profiles, previews and times beside the pixels. Decoders read all of it, and refuse
a picture for a profile that is cut short, or inflate megabytes of text. So a decoder is given the parts that decide
pixels, in the order of the file and uncopied, and orientation and profile are read here. What is wrong with a part that
pixels need is left for the decoder to refuse. Other formats have modules of their own.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, cast

from penult.bundle.errors import ImageError
from penult.bundle.orientation import UPRIGHT, exif_orientation
from penult.bundle.profiles import MAX_PROFILE_BYTES

# More parts than any camera or editor writes; each costs a fraction of a microsecond of Python.
MAX_PARTS = 1 << 18
# What stands before the pixels and decides them: tables, a palette. Real files have less than 10 KB of it.
_MAX_HEADER_BYTES = 1 << 18

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_NO_MARKER = (0x00, 0xFF)
_START_OF_SCAN, _COMMENT, _APP0, _APP1, _APP2, _APP14 = 0xDA, 0xFE, 0xE0, 0xE1, 0xE2, 0xEE
_WITH_LENGTH = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDA, 0xF0), _COMMENT))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_END_OF_IMAGE = b"\xff\xd9"
# Restart markers and TEM mean nothing before the first scan.
_OPTIONAL = frozenset((0x01, *range(0xD0, 0xD8), *range(0xE0, 0xF0), _COMMENT))
# libjpeg ignores shorter ones.
_JFIF, _JFIF_LEAST_BYTES = b"JFIF\0", 14
_ADOBE, _ADOBE_LEAST_BYTES = b"Adobe", 12
_EXIF = b"Exif\0\0"
# Behind it stand the number of the part, from 1, and how many parts there are.
_ICC = b"ICC_PROFILE\0"
_JPEG_METADATA = {_APP1: _EXIF, _APP2: _ICC}
# A part has up to 64 KB, and larger profiles are ignored.
_MAX_PROFILE_PARTS = 16

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_CHUNK_NAME = re.compile(rb"\w{4}")
# A chunk whose name begins with a small letter is one that a picture can be shown without.
_ANCILLARY = 0x20

_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_FIRST = (b"VP8 ", b"VP8L", b"VP8X")
_WEBP_EXTENDED_BYTES = 10
_HAS_ALPHA, _HAS_ANIMATION = 0x10, 0x02
# The flags that announce metadata.
_WEBP_METADATA = {b"EXIF": 0x08, b"ICCP": 0x20}

View = memoryview | bytes


@dataclass
class Stored:
    """The parts of a file that a decoder needs, in order, and what the file says of its pixels.

    `orientation` is 1 to 8, and `profile` the ICC profile. `size` and `decoding_pixels` (pixels of 4 bytes) are known
    of AVIF, TIFF, BMP, GIF and HEIC. `first_scan` is the offset of a JPEG's first scan, and `scan_components` the
    number of its components. `frames` are its frame headers, without the first byte of the marker. `header` (13 bytes),
    `transparency` (the tRNS chunk) and `pixels` (the IDAT chunks) are of a PNG. `has_end` is whether a JPEG or PNG
    contains an end.
    """

    parts: list[View]
    orientation: int = UPRIGHT
    profile: bytes = b""
    size: tuple[int, int] | None = None
    decoding_pixels: int = 0
    first_scan: int = 0
    scan_components: int = 0
    frames: list[bytes] = field(default_factory=list)
    header: bytes = b""
    transparency: bytes = b""
    pixels: list[View] = field(default_factory=list)
    has_end: bool = False

    def file(self) -> IO[bytes]:
        """Return the parts as a file to read from."""
        if len(self.parts) == 1 and isinstance(self.parts[0], bytes):
            return io.BytesIO(self.parts[0])
        return cast("IO[bytes]", _Joined(self.parts))

    def joined(self) -> View:
        """Return the parts as one; copied if there are several."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


class _Joined:
    """Reads parts as one file; copied is only what is read."""

    def __init__(self, parts: list[View]) -> None:
        self._parts = parts
        self._part = self._at = self._place = 0

    def read(self, size: int = -1) -> bytes:
        wanted, found = size if size >= 0 else 1 << 62, []
        while wanted and self._part < len(self._parts):
            piece = self._parts[self._part][self._at : self._at + wanted]
            if len(piece):
                found.append(piece)
                self._at += len(piece)
                wanted -= len(piece)
            else:
                self._part, self._at = self._part + 1, 0
        data = bytes(found[0]) if len(found) == 1 else b"".join(found)
        self._place += len(data)
        return data

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            place += self._place
        elif whence == io.SEEK_END:
            place += sum(map(len, self._parts))
        self._part = self._at = 0
        self._place = left = place
        while self._part < len(self._parts) and left >= len(self._parts[self._part]):
            left -= len(self._parts[self._part])
            self._part += 1
        self._at = left
        return place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        self._parts = []


# -- JPEG --------------------------------------------------------------------------------------------------------------


def walk_jpeg(data: bytes) -> Stored:
    """Return a JPEG's tables and frame, and all from its first scan on; raise ImageError.

    Of the application segments only those stay by which libjpeg knows which colours the numbers are: JFIF and Adobe.
    """
    stored, kept, run, at, last = Stored([data]), [], 0, 0, len(data) - 4
    noted: dict[bytes, list[bytes]] = {_EXIF: [], _ICC: []}
    for _ in range(MAX_PARTS):
        if at > last or data[at] != 0xFF or data[at + 1] in _NO_MARKER:
            found = _MARKER.search(data, at)
            if not found:
                break
            if at > run:
                kept.append((run, at))
            run = at = found.start()
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            stored.first_scan, stored.scan_components = at, int.from_bytes(data[at + 4 : at + 5], "big")
            stored.has_end = data.rfind(_END_OF_IMAGE, at) > 0
            break
        end = at + 2
        if marker in _WITH_LENGTH:
            end += max(2, int.from_bytes(data[end : end + 2], "big"))
        stored.frames += [data[at + 1 : end]] if marker in _FRAMES else []
        if marker in _OPTIONAL and not _is_believed(data, marker, at + 4, end):
            if marker in _JPEG_METADATA:
                _note_jpeg(noted, _JPEG_METADATA[marker], data, at + 4, end)
            if at > run:
                kept.append((run, at))
            run = end
        at = end
    else:
        raise _too_much("JPEG")
    if sum(end - start for start, end in kept) + (stored.first_scan or len(data)) - run > _MAX_HEADER_BYTES:
        raise _too_much("JPEG")
    if kept:
        stored.parts = [b"".join([data[start:end] for start, end in kept]), memoryview(data)[run:]]
    _read_noted(stored, noted)
    return stored


def _note_jpeg(noted: dict[bytes, list[bytes]], beginning: bytes, data: bytes, start: int, end: int) -> None:
    if data.startswith(beginning, start) and len(noted[beginning]) < _MAX_PROFILE_PARTS:
        noted[beginning].append(data[start:end])


def _read_noted(stored: Stored, noted: dict[bytes, list[bytes]]) -> None:
    if noted[_EXIF]:
        stored.orientation = exif_orientation(noted[_EXIF][0])
    if noted[_ICC]:
        stored.profile = _joined_profile([part[len(_ICC) :] for part in noted[_ICC]])


def _joined_profile(parts: list[bytes]) -> bytes:
    """Return a profile of numbered parts; empty if one is missing, or it is too large to be read."""
    if [part[:2] for part in parts] != [bytes((number, len(parts))) for number in range(1, len(parts) + 1)]:
        return b""
    if sum(map(len, parts)) > MAX_PROFILE_BYTES:
        return b""
    return b"".join(part[2:] for part in parts)


def _is_believed(data: bytes, marker: int, start: int, end: int) -> bool:
    """Return whether libjpeg derives the colours from an application's segment."""
    if marker == _APP0:
        return end - start >= _JFIF_LEAST_BYTES and data.startswith(_JFIF, start)
    return marker == _APP14 and end - start >= _ADOBE_LEAST_BYTES and data.startswith(_ADOBE, start)


# -- PNG ---------------------------------------------------------------------------------------------------------------


def walk_png(data: bytes) -> Stored:
    """Return a PNG's critical chunks, its transparency and its pixels as one IDAT; raise ImageError.

    Chunks before the pixels keep their checksums, which the decoder verifies.
    """
    view, stored = memoryview(data), Stored([])
    before: list[View] = [_PNG_SIGNATURE]
    has_exif = are_over = is_damaged = False
    for kind, start, end in _chunks(data):
        if (kind == b"IDAT" and is_damaged) or not (stored.pixels or _CHUNK_NAME.fullmatch(kind)):
            raise ImageError("IMAGE_CORRUPT", "the PNG's chunks are damaged; send the original file")
        if kind == b"IDAT":
            stored.pixels += [] if are_over else [view[start:end]]
        elif kind == b"IEND":
            stored.has_end = True
            break
        elif kind == b"eXIf" and not has_exif and _has_checksum(view[start - 4 : end + 4]):
            has_exif, stored.orientation = True, exif_orientation(view[start:end])
        elif not stored.pixels:
            _keep(stored, before, kind, view[start - 8 : end + 4])
        elif not _CHUNK_NAME.fullmatch(kind):
            is_damaged = True
        elif not kind[0] & _ANCILLARY:
            are_over = True
    if sum(map(len, before)) > _MAX_HEADER_BYTES:
        raise _too_much("PNG")
    stored.parts = [b"".join(before), *_one_idat(stored.pixels), _PNG_END]
    return stored


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, and where its body begins and should end; raise ImageError for too many."""
    at = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, at + 8 + length
        at += 12 + length
    raise _too_much("PNG")


def _keep(stored: Stored, before: list[View], kind: bytes, chunk: memoryview) -> None:
    """Keep a chunk that stands before the pixels, if they need it, and read the profile."""
    if kind == b"IHDR":
        stored.header = bytes(chunk[8:-4])
    elif kind == b"tRNS":
        stored.transparency = bytes(chunk[8:-4])
    elif kind == b"iCCP" and not stored.profile:
        stored.profile = _inflated_profile(bytes(chunk[8 : 8 + MAX_PROFILE_BYTES]))
    if kind == b"tRNS" or not kind[0] & _ANCILLARY:
        before.append(chunk)


def _inflated_profile(body: bytes) -> bytes:
    """Return the profile behind the name in an iCCP chunk; empty if it is damaged or too large."""
    start = body.find(b"\0", 0, 80) + 2
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(body[start:], MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if inflater.eof else b""


def _has_checksum(chunk: memoryview) -> bool:
    """Return whether a chunk, from its name to its checksum, is undamaged."""
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _one_idat(pixels: list[View]) -> list[View]:
    """Return the pixel data as one chunk, whose checksum the decoder does not verify."""
    return [struct.pack(">I4s", sum(map(len, pixels)), b"IDAT"), *pixels, bytes(4)] if pixels else []


# -- WebP --------------------------------------------------------------------------------------------------------------


def walk_webp(data: bytes) -> Stored:
    """Return a WebP's header and its pixels, of an animation the first picture's; raise ImageError."""
    view, stored, at = memoryview(data), Stored([]), 12
    file_end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    kept: list[View] = []
    flags, has_begun, has_frame, noted = 0, False, False, set[bytes]()
    for _ in range(MAX_PARTS):
        if at + 8 > file_end:
            break
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        start, end = at + 8, at + 8 + length
        is_first = not has_begun and kind in _WEBP_FIRST
        if (is_first or (has_begun and kind in _WEBP_PIXELS)) and end > file_end:
            return Stored([data])  # for the decoder to refuse
        if is_first:
            has_begun = True
            if kind == b"VP8X" and length >= _WEBP_EXTENDED_BYTES:
                flags = data[start]
                kept.append(_extended(flags, view[start + 4 : start + _WEBP_EXTENDED_BYTES]))
            else:
                kept += _padded(view[at:end])
                if kind != b"VP8X":
                    break
        elif has_begun and (kind in _WEBP_PIXELS or kind == b"VP8X"):
            if kind != b"ANMF" or not has_frame:
                kept += _padded(view[at:end])
            has_frame = has_frame or kind == b"ANMF"
        elif kind not in noted and flags & _WEBP_METADATA.get(kind, 0):
            noted.add(kind)
            _note(stored, kind, view[start : min(end, file_end)])
        at = end + (length & 1)
    else:
        raise _too_much("WebP")
    size_bytes = 4 + sum(map(len, kept))
    if kept and 8 + size_bytes == len(data) == file_end and not flags:
        return Stored([data])
    stored.parts = [b"".join((b"RIFF", struct.pack("<I", size_bytes), b"WEBP")), *kept]
    return stored


def _note(stored: Stored, kind: bytes, body: memoryview) -> None:
    """Read what a WebP's metadata say of its pixels."""
    if kind == b"EXIF":
        stored.orientation = exif_orientation(body)
    elif len(body) <= MAX_PROFILE_BYTES:
        stored.profile = bytes(body)


def _extended(flags: int, canvas: memoryview) -> bytes:
    """Return a VP8X chunk that announces no metadata; bits that mean nothing yet are 0 there."""
    return b"VP8X\x0a\0\0\0" + bytes((flags & (_HAS_ALPHA | _HAS_ANIMATION), 0, 0, 0)) + canvas


def _padded(chunk: memoryview) -> list[View]:
    return [chunk, b"\0"] if len(chunk) & 1 else [chunk]


def _too_much(kind: str) -> ImageError:
    return ImageError("IMAGE_CORRUPT", f"the {kind} has more parts than a picture needs; send the original file")
