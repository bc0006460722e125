"""TIFFs of the corpus: of every kind that scanners and editors write, and with lies in every entry."""

import io
import struct
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
from PIL import Image
from tests.attacks.case import HEIGHT, WIDTH, Case, cuts, encode, exif, picture, stored
from tests.fixtures.profiles import profile

SHORT, LONG, LONG8, RAW = 3, 4, 16, 7
_LETTERS = {SHORT: "H", LONG: "I", LONG8: "Q", RAW: "B"}
_AFTER_HEADER = 16

Entries = Mapping[int, tuple[int, tuple[int, ...]]]


@cache
def tiff(**options: object) -> bytes:
    """The picture as a TIFF."""
    return encode(picture(), "TIFF", **options)


def built(pixels: bytes, changes: Entries | None = None, order: str = "<", is_big: bool = False) -> bytes:
    """A TIFF of RGB in one strip, entries changed or (with no numbers) left out."""
    entries = {
        256: (LONG, (WIDTH,)), 257: (LONG, (HEIGHT,)), 258: (SHORT, (8, 8, 8)), 259: (SHORT, (1,)), 262: (SHORT, (2,)),
        273: (LONG, (_AFTER_HEADER,)), 277: (SHORT, (3,)), 278: (LONG, (HEIGHT,)), 279: (LONG, (len(pixels),)),
    } | dict(changes or {})  # fmt: skip
    entries = {tag: entry for tag, entry in sorted(entries.items()) if entry[1]}
    start = _AFTER_HEADER + len(pixels)
    wide, count, inline = ("Q", "Q", 8) if is_big else ("I", "H", 4)
    values_at = start + struct.calcsize(f"={count}") + len(entries) * (20 if is_big else 12) + inline
    table, values = struct.pack(order + count, len(entries)), b""
    for tag, (kind, numbers) in entries.items():
        packed = struct.pack(f"{order}{len(numbers)}{_LETTERS[kind]}", *numbers)
        table += struct.pack(f"{order}HH{wide}", tag, kind, len(numbers))
        if len(packed) <= inline:
            table += packed.ljust(inline, b"\0")
        else:
            table += struct.pack(order + wide, values_at + len(values))
            values += packed
    letters = b"II" if order == "<" else b"MM"
    header = struct.pack(f"{order}HHHQ", 43, 8, 0, start) if is_big else struct.pack(f"{order}HI", 42, start)
    return (letters + header).ljust(_AFTER_HEADER, b"\0") + pixels + table + bytes(inline) + values


def _rgb() -> bytes:
    return picture().tobytes()


def _tiled(side: int = 32) -> bytes:
    padded = np.zeros((96, 96, 3), np.uint8)
    padded[:HEIGHT] = np.asarray(picture())
    tiles = [padded[y : y + side, x : x + side].tobytes() for y in range(0, 96, side) for x in range(0, 96, side)]
    starts = tuple(_AFTER_HEADER + place * len(tiles[0]) for place in range(len(tiles)))
    return built(b"".join(tiles), {
        273: (LONG, ()), 278: (LONG, ()), 279: (LONG, ()), 322: (LONG, (side,)), 323: (LONG, (side,)),
        324: (LONG, starts), 325: (LONG, (len(tiles[0]),) * len(tiles)),
    })  # fmt: skip


def _planes() -> bytes:
    pixels, size = np.asarray(picture()).transpose(2, 0, 1).tobytes(), WIDTH * HEIGHT
    starts = tuple(_AFTER_HEADER + size * place for place in range(3))
    return built(pixels, {284: (SHORT, (2,)), 273: (LONG, starts), 279: (LONG, (size,) * 3)})


