"""Read the first page of a TIFF: check its directory, and write one that holds nothing else.

libtiff and Pillow read whole directories: 65,535 entries that may each name the same 60 MB, further pages, EXIF. The
directory written here has the entries that pixels need, at most 24, whose strips or tiles lie within the file.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from penult.bundle.containers import MAX_PARTS, Stored, View
from penult.bundle.errors import ImageError
from penult.bundle.orientation import UPRIGHT
from penult.bundle.profiles import MAX_PROFILE_BYTES

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR = 273, 274, 277, 278, 279, 284
_T4_OPTIONS, _T6_OPTIONS, _PREDICTOR, _PALETTE = 292, 293, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_EXTRA, _FORMAT, _JPEG_TABLES, _SUBSAMPLING, _PROFILE = 338, 339, 347, 530, 34675
_NEEDED = frozenset((
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR,
    _T4_OPTIONS, _T6_OPTIONS, _PREDICTOR, _PALETTE, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT,
    _JPEG_TABLES, _SUBSAMPLING,
))  # fmt: skip
# Of strips and tiles; a palette has 768 numbers.
_MAX_NUMBERS = MAX_PARTS
_LETTERS = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}
_BYTE, _SHORT, _LONG, _RAW, _LONG8 = 1, 3, 4, 7, 16
_NONE, _JPEG, _SEPARATE, _UNSIGNED = 1, 7, 2, 1
# None, CCITT groups 3 and 4, LZW, JPEG, Deflate by both numbers, PackBits: what scanners and editors write.
_COMPRESSIONS = (_NONE, 2, 3, 4, 5, _JPEG, 8, 32773, 32946)
_SAMPLE_BITS = (1, 2, 4, 8, 16)
_BIG, _MAX_SAMPLES = 43, 8
_HEADER_BYTES = 8

Entries = dict[int, tuple[int, tuple[int, ...]]]


@dataclass(frozen=True)
class _Directory:
    """The entries of a page: each tag's type and numbers. `order` is struct's letter of the byte order."""

    order: str
    entries: Entries

    def number(self, tag: int, default: int) -> int:
        """Return the first number of a tag."""
        return (self.entries.get(tag, (0, ()))[1] or (default,))[0]

    def numbers(self, tag: int) -> tuple[int, ...]:
        return self.entries.get(tag, (0, ()))[1]


def walk_tiff(data: bytes) -> Stored:
    """Return the first page of a TIFF behind a directory of its own; raise ImageError."""
    try:
        return _walk(data)
    except (struct.error, OverflowError) as error:
        raise ImageError("IMAGE_TRUNCATED", "the TIFF ends within its directory; send the whole file") from error


def _walk(data: bytes) -> Stored:
    page = _read(data)
    width, height = page.number(_WIDTH, 0), page.number(_HEIGHT, 0)
    _check_samples(page)
    segment_pixels = _check_segments(page, data, width, height)
    unused = (_STRIPS, _ROWS, _STRIP_BYTES) if _TILES in page.entries else ()
    entries = {tag: entry for tag, entry in page.entries.items() if tag in _NEEDED and tag not in unused}
    kind, profile = page.entries.get(_PROFILE, (0, ()))
    whole = width * height
    return Stored(
        _parts(data, page.order, entries),
        orientation=page.number(_ORIENTATION, UPRIGHT) if 1 <= page.number(_ORIENTATION, UPRIGHT) <= 8 else UPRIGHT,
        size=(width, height),
        profile=bytes(profile) if kind in (_BYTE, _RAW) else b"",
        # The picture is converted. A compressed file is copied, and decoded by strips or tiles.
        decoding_pixels=2 * whole + (0 if _is_raw(page) else segment_pixels + len(data) // 4),
    )


def _read(data: bytes) -> _Directory:
    """Read the first directory; raise ImageError, and struct.error if it ends too early."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}I", data, 8 if is_big else 4)
    count_letter, entry_letters = ("Q", "HHQQ") if is_big else ("H", "HHII")
    (count,) = struct.unpack_from(order + count_letter, data, at)
    first, size = at + struct.calcsize("=" + count_letter), struct.calcsize("=" + entry_letters)
    entries: Entries = {}
    for start in range(first, first + size * min(count, 1 << 16), size):
        tag, kind, length, value = struct.unpack_from(order + entry_letters, data, start)
        if tag in entries or tag not in _NEEDED | {_ORIENTATION, _PROFILE} or kind not in _LETTERS:
            continue
        if length > _MAX_NUMBERS or (tag == _PROFILE and length > MAX_PROFILE_BYTES):
            if tag == _PROFILE:
                continue
            raise ImageError("IMAGE_CORRUPT", "the TIFF has more parts than a picture needs; send the original file")
        form = f"{order}{length}{_LETTERS[kind]}"
        inline = struct.calcsize(form) <= (8 if is_big else 4)
        place = start + size - (8 if is_big else 4) if inline else value
        try:
            entries[tag] = (kind, struct.unpack_from(form, data, place))
        except struct.error:
            if tag != _PROFILE:  # that alone may be damaged
                raise
    return _Directory(order, entries)


