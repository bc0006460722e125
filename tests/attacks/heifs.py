"""AVIFs and HEICs of the corpus: turned, in tiles, clear, and with lies in every box and in the coded images' headers."""

import base64
import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from tests.attacks.case import HEIGHT, WIDTH, Case, cuts, encode, picture, stored
from tests.fixtures.profiles import profile

# pi-heif has no encoder: the picture, written once by pillow-heif 1.8 at quality 70.
_HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERA"
    "AAEAAQAAAAABegABAAAAAAAAA3AAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3aXBjbwAA"
    "AHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoDCBJZbq"
    "SSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABgAAAASAAAABBwaXhpAAAAAAMICAgA"
    "AAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAA3htZGF0AAADbCgBrw7g6OOu1M2j1Ro5Q04xwBNkW7czfaXtuy/XOGFJSAGsqjT5GsWv/KViaX93svoY/Uwv"
    "bu+9iePp2d/4jfT7H2HYo4U4c+jDtydf2Bz4VYmcKJSEs6X3DKo9rNGgw7JPXlkn6P///12cyTJ88lDDbnQI9m4rpr1LZnMpEkAPl/Jcmus6sm357uTH"
    "WD8qoT4fK/NMC4fqaoDWO4sALsRD5JfBwJN/DvRkpmiGoO+a8CjdLaXWRgVouUsmNLVhP1uvCiMlfXn64yQ2PNuIzeacFySVK04lqiazBbkpGbntcFva"
    "kSW3VlTxSElzLfjW7+WjLb5sTwcCJ/IZGntlmZm0MjWis/Wt53SgAc+FQhgDQ9Pop7+1vWc2DRLhOtD0tAcX8gPDouqPMt0caosEwkEkLjDmJhMqzpFY"
    "YAuYpN/eewmT9jJwxl0mu4QoO83iJnvQDtsuuXZqKNnvhNw8UFtk4lXGFjyFSXGcr53W8MWbSZcmj1Yp4N7R5MQxnxxf6X6+zaUcH5rDcWkWMbBvZTFI"
    "7DU+uYYxI/TTLRTn8PM6M9rGNH0fa6Y9ZHkMUXr7MFMp/2EQjGTx7PXOmRHO0QiaYOzbO0QQzYSJWtU6hWt6lnxTql3oDALotvmWTvSjDac3eNJihXeK"
    "BMtV2+IkSkBTeUGAJ+tMq6v8Yt6vjOc4LDsWaurs467kFMjyKvF+HrutA/677xnYIAi/+Hz+M2nva0s6RvRyXteIP4Jmiy063JVaK/FA1eASe88mj6//"
    "1kvaSKAO+oWGmLJjkwZgbhPRRJhovrHog1UoDmK9kpYY9W2jCdzX70x5VXCuShPOJV1Fw2Uqo2EFQpd6b+iFSaDGr15znup1EHK54BfV+7h/YE/MJ38W"
    "OIBGziXV2Rjt1yZTG3uNE8HFE9665a8UorL7g0Z1+eSZueKOHfRX6DamHkmoiaOG5bv8FEfCEGCrp6yvQvszWrqrpYwQuz4vvU4DCmpUVQ7JDZNkTfMx"
    "md84gg3q+00lq/zgcF83UtjVzBhwq3sLTJ7E6G6+pdkZy1uImkI39xg3ggCSSMXrfJqIBDgSia20Z5VdfrN/odsHlIeQyo/ocY9aAOatR/mtcxiEzziP"
    "L76nTArPrvclYTRt6ZFffuKbVahBRgs4NSZWcdY4rDnSc9pWFbOQdA=="
)
_DIMG, _AUXL, _THUMBNAIL = b"dimg", b"auxl", b"thmb"


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box."""
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    """A box with a version."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def ispe(width: int, height: int) -> bytes:
    """The size that is claimed."""
    return full(b"ispe", struct.pack(">II", width, height))