def _kinds() -> Iterable[Case]:
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield Case(f"tiff-{compression}", tiff(compression=compression), like="png")
    for mode, like in (("1", ""), ("L", ""), ("P", ""), ("RGBA", "png"), ("CMYK", "png"), ("YCbCr", "png")):
        yield Case(f"tiff-{mode}", encode(picture().convert(mode), "TIFF", compression="tiff_lzw"), like=like)
    yield Case("tiff-fax", encode(picture().convert("1"), "TIFF", compression="group4"), like="tiff-1")
    deep = Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)
    yield Case("tiff-gray-16", encode(deep, "TIFF"), like="tiff-L")
    pages = io.BytesIO()
    picture().save(pages, "TIFF", save_all=True, append_images=[picture().rotate(90)] * 3)
    swapped = np.frombuffer(_rgb(), np.uint8).astype(">u2") * 257
    for name, data in (
        ("rebuilt", built(_rgb())),
        ("big-endian", built(_rgb(), order=">")),
        ("rgb-16", built(swapped.tobytes(), {258: (SHORT, (16, 16, 16))}, order=">")),
        ("offsets-of-8-bytes", built(_rgb(), {273: (LONG8, (_AFTER_HEADER,))}, is_big=True)),
        ("tiles", _tiled()),
        ("planes", _planes()),
        ("pages", pages.getvalue()),
        ("orientation-6", built(stored(6).tobytes(), {256: (LONG, (HEIGHT,)), 257: (LONG, (WIDTH,)), 278: (LONG, (WIDTH,)), 274: (SHORT, (6,))})),
        ("orientation-99", built(_rgb(), {274: (SHORT, (99,))})),
        ("profile", built(_rgb(), {34675: (RAW, tuple(profile()))})),
        ("profile-noise", built(_rgb(), {34675: (RAW, tuple(b"noise" * 99))})),
        ("profile-too-large", built(_rgb(), {34675: (RAW, (0,) * 99_999)})),
        ("exif-noise", built(_rgb(), {34665: (LONG, (3,))})),
        ("children", built(_rgb(), {330: (LONG, (3,) * 999)})),
        ("rows-of-the-strip-unlimited", built(_rgb(), {278: (LONG, (2**32 - 1,))})),
        ("trailing", built(_rgb()) + b"more" * 99),
    ):  # fmt: skip
        yield Case(f"tiff-{name}", data, like="png")
    yield Case("tiff-large-tiff_lzw", _large, is_slow=True)


def _large() -> bytes:
    return encode(stored(1).resize((4000, 4000)), "TIFF", compression="tiff_lzw")


def _many_entries(length: int) -> bytes:
    """65,535 entries that each name the same bytes."""
    entry = struct.pack("<HHII", 270, 2, length, 8)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65_535) + entry * 65_535 + bytes(length)


