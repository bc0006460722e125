"""Find the picture in an AVIF or HEIC file: its items, their places and sizes.

Both are files of boxes (ISO/IEC 23008-12). One item is the primary picture, of one coded image or of a grid of them,
and one may be its transparency. All others (thumbnails, depth, gain maps, EXIF, XMP) get a type that decoders pass
over, and so do sequences. Sizes that the boxes claim are not those that a decoder allocates, so the coded images' own
headers are read too (coded_sizes.py).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from penult.bundle.coded_sizes import Coded, av1_images, hevc_images
from penult.bundle.containers import Stored, View
from penult.bundle.errors import ImageError
from penult.bundle.formats import title
from penult.bundle.orientation import UPRIGHT
from penult.bundle.profiles import MAX_PROFILE_BYTES

# A phone's photo of 200 million pixels has 800 tiles and 60 KB of it.
_MAX_META_BYTES, _MAX_ITEMS, _MAX_BOXES = 1 << 18, 4096, 1 << 14
# A still picture has one image, a progressive one four.
_MAX_IMAGES_PER_ITEM = 16
_CODED = {"AVIF": (b"av01",), "HEIC": (b"hvc1", b"hev1")}
_BYTE_BITS = 8
_GRID, _SKIPPED, _FREE = b"grid", b"skip", b"free"
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0", b"urn:mpeg:hevc:2015:auxid:1\0")
# Measured: planes, RGB, a copy of it and the image (bench/RESULTS.md). More with transparency, or two bytes a sample.
_PIXELS_PER_PIXEL, _DEEP_PIXELS_PER_PIXEL = 3, 4
# Pixels of all coded images for each one shown: progressive layers, headers that name a power of two, small tiles.
_MAX_DECODED, _SMALL = 8, 1 << 20
# (quarter turns against the clock, mirrored: 0 top to bottom, 1 left to right) as the orientation of EXIF.
_TURNED = {0: 1, 1: 8, 2: 3, 3: 6}
_MIRRORED = {0: {1: 4, 8: 5, 3: 2, 6: 7}, 1: {1: 2, 8: 7, 3: 4, 6: 5}}


@dataclass(frozen=True)
class _Box:
    kind: bytes
    named_at: int
    start: int
    end: int


@dataclass
class _Meta:
    """What the boxes say, by an item's number."""

    primary: int = 0
    types: dict[int, bytes] = field(default_factory=dict)
    type_at: dict[int, int] = field(default_factory=dict)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    in_meta: set[int] = field(default_factory=set)
    properties: list[_Box] = field(default_factory=list)
    of_item: dict[int, list[int]] = field(default_factory=dict)
    references: list[tuple[bytes, int, tuple[int, ...]]] = field(default_factory=list)
    own_data: _Box | None = None


def walk_boxes(data: bytes, kind: str) -> Stored:
    """Return the primary picture of an "AVIF" or "HEIC", the rest of the file made harmless; raise ImageError."""
    try:
        return _walk(data, kind)
    except (struct.error, IndexError, KeyError, OverflowError) as error:
        raise ImageError("IMAGE_CORRUPT", f"the {title(kind)}'s boxes are damaged; send the original file") from error


def _walk(data: bytes, kind: str) -> Stored:
    found, hidden = None, []
    for box in _boxes(data, 0, len(data)):
        if box.kind == b"meta" and found is None:
            found = box
        elif box.kind == b"ftyp":
            hidden += _still_brands(data, box)
        elif box.kind != b"mdat":
            hidden.append((box.named_at, _FREE))
    if found is None:
        raise ImageError("IMAGE_CORRUPT", f"the {title(kind)} holds no still picture; send the original file")
    if found.end - found.start > _MAX_META_BYTES:
        raise _too_much(kind)
    meta = _read_meta(data, found)
    picture = _Picture(data, kind, meta)
    hidden += [(meta.type_at[item], _SKIPPED) for item in meta.types if item not in picture.needed]
    return Stored(
        _patched(data, hidden),
        orientation=UPRIGHT if kind == "HEIC" else picture.orientation(),  # libheif turns it itself
        size=picture.size,
        profile=picture.profile(),
        decoding_pixels=picture.decoding_pixels,
    )


def _boxes(data: bytes, at: int, end: int) -> Iterator[_Box]:
    """Yield the boxes between two places, their bodies; raise ImageError if one reaches beyond."""
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        if size == 0:
            size = end - at
        if size < start - at:
            raise ImageError("IMAGE_CORRUPT", "the image's boxes are damaged; send the original file")
        if at + size > end:
            raise ImageError("IMAGE_TRUNCATED", "the image ends before its last box; send the whole file")
        yield _Box(kind, at + 4, start, at + size)
        at += size
    raise _too_much("image")


def _still_brands(data: bytes, box: _Box) -> list[tuple[int, bytes]]:
    """Return how to make a sequence with a still picture beside it a file of that picture alone."""
    places = range(box.start, min(box.end, box.start + _MAX_BOXES) - 3, 4)
    return [(place, b"avif") for place in places if data[place : place + 4] == b"avis"]