@dataclass(frozen=True)
class Item:
    """An item with its properties, the numbers of the items that it refers to, and by what."""

    kind: bytes
    data: bytes
    properties: Sequence[bytes] = ()
    refers: tuple[bytes, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Coded:
    """The picture's coded image and its configuration, as they stand in a file."""

    brand: bytes
    kind: bytes
    data: bytes
    configuration: bytes
    properties: list[bytes] = field(default_factory=list)

    def item(self, *more: bytes, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Item:
        """The image as an item."""
        return Item(self.kind, self.data, (self.configuration, ispe(*size), *more))


def _found(data: bytes, kind: bytes) -> bytes:
    at = data.index(kind) - 4
    return data[at : at + int.from_bytes(data[at : at + 4], "big")]


@cache
def coded(name: str) -> Coded:
    """The picture in one of the two formats."""
    data = heic() if name == "heic" else avif()
    brand, kind, configuration = (b"heic", b"hvc1", b"hvcC") if name == "heic" else (b"avif", b"av01", b"av1C")
    return Coded(brand, kind, _found(data, b"mdat")[8:], _found(data, configuration))


@cache
def avif(**options: object) -> bytes:
    """The picture as an AVIF."""
    return encode(picture(), "AVIF", **({"quality": 90} | options))


def heic() -> bytes:
    """The picture as a HEIC."""
    return base64.b64decode(_HEIC)


def built(name: str, *items: Item, primary: int = 1, shared: bool = False, method: int = 0, reach: int = 0) -> bytes:
    """A file of items, numbered from 1.

    With `shared` all items have the first one's bytes, `method` is how they are found, `reach` adds to their length.
    """
    brand = coded(name).brand
    properties: list[bytes] = []
    links = b""
    for number, item in enumerate(items, 1):
        places = []
        for each in item.properties:
            if each not in properties:
                properties.append(each)
            is_essential = each[4:8] in (b"irot", b"imir")
            places.append(properties.index(each) + 1 | is_essential << 7)
        links += struct.pack(">HB", number, len(places)) + bytes(places)
    types = b"".join(
        full(b"infe", struct.pack(">HH", number, 0), item.kind, b"\0", version=2)
        for number, item in enumerate(items, 1)
    )
    references = b"".join(
        box(item.refers[0], struct.pack(f">HH{len(item.refers[1])}H", number, len(item.refers[1]), *item.refers[1]))
        for number, item in enumerate(items, 1)
        if item.refers
    )

    def meta(start: int) -> bytes:
        places, at = b"", start
        for number, item in enumerate(items, 1):
            size = len(items[0].data) if shared else len(item.data)
            places += struct.pack(">HHHHII", number, method, 0, 1, at, size + reach)
            at += 0 if shared else size
        return full(
            b"meta",
            full(b"hdlr", bytes(4), b"pict", bytes(13)),
            full(b"pitm", struct.pack(">H", primary)),
            full(b"iloc", struct.pack(">HH", 0x4400, len(items)), places, version=1),
            full(b"iinf", struct.pack(">H", len(items)), types),
            full(b"iref", references) if references else b"",
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", struct.pack(">I", len(items)), links)),
        )

    head = box(b"ftyp", brand, bytes(4), b"mif1miaf" + brand)
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", *(item.data for item in (items[:1] if shared else items)))


def _grid(
    name: str, rows: int, columns: int, tiles: int | None = None, size: tuple[int, int] | None = None
) -> list[Item]:
    """A grid of one tile many times, the grid itself last."""
    count = rows * columns if tiles is None else tiles
    width, height = size or (columns * WIDTH, rows * HEIGHT)
    data = bytes((0, 1, rows - 1, columns - 1)) + struct.pack(">II", width, height)
    grid = Item(b"grid", data, (ispe(width, height),), (_DIMG, tuple(range(1, count + 1))))
    return [*[coded(name).item()] * count, grid]


class _Bits:
    """Bits that can be cut and put together."""

    def __init__(self, data: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def take(self, count: int) -> int:
        self.at += count
        return int(self.text[self.at - count : self.at] or "0", 2)

    def exponential(self) -> int:
        zeros = self.text.index("1", self.at) - self.at
        self.at += zeros
        return self.take(zeros + 1) - 1


def _packed(text: str) -> bytes:
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def _av1_of_size(units: bytes, width: int, height: int) -> bytes:
    """Units of AV1 whose sequence header names another size."""
    start = units.index(b"\x0a")
    length = units[start + 1]
    bits = _Bits(units[start + 2 : start + 2 + length])
    assert (bits.take(3), bits.take(1), bits.take(1)) == (0, 1, 1)
    bits.take(5)
    head = bits.text[: bits.at]
    across, down = bits.take(4) + 1, bits.take(4) + 1
    bits.take(across + down)
    header = _packed(head + f"{15:04b}{15:04b}{width - 1:016b}{height - 1:016b}" + bits.text[bits.at :])
    return units[: start + 1] + bytes((len(header),)) + header + units[start + 2 + length :]


def _hevc_of_size(configuration: bytes, width: int, height: int) -> bytes:
    """A configuration of HEVC whose parameter set names another size."""
    start = configuration.index(b"\x42\x01")
    length = int.from_bytes(configuration[start - 2 : start], "big")
    bits = _Bits(configuration[start + 2 : start + length].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    assert bits.take(3) == 0
    bits.take(97)
    bits.exponential()
    assert bits.exponential() == 1
    head = bits.text[: bits.at]
    assert (bits.exponential(), bits.exponential()) == (WIDTH, HEIGHT)
    sizes = "".join(f"{number + 1:b}".rjust(2 * (number + 1).bit_length() - 1, "0") for number in (width, height))
    unit = b"\x42\x01" + _packed(head + sizes + bits.text[bits.at :])
    body = configuration[8 : start - 2] + struct.pack(">H", len(unit)) + unit + configuration[start + length :]
    return box(b"hvcC", body)


def _large(name: str, width: int, height: int, of_data: bool = True) -> Item:
    """The picture's item with a header that names another size, in its data or in its configuration."""
    one = coded(name)
    if name == "heic":
        return Item(one.kind, one.data, (_hevc_of_size(one.configuration, width, height), ispe(WIDTH, HEIGHT)))
    if of_data:
        return Item(one.kind, _av1_of_size(one.data, width, height), (one.configuration, ispe(WIDTH, HEIGHT)))
    header = _av1_of_size(b"\x0a" + one.configuration[13:], width, height) if len(one.configuration) > 12 else b""
    header = header or _av1_of_size(
        one.data[one.data.index(b"\x0a") :][: 2 + one.data[one.data.index(b"\x0a") + 1]], width, height
    )
    return Item(one.kind, one.data, (box(b"av1C", one.configuration[8:12], header), ispe(WIDTH, HEIGHT)))


def _clear(name: str) -> list[Item]:
    """The picture with its own colors' copy as transparency, which is allowed to be colored."""
    alpha = full(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    one = coded(name).item()
    return [one, Item(one.kind, one.data, (*one.properties, alpha), (_AUXL, (1,)))]


def _avif_kinds() -> Iterable[Case]:
    yield Case("avif-full-color", avif(subsampling="4:4:4"), like="png", cosine=0.98)
    half = picture().convert("RGBA")
    half.putalpha(128)
    yield Case("avif-half-clear", encode(half, "AVIF", quality=90), like="avif", cosine=0.97)
    yield Case("avif-gray", encode(picture().convert("L"), "AVIF"))
    nothing = stored(1).convert("RGBA")
    nothing.putalpha(0)
    yield Case("avif-clear", encode(nothing, "AVIF"), like="white")
    moving, others = io.BytesIO(), [picture().rotate(90 * turns) for turns in (1, 2)]
    picture().save(moving, "AVIF", save_all=True, append_images=others, quality=90)
    yield Case("avif-animated", moving.getvalue(), like="avif", cosine=0.97)
    # An encoder makes turns and mirrors of the boxes out of EXIF's orientation; EXIF itself is not read.
    for orientation in range(1, 9):
        data = encode(stored(orientation), "AVIF", quality=90, exif=b"Exif\0\0" + _exif(orientation))
        yield Case(f"avif-turned-{orientation}", data, like="avif", cosine=0.98)
    yield Case("avif-large", encode(stored(1).resize((6000, 5000)), "AVIF", quality=30, speed=10), is_slow=True)


def _exif(orientation: int) -> bytes:
    return b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 3, 1, orientation) + bytes(4)


def _both(name: str) -> Iterable[Case]:
    one = coded(name)
    item = one.item()
    file = heic() if name == "heic" else avif()
    thumbnail = Item(one.kind, one.data, item.properties, (_THUMBNAIL, (1,)))
    icc = box(b"colr", b"prof", profile())
    cover = bytes(one.data)
    for what, data, reason in (
        ("rebuilt", built(name, item), ""),
        ("profile", built(name, one.item(icc)), ""),
        ("profile-noise", built(name, one.item(box(b"colr", b"prof" + b"noise" * 99))), ""),
        ("profile-megabyte", built(name, one.item(box(b"colr", b"prof" + bytes(1 << 18)))), "IMAGE_CORRUPT"),
        ("thumbnail", built(name, item, thumbnail), ""),
        ("metadata", built(name, item, Item(b"Exif", b"\0\0\0\0II*\0noise" * 9), Item(b"mime", b"<x" * 999)), ""),
        ("unknown-boxes", file + box(b"moov", b"noise" * 99) + box(b"free", bytes(99)), ""),
        ("grid", built(name, *_grid(name, 2, 2), primary=5), ""),
        ("clear-by-itself", built(name, *_clear(name)), ""),
        ("bomb-claimed", built(name, one.item(size=(60_000, 60_000))), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-claimed-largest", built(name, one.item(size=(2**32 - 1, 2**32 - 1))), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-coded", built(name, _large(name, 65_000, 65_000)), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-configured", built(name, _large(name, 65_000, 65_000, of_data=False)), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-clear", built(name, item, _large(name, 65_000, 65_000), _aux(_large(name, 65_000, 65_000))), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-grid", built(name, *_grid(name, 200, 250, 1), primary=2), "IMAGE_CORRUPT"),
        ("bomb-grid-claims", built(name, *_grid(name, 1, 1, size=(50_000, 50_000)), primary=2), "IMAGE_CORRUPT"),
        ("bomb-tiles", built(name, *_grid(name, 40, 40), primary=1601, shared=True), "IMAGE_CORRUPT"),
        ("bomb-tile-coded", built(name, _large(name, 30_000, 30_000), *_grid(name, 1, 1)[1:], primary=2), "IMAGE_CORRUPT"),
        ("grid-of-grids", built(name, Item(b"grid", bytes(12), (ispe(9, 9),)), *_grid(name, 1, 1, size=(9, 9))[1:], primary=2), "IMAGE_UNKNOWN_FORMAT"),
        ("grid-of-itself", built(name, Item(b"grid", bytes((0, 0, 0, 0, 0, 9, 0, 9)), (ispe(9, 9),), (_DIMG, (1,)))), "IMAGE_CORRUPT"),
        ("no-size", built(name, Item(one.kind, one.data, (one.configuration,))), "IMAGE_CORRUPT"),
        ("no-pixels", built(name, one.item(size=(0, 0))), "IMAGE_CORRUPT"),
        ("no-primary", built(name, item, primary=9), "IMAGE_UNKNOWN_FORMAT"),
        ("no-boxes", file[: int.from_bytes(file[:4], "big")] + box(b"mdat", bytes(99)), "IMAGE_CORRUPT"),
        ("other-kind", built(name, Item(b"jpeg", one.data, item.properties)), "IMAGE_UNKNOWN_FORMAT"),
        ("of-items", built(name, item, method=2), "IMAGE_CORRUPT"),
        ("beyond-the-end", built(name, item, reach=99), "IMAGE_TRUNCATED"),
        ("many-items", built(name, item, *[Item(b"skip", b"")] * 4200), "IMAGE_CORRUPT"),
        ("box-of-7-bytes", file[: int.from_bytes(file[:4], "big")] + struct.pack(">I", 7) + b"meta" + bytes(99), "IMAGE_CORRUPT"),
        ("box-beyond", file[: int.from_bytes(file[:4], "big")] + struct.pack(">I", 2**31) + b"meta" + bytes(99), "IMAGE_TRUNCATED"),
        ("data-noise", built(name, Item(one.kind, cover[:40] + b"\xa5\x5a" * 200, item.properties)), "IMAGE_CORRUPT"),
        ("data-zeros", built(name, Item(one.kind, bytes(400), item.properties)), "IMAGE_CORRUPT"),
        ("no-data", built(name, Item(one.kind, b"", item.properties)), "IMAGE_CORRUPT"),
    ):  # fmt: skip
        # Where the coded image is not changed it is the picture, but for a grid of it and its transparency.
        is_picture = not reason and what not in ("grid", "clear-by-itself")
        yield Case(f"{name}-{what}", data, reason, like=name if is_picture else "")
    for turns in (1, 2, 3):
        # Seen turned against the clock, as the picture is when a PNG of it is turned.
        seen = encode(picture().rotate(90 * turns, expand=True), "PNG")
        yield Case(f"{name}-turned-png-{turns}", seen)
        data = built(name, one.item(box(b"irot", bytes((turns,)))))
        yield Case(f"{name}-rotated-{turns}", data, like=f"{name}-turned-png-{turns}", cosine=0.98)
    yield from cuts(name, file, (0.002, 0.05, 0.3, 0.5, 0.75, 0.9, 0.999), {0.002: "IMAGE_UNKNOWN_FORMAT"})


def _aux(item: Item) -> Item:
    alpha = full(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    return Item(item.kind, item.data, (*item.properties, alpha), (_AUXL, (1,)))


def all_heifs() -> Iterable[Case]:
    """Every AVIF and HEIC of the corpus."""
    yield Case("avif", avif(), like="png", cosine=0.98)
    yield Case("heic", heic(), like="png", cosine=0.98)
    yield from _avif_kinds()
    yield from _both("avif")
    yield from _both("heic")
