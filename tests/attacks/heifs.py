"""AVIFs and HEICs of the corpus: turned, in tiles, clear, and with lies in every box and in the coded images' headers."""

import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from tests.attacks.case import HEIGHT, WIDTH, Case, cuts, encode, picture, stored
from tests.fixtures.profiles import profile

# pi-heif has no encoder: the picture, written once by pillow-heif 1.8 at quality 70.
_HEIC = (
    "0000001c6674797068656963000000006d696631686569636d696166000001566d657461000000000000002168646c720000000000000000"
    "706963740000000000000000000000000000000022696c6f630000000044400001000100000000017a000100000000000003700000002369"
    "696e6600000000000100000015696e6665020000000001000068766331000000000e7069746d000000000001000000d669707270000000b7"
    "6970636f00000078687663430103700000009000000000001ef000fcfdf8f800000f03600001001840010c01ffff03700000030090000003"
    "000003001eba0240610001002b42010103700000030090000003000003001ea030812596ea4929ae6e021a0c0800000300c8000003000840"
    "62000100074401c172b0224000000013636f6c726e636c780001000d00068000000014697370650000000000000060000000480000001070"
    "69786900000000030808080000001769706d61000000000000000100010481020304000003786d6461740000036c2801af0ee0e8e3aed4cd"
    "a3d51a39434e31c013645bb7337da5edbb2fd73861494801acaa34f91ac5affca562697f77b2fa18fd4c2f6eefbd89e3e9d9dff88df4fb1f"
    "61d8a3853873e8c3b7275fd81cf855899c289484b3a5f70caa3dacd1a0c3b24f5e5927e8ffffff5d9cc9327cf250c36e7408f66e2ba6bd4b"
    "66732912400f97f25c9aeb3ab26df9eee4c7583f2aa13e1f2bf34c0b87ea6a80d63b8b002ec443e497c1c0937f0ef464a66886a0ef9af028"
    "dd2da5d6460568b94b2634b5613f5baf0a23257d79fae324363cdb88cde69c1724952b4e25aa26b305b92919b9ed705bda9125b75654f148"
    "49732df8d6efe5a32dbe6c4f070227f2191a7b659999b43235a2b3f5ade774a001cf8542180343d3e8a7bfb5bd67360d12e13ad0f4b40717"
    "f203c3a2ea8f32dd1c6a8b04c241242e30e626132ace9158600b98a4dfde7b0993f63270c65d26bb84283bcde2267bd00edb2eb9766a28d9"
    "ef84dc3c505b64e255c6163c8549719caf9dd6f0c59b4997268f5629e0ded1e4c4319f1c5fe97ebecda51c1f9ac371691631b06f653148ec"
    "353eb9863123f4d32d14e7f0f33a33dac6347d1f6ba63d64790c517afb305329ff61108c64f1ecf5ce9911ced1089a60ecdb3b4410cd8489"
    "5ad53a856b7a967c53aa5de80c02e8b6f9964ef4a30da73778d26285778a04cb55dbe2244a405379418027eb4cababfc62deaf8ce7382c3b"
    "166aeaece3aee414c8f22af17e1ebbad03febbef19d82008bff87cfe3369ef6b4b3a46f4725ed7883f82668b2d3adc955a2bf140d5e0127b"
    "cf268fafffd64bda48a00efa858698b2639306606e13d1449868beb1e88355280e62bd929618f56da309dcd7ef4c795570ae4a13ce255d45"
    "c3652aa3610542977a6fe88549a0c6af5e739eea751072b9e017d5fbb87f604fcc277f16388046ce25d5d918edd726531b7b8d13c1c513de"
    "bae5af14a2b2fb834675f9e499b9e28e1df457e836a61e49a889a386e5bbfc1447c21060aba7acaf42fb335abaaba58c10bb3e2fbd4e030a"
    "6a54550ec90d93644df33199df38820deafb4d25abfce0705f3752d8d5cc1870ab7b0b4c9ec4e86ebea5d919cb5b889a4237f71837820092"
    "48c5eb7c9a8804381289adb467955d7eb37fa1db07948790ca8fe8718f5a00e6ad47f9ad731884cf388f2fbea74c0acfaef72561346de991"
    "5f7ee29b55a841460b3835265671d638ac39d273da5615b39074"
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
    return bytes.fromhex(_HEIC)


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
    yield Case("avif-animated", _without_times(moving.getvalue()), like="avif", cosine=0.97)
    # An encoder makes turns and mirrors of the boxes out of EXIF's orientation; EXIF itself is not read.
    for orientation in range(2, 9):
        data = encode(stored(orientation), "AVIF", quality=90, exif=b"Exif\0\0" + _exif(orientation))
        yield Case(f"avif-turned-{orientation}", data, like="avif", cosine=0.98)
    yield Case("avif-large", _large_avif, is_slow=True)


def _large_avif() -> bytes:
    return encode(stored(1).resize((6000, 5000)), "AVIF", quality=30, speed=10)


def _without_times(data: bytes) -> bytes:
    """A film's file without the times when it was made."""
    for kind in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.index(kind) + 8
        data = data[:at] + bytes(16) + data[at + 16 :]
    return data


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
        if (name, what) == ("heic", "bomb-configured"):
            continue  # its sizes are in the configuration alone, as in bomb-coded
        # Where the coded image is not changed it is the picture, but for a grid of it and its transparency.
        is_picture = not reason and what not in ("grid", "clear-by-itself")
        yield Case(f"{name}-{what}", data, reason, like=name if is_picture else "")
    for turns in (1, 2, 3):
        data = built(name, one.item(box(b"irot", bytes((turns,)))))
        yield Case(f"{name}-rotated-{turns}", data, like=f"png-turned-{turns}", cosine=0.98)
    early = 0.0025 if name == "heic" else 0.003
    yield from cuts(name, file, (early, 0.05, 0.3, 0.5, 0.75, 0.9, 0.999), {early: "IMAGE_UNKNOWN_FORMAT"})


def _aux(item: Item) -> Item:
    alpha = full(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    return Item(item.kind, item.data, (*item.properties, alpha), (_AUXL, (1,)))


def all_heifs() -> Iterable[Case]:
    """Every AVIF and HEIC of the corpus."""
    yield Case("avif", avif(), like="png", cosine=0.98)
    yield Case("heic", heic(), like="png", cosine=0.98)
    for turns in (1, 2, 3):  # against the clock
        yield Case(f"png-turned-{turns}", encode(picture().rotate(90 * turns, expand=True), "PNG"))
    yield from _avif_kinds()
    yield from _both("avif")
    yield from _both("heic")