def _read_meta(data: bytes, box: _Box) -> _Meta:
    meta = _Meta()
    for part in _boxes(data, box.start + 4, box.end):
        if part.kind == b"pitm":
            meta.primary = _Reader(data, part).whole(2 if data[part.start] == 0 else 4, skip=4)
        elif part.kind == b"iinf":
            _read_types(data, part, meta)
        elif part.kind == b"iloc":
            _read_extents(_Reader(data, part), meta)
        elif part.kind == b"iref":
            _read_references(data, part, meta)
        elif part.kind == b"iprp":
            _read_properties(data, part, meta)
        elif part.kind == b"idat":
            meta.own_data = part
    return meta


class _Reader:
    """Reads whole numbers one after another, within a box."""

    def __init__(self, data: bytes, box: _Box) -> None:
        self._data, self.at, self._end = data, box.start, box.end

    def whole(self, size: int, skip: int = 0) -> int:
        start, self.at = self.at + skip, self.at + skip + size
        if self.at > self._end:
            raise IndexError
        return int.from_bytes(self._data[start : self.at], "big")


def _read_types(data: bytes, box: _Box, meta: _Meta) -> None:
    entries = _boxes(data, box.start + (6 if data[box.start] == 0 else 8), box.end)
    for entry in entries:
        version = data[entry.start]
        if entry.kind != b"infe" or version not in (2, 3):
            continue
        reader = _Reader(data, entry)
        item = reader.whole(2 if version == 2 else 4, skip=4)
        reader.whole(2)
        meta.type_at[item], meta.types[item] = reader.at, reader.whole(4).to_bytes(4, "big")
        if len(meta.types) > _MAX_ITEMS:
            raise _too_much("image")


def _read_extents(reader: _Reader, meta: _Meta) -> None:
    version, sizes = reader.whole(1), reader.whole(2, skip=3)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 2 if version < 2 else 4
    extents = 0
    for _ in range(reader.whole(wide)):
        item = reader.whole(wide)
        method = reader.whole(2) & 15 if version else 0
        base = reader.whole(base_size, skip=2)
        places = []
        for _ in range(reader.whole(2)):
            reader.whole(index_size)
            places.append((base + reader.whole(offset_size), reader.whole(length_size)))
            extents += 1
            if extents > 4 * _MAX_ITEMS:
                raise _too_much("image")
        if method == 1:
            meta.in_meta.add(item)
        if method < 2:  # 2 is built from other items
            meta.extents[item] = places


def _read_references(data: bytes, box: _Box, meta: _Meta) -> None:
    wide, total = 2 if data[box.start] == 0 else 4, 0
    for part in _boxes(data, box.start + 4, box.end):
        reader = _Reader(data, part)
        source, count = reader.whole(wide), reader.whole(2)
        total += count
        if total > 4 * _MAX_ITEMS:
            raise _too_much("image")
        meta.references.append((part.kind, source, tuple(reader.whole(wide) for _ in range(count))))


def _read_properties(data: bytes, box: _Box, meta: _Meta) -> None:
    for part in _boxes(data, box.start, box.end):
        if part.kind == b"ipco":
            meta.properties = list(_boxes(data, part.start, part.end))
        elif part.kind == b"ipma":
            reader = _Reader(data, part)
            version, flags = reader.whole(1), reader.whole(3)
            for _ in range(reader.whole(4)):
                item = reader.whole(2 if version == 0 else 4)
                numbers = [
                    reader.whole(2) & 0x7FFF if flags & 1 else reader.whole(1) & 0x7F for _ in range(reader.whole(1))
                ]
                meta.of_item.setdefault(item, []).extend(numbers)