def _is_raw(page: _Directory) -> bool:
    return page.number(_COMPRESSION, _NONE) == _NONE


def _check_samples(page: _Directory) -> None:
    """Raise ImageError for pixels that a photo does not have, and for compressions that are rare."""
    bits, samples = page.numbers(_BITS) or (1,), page.number(_SAMPLES, 1)
    is_usual = all(number in _SAMPLE_BITS for number in bits) and set(page.numbers(_FORMAT)) <= {_UNSIGNED}
    if not is_usual or page.number(_COMPRESSION, _NONE) not in _COMPRESSIONS:
        raise ImageError(
            "IMAGE_UNKNOWN_FORMAT",
            "the TIFF has floating-point samples, more than 16 bits or a rare compression; convert it to a PNG",
        )
    if not 1 <= samples <= _MAX_SAMPLES or len(bits) > samples:
        raise ImageError("IMAGE_CORRUPT", "the TIFF's samples are damaged; send the original file")


def _check_segments(page: _Directory, data: bytes, width: int, height: int) -> int:
    """Raise ImageError unless all strips or tiles lie within the file; return the pixels (4 bytes) of the largest."""
    is_tiled = _TILES in page.entries
    across = page.number(_TILE_WIDTH, 0) if is_tiled else width
    down = page.number(_TILE_HEIGHT, 0) if is_tiled else min(page.number(_ROWS, height), height)
    if min(width, height) < 1:
        return 0  # the size is refused
    if min(across, down) < 1:
        raise ImageError("IMAGE_CORRUPT", "the TIFF's strips or tiles are damaged; send the original file")
    samples, is_separate = page.number(_SAMPLES, 1), page.number(_PLANAR, 1) == _SEPARATE
    bits = max(page.numbers(_BITS) or (1,))
    needed = -(-width // across) * -(-height // down) * (samples if is_separate else 1)
    row_bytes = -(-across * bits * (1 if is_separate else samples) // 8)
    starts, sizes = (page.numbers(tag) for tag in ((_TILES, _TILE_BYTES) if is_tiled else (_STRIPS, _STRIP_BYTES)))
    if not needed == len(starts) == len(sizes):
        raise ImageError("IMAGE_CORRUPT", "the TIFF's strips or tiles are damaged; send the original file")
    rows = height * needed // -(-height // down) if not is_tiled else down * needed
    if any(start + size > len(data) for start, size in zip(starts, sizes, strict=True)) or (
        _is_raw(page) and sum(sizes) < row_bytes * rows
    ):
        raise ImageError("IMAGE_TRUNCATED", "the TIFF ends before its last row; send the whole file")
    if sum(sizes) > len(data):
        raise ImageError("IMAGE_CORRUPT", "the TIFF's strips or tiles overlap; send the original file")
    return max(-(-row_bytes * down // 4), across * down)


def _parts(data: bytes, order: str, entries: Mapping[int, tuple[int, tuple[int, ...]]]) -> list[View]:
    """Return a file of the same bytes, whose header names a directory behind them."""
    at = len(data) + len(data) % 2
    values_at = at + 2 + 12 * len(entries) + 4
    table, values = struct.pack(f"{order}H", len(entries)), b""
    for tag, (kind, numbers) in sorted(entries.items()):
        small = _LONG if kind == _LONG8 else kind
        packed = struct.pack(f"{order}{len(numbers)}{_LETTERS[small]}", *numbers)
        table += struct.pack(f"{order}HHI", tag, small, len(numbers))
        if len(packed) <= 4:
            table += packed.ljust(4, b"\0")
        else:
            table += struct.pack(f"{order}I", values_at + len(values))
            values += packed + bytes(len(packed) % 2)
    header = data[:2] + struct.pack(f"{order}HI", 42, at)
    return [header, memoryview(data)[_HEADER_BYTES:], bytes(len(data) % 2) + table + bytes(4) + values]