def _lies() -> Iterable[Case]:
    size = len(_rgb())
    strips = 60_000
    lzw = tiff(compression="tiff_lzw")
    for name, data, reason in (
        ("bomb", built(b"", {256: (LONG, (60_000,)), 257: (LONG, (60_000,)), 278: (LONG, (60_000,)), 259: (SHORT, (5,))}), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-raw", built(b"", {256: (LONG, (60_000,)), 257: (LONG, (60_000,)), 278: (LONG, (60_000,))}), "IMAGE_TRUNCATED"),
        ("bomb-lzw", _claims(lzw, 14_000, 14_000), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-largest", built(b"", {256: (LONG, (2**32 - 1,)), 257: (LONG, (2**32 - 1,)), 278: (LONG, (2**32 - 1,)), 259: (SHORT, (8,))}), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-tile", built(_rgb(), {259: (SHORT, (5,)), 322: (LONG, (1 << 16,)), 323: (LONG, (1 << 16,)), 324: (LONG, (_AFTER_HEADER,)), 325: (LONG, (99,))}), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-samples", built(_rgb(), {277: (SHORT, (65_535,))}), "IMAGE_CORRUPT"),
        ("bomb-entries", _many_entries(1 << 20), "IMAGE_NO_PIXELS"),
        ("bomb-strips", built(_rgb(), {257: (LONG, (strips,)), 278: (LONG, (1,)), 259: (SHORT, (5,)), 273: (LONG, (_AFTER_HEADER,) * strips), 279: (LONG, (size,) * strips)}), "IMAGE_CORRUPT"),
        ("bomb-number-of-strips", built(_rgb(), {273: (LONG, (_AFTER_HEADER,) * 300_000)}), "IMAGE_CORRUPT"),
        ("tiles-of-1-pixel", built(_rgb(), {322: (LONG, (1,)), 323: (LONG, (1,)), 324: (LONG, (_AFTER_HEADER,)), 325: (LONG, (1,))}), "IMAGE_CORRUPT"),
        ("tile-of-no-width", built(_rgb(), {322: (LONG, (0,)), 323: (LONG, (16,)), 324: (LONG, (_AFTER_HEADER,)), 325: (LONG, (1,))}), "IMAGE_CORRUPT"),
        ("no-pixels", built(_rgb(), {256: (LONG, (0,))}), "IMAGE_NO_PIXELS"),
        ("no-size", built(_rgb(), {256: (LONG, ()), 257: (LONG, ())}), "IMAGE_NO_PIXELS"),
        ("no-strips", built(_rgb(), {273: (LONG, ())}), "IMAGE_CORRUPT"),
        ("no-strip-sizes", built(_rgb(), {279: (LONG, ())}), "IMAGE_CORRUPT"),
        ("strip-beyond-the-end", built(_rgb(), {273: (LONG, (1 << 30,))}), "IMAGE_TRUNCATED"),
        ("strip-too-short", built(_rgb(), {279: (LONG, (99,))}), "IMAGE_TRUNCATED"),
        ("floating-point", built(_rgb() * 4, {258: (SHORT, (32, 32, 32)), 339: (SHORT, (3, 3, 3))}), "IMAGE_UNKNOWN_FORMAT"),
        ("bits-7", built(_rgb(), {258: (SHORT, (7, 7, 7))}), "IMAGE_UNKNOWN_FORMAT"),
        ("old-jpeg", built(_rgb(), {259: (SHORT, (6,))}), "IMAGE_UNKNOWN_FORMAT"),
        ("webp-inside", built(_rgb(), {259: (SHORT, (50_001,))}), "IMAGE_UNKNOWN_FORMAT"),
        ("photometric-99", built(_rgb(), {262: (SHORT, (99,))}), "IMAGE_CORRUPT"),
        ("lzw-noise", built(b"\xa5\x5a" * 999, {259: (SHORT, (5,))}), "IMAGE_CORRUPT"),
        ("deflate-noise", built(b"\xa5\x5a" * 999, {259: (SHORT, (8,))}), "IMAGE_CORRUPT"),
        ("jpeg-noise", built(b"\xff\xd8" + b"\xa5\x5a" * 999, {259: (SHORT, (7,))}), "IMAGE_CORRUPT"),
        ("jpeg-of-another-size", built(encode(picture().resize((640, 640)), "JPEG"), {259: (SHORT, (7,)), 262: (SHORT, (6,))}), "IMAGE_CORRUPT"),
        ("directory-beyond", b"II*\0\xff\xff\xff\x7f" + bytes(99), "IMAGE_TRUNCATED"),
        ("directory-far-beyond", b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(99), "IMAGE_TRUNCATED"),
        ("exif-block", exif(6), "IMAGE_NO_PIXELS"),
        ("signature", b"II*\0", "IMAGE_TRUNCATED"),
    ):  # fmt: skip
        yield Case(f"tiff-{name}", data, reason)


def _claims(data: bytes, width: int, height: int) -> bytes:
    """A TIFF by Pillow that claims another size, in one strip."""
    for tag, number in ((256, width), (257, height), (278, height)):
        at = next(
            place for place in range(8, len(data) - 12) if data[place : place + 8] == struct.pack("<HHI", tag, LONG, 1)
            or data[place : place + 8] == struct.pack("<HHI", tag, SHORT, 1)
        )  # fmt: skip
        data = data[:at] + struct.pack("<HHII", tag, LONG, 1, number) + data[at + 12 :]
    return data


def all_tiffs() -> Iterable[Case]:
    """Every TIFF of the corpus."""
    yield Case("tiff", tiff(), like="png")
    yield from _kinds()
    yield from _lies()
    early = {0.0001: "IMAGE_UNKNOWN_FORMAT"}
    yield from cuts("tiff", built(_rgb()), (0.0001, 0.001, 0.1, 0.5, 0.9, 0.995), early)
    yield from cuts("tiff-deflate", tiff(compression="tiff_adobe_deflate"), (0.1, 0.5, 0.9, 0.99), {})