class _Picture:
    """The primary picture and its transparency."""

    def __init__(self, data: bytes, kind: str, meta: _Meta) -> None:
        self.data, self.kind, self.meta = data, kind, meta
        self.shown = [meta.primary, *self._alphas()]
        self.needed = {*self.shown, *(tile for item in self.shown for tile in self._tiles(item))}
        grids = {item for item in self.shown if meta.types.get(item) == _GRID}
        self.coded = {item: self._images(item) for item in self.needed - grids}
        if not self.coded:
            raise KeyError
        self.size = self._size()
        self.decoding_pixels = self._decoding_pixels()

    def _alphas(self) -> list[int]:
        return [
            source
            for kind, source, targets in self.meta.references
            if kind == b"auxl" and self.meta.primary in targets
            if any(body[4:].startswith(_ALPHA) for body in self._properties(source, b"auxC"))
        ]

    def _tiles(self, item: int) -> tuple[int, ...]:
        if self.meta.types.get(item) != _GRID:
            return ()
        return next(
            (targets for kind, source, targets in self.meta.references if kind == b"dimg" and source == item), ()
        )

    def _properties(self, item: int, kind: bytes) -> list[bytes]:
        boxes = [self.meta.properties[number - 1] for number in self.meta.of_item.get(item, []) if number]
        return [self.data[box.start : box.end] for box in boxes if box.kind == kind]

    def _claimed(self, item: int) -> tuple[int, int]:
        body = self._properties(item, b"ispe")[0]
        width, height = struct.unpack_from(">II", body, 4)
        return width, height

    def _size(self) -> tuple[int, int]:
        """Return width and height before it is turned, the largest that any box or coded image names."""
        sizes = [self._claimed(item) for item in self.shown]
        for item in self.shown:
            sizes += (
                [self._grid(item)] if item not in self.coded else [(one.width, one.height) for one in self.coded[item]]
            )
        return max(width for width, _ in sizes), max(height for _, height in sizes)

    def _decoding_pixels(self) -> int:
        """Return what decoding allocates, in pixels of 4 bytes; raise ImageError if far more is decoded than shown."""
        whole = self.size[0] * self.size[1]
        images = [(one.width * one.height, max(1, one.images)) for found in self.coded.values() for one in found]
        read_bytes = sum(length or len(self.data) for item in self.needed for _, length in self.meta.extents[item])
        is_read_twice = read_bytes > len(self.data)
        if is_read_twice or sum(pixels * times for pixels, times in images) > _MAX_DECODED * whole + _SMALL:
            raise _too_much(self.kind)
        tile = 0 if self.meta.primary in self.coded else max(pixels for pixels, _ in images)
        each = _DEEP_PIXELS_PER_PIXEL if len(self.shown) > 1 or self._is_deep() else _PIXELS_PER_PIXEL
        return each * whole + tile + len(self.data) // 4

    def _is_deep(self) -> bool:
        """Return True unless the picture is known to have 8 bits a sample."""
        found = [body[5:] for item in self.needed for body in self._properties(item, b"pixi")]
        return not found or any(bits > _BYTE_BITS for body in found for bits in body)

    def _images(self, item: int) -> list[Coded]:
        """Return the images that an item's data and properties announce; raise ImageError if there are too many."""
        kind = self.meta.types.get(item)
        if kind not in _CODED[self.kind]:
            raise ImageError(
                "IMAGE_UNKNOWN_FORMAT", f"the {title(self.kind)} is built in a rare way; convert it to a JPEG or PNG"
            )
        if self.kind == "AVIF":
            found = av1_images(self._bytes(item), [body[4:] for body in self._properties(item, b"av1C")])
        else:
            found = hevc_images(self._bytes(item), self._properties(item, b"hvcC"))
        if not found or sum(each.images for each in found) > _MAX_IMAGES_PER_ITEM:
            raise (
                _too_much(self.kind)
                if found
                else ImageError("IMAGE_CORRUPT", f"the {title(self.kind)} holds no coded image; send the original file")
            )
        return found

    def _grid(self, item: int) -> tuple[int, int]:
        """Return width and height of a grid, whose tiles must cover it."""
        body = self._bytes(item)
        wide = "II" if body[1] & 1 else "HH"
        rows, columns = body[2] + 1, body[3] + 1
        width, height = struct.unpack_from(f">{wide}", body, 4)
        tiles = self._tiles(item)
        across, down = self._claimed(tiles[0])
        if len(tiles) != rows * columns or any(self._claimed(tile) != (across, down) for tile in tiles):
            raise KeyError
        if not (across * (columns - 1) < width <= across * columns and down * (rows - 1) < height <= down * rows):
            raise KeyError
        return width, height

    def _bytes(self, item: int) -> bytes:
        """Return an item's data; raise ImageError if the file ends before."""
        base, end = 0, len(self.data)
        if item in self.meta.in_meta and self.meta.own_data:
            base, end = self.meta.own_data.start, self.meta.own_data.end
        parts = []
        for start, length in self.meta.extents[item]:
            place = base + start
            if place + length > end:
                raise ImageError(
                    "IMAGE_TRUNCATED", f"the {title(self.kind)} ends before its pixels; send the whole file"
                )
            parts.append(self.data[place : place + length] if length else self.data[place:end])
        return b"".join(parts)

    def orientation(self) -> int:
        """Return how to turn the picture, as EXIF numbers it; the boxes decide and not EXIF."""
        turns = sum(body[0] & 3 for body in self._properties(self.meta.primary, b"irot")[:1])
        mirrors = [body[0] & 1 for body in self._properties(self.meta.primary, b"imir")[:1]]
        turned = _TURNED[turns]
        return _MIRRORED[mirrors[0]][turned] if mirrors else turned

    def profile(self) -> bytes:
        """Return the ICC profile of the picture, or of a grid's first tile."""
        for item in (self.meta.primary, *self._tiles(self.meta.primary)[:1]):
            for body in self._properties(item, b"colr"):
                if body[:4] in (b"prof", b"rICC") and len(body) <= MAX_PROFILE_BYTES:
                    return body[4:]
        return b""


def _patched(data: bytes, changes: list[tuple[int, bytes]]) -> list[View]:
    """Return a file's bytes with some words of four bytes replaced."""
    view, at = memoryview(data), 0
    parts: list[View] = []
    for place, word in sorted(changes):
        parts += [view[at:place], word]
        at = place + 4
    return [*parts, view[at:]] if parts else [data]


def _too_much(kind: str) -> ImageError:
    return ImageError("IMAGE_CORRUPT", f"the {title(kind)} has more parts than a picture needs; send the original file")
