"""PNGs of the corpus: every layout, every way to lie in a header, in chunks and in the compressed pixels."""

import struct
import zlib
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from tests.attacks.case import HEIGHT, WIDTH, Case, cuts, encode, exif, picture, stored

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(kind: bytes, body: bytes = b"", flip: int = 0) -> bytes:
    """One chunk; `flip` spoils its checksum."""
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body) ^ flip)


def ihdr(width: int = WIDTH, height: int = HEIGHT, depth: int = 8, colour: int = 2, rest: bytes = bytes(3)) -> bytes:
    """A header; `rest` is compression, filter and interlace method."""
    return struct.pack(">IIBB", width, height, depth, colour) + rest


def rows(samples: np.ndarray, depth: int = 8, woven: bool = False) -> bytes:
    """The raw rows, each behind filter byte 0, of samples [H, W, channels]."""
    raw = []
    for x0, y0, dx, dy in _ADAM7 if woven else ((0, 0, 1, 1),):
        part = samples[y0::dy, x0::dx]
        raw += [b"\0" + _packed(row.reshape(-1), depth) for row in part] if part.size else []
    return b"".join(raw)


def _packed(samples: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return samples.astype(">u2").tobytes()
    bits = np.unpackbits(samples.reshape(-1, 1).astype(np.uint8), axis=1)[:, 8 - depth :]
    return np.packbits(bits).tobytes()


def png(header: bytes, raw: bytes, *before: bytes, pack: Callable[[bytes], bytes] = zlib.compress) -> bytes:
    """A PNG with the chunks `before` its pixels."""
    return b"".join((SIGNATURE, chunk(b"IHDR", header), *before, chunk(b"IDAT", pack(raw)), chunk(b"IEND")))


def plain(*before: bytes, **options: Callable[[bytes], bytes]) -> bytes:
    """The picture as 8-bit RGB."""
    return png(ihdr(), rows(np.asarray(picture())), *before, **options)


def _layouts() -> Iterable[Case]:
    """Depths and channels, plain and interlaced."""
    rgb = np.asarray(picture()).astype(np.uint32)
    grey = np.asarray(picture().convert("L"))[..., None].astype(np.uint32)
    opaque = np.full_like(grey, 255)
    samples = {1: grey, 2: np.concatenate([grey, opaque], 2), 3: rgb, 4: np.concatenate([rgb, opaque], 2)}
    for channels, depth in ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 8), (2, 16), (3, 8), (3, 16), (4, 8), (4, 16)):
        values = samples[channels] * 257 if depth == 16 else samples[channels] >> (8 - depth)
        like = "png-grey" if channels < 3 else "png"
        for woven in (False, True):
            header = ihdr(depth=depth, colour=_COLOURS[channels], rest=bytes((0, 0, woven)))
            name = f"png-{channels}x{depth}bit" + ("-adam7" if woven else "")
            cosine = {1: 0.7, 2: 0.92}.get(depth, 0.995)
            yield Case(name, png(header, rows(values, depth, woven)), like=like, cosine=cosine)


def _palettes() -> Iterable[Case]:
    few = picture().quantize(16)
    yield Case("png-palette-16", encode(few, "PNG"), like="png", cosine=0.95)
    yield Case("png-palette-256", encode(picture().quantize(256), "PNG"), like="png")
    index = np.asarray(few)[..., None]
    colours = bytes(few.getpalette()[:48])
    header = ihdr(depth=4, colour=3)
    for name, palette, more, reason in (
        ("opaque-trns", colours, chunk(b"tRNS", b"\xff" * 16), ""),
        ("long-trns", colours, chunk(b"tRNS", b"\xff" * 300), "IMAGE_CORRUPT"),
        ("short", colours[:6], b"", ""),
        ("odd-length", colours[:47], b"", ""),
        ("too-long", colours * 20, b"", "IMAGE_CORRUPT"),
    ):
        like = "png" if name == "opaque-trns" else ""
        yield Case(
            f"png-palette-{name}", png(header, rows(index, 4), chunk(b"PLTE", palette), more), reason, like, 0.95
        )
    yield Case(
        "png-palette-clear",
        png(header, rows(index, 4), chunk(b"PLTE", colours), chunk(b"tRNS", bytes(16))),
        like="white",
    )
    yield Case("png-palette-missing", png(header, rows(index, 4)))


def _clear() -> Iterable[Case]:
    """Transparency: nothing but white is left of a picture that is clear, whatever its colours."""
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    yield Case("png-rgba-clear", png(ihdr(colour=6), rows(rgba)), like="white")
    yield Case("png-la-clear", png(ihdr(colour=4), rows(rgba[..., :2])), like="white")
    for depth in (8, 16):
        grey = np.full((HEIGHT, WIDTH, 1), 7, np.uint32)
        key = chunk(b"tRNS", b"\0\x07")
        yield Case(f"png-grey-key-{depth}", png(ihdr(depth=depth, colour=0), rows(grey, depth), key), like="white")
    yield Case(
        "png-rgb-key", png(ihdr(), rows(np.full((HEIGHT, WIDTH, 3), 7)), chunk(b"tRNS", b"\0\x07" * 3)), like="white"
    )
    yield Case("png-trns-short", plain(chunk(b"tRNS", b"\0")), "IMAGE_CORRUPT")
    yield Case("png-trns-empty", plain(chunk(b"tRNS")), "IMAGE_CORRUPT")


def _headers() -> Iterable[Case]:
    raw = rows(np.asarray(picture()))
    for name, header, reason in (
        ("colour-5", ihdr(colour=5), "IMAGE_CORRUPT"),
        ("depth-3", ihdr(depth=3), "IMAGE_CORRUPT"),
        ("depth-0", ihdr(depth=0, colour=0), "IMAGE_CORRUPT"),
        ("filter-method", ihdr(rest=b"\0\1\0"), "IMAGE_CORRUPT"),
        ("compression-method", ihdr(rest=b"\1\0\0"), ""),
        ("interlace-method", ihdr(rest=b"\0\0\2"), "IMAGE_TRUNCATED"),
        ("header-12", ihdr()[:12], "IMAGE_CORRUPT"),
        ("header-0", b"", "IMAGE_CORRUPT"),
        ("header-14", ihdr() + b"\0", "IMAGE_CORRUPT"),
        ("no-pixels", ihdr(0, 0), "IMAGE_CORRUPT"),
        ("no-width", ihdr(0, 9), "IMAGE_CORRUPT"),
        ("no-height", ihdr(9, 0), "IMAGE_CORRUPT"),
        ("bomb-pixels", ihdr(16_384, 16_384), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-memory", ihdr(11_000, 11_000, 8, 6), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-side", ihdr(65_501, 1), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-height", ihdr(1, 65_501), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-2gp", ihdr(50_000, 50_000, 1, 0), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-signed", ihdr(2**31, 2**31), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-largest", ihdr(2**32 - 1, 2**32 - 1, 16, 6), "IMAGE_TOO_MANY_PIXELS"),
        ("claims-more", ihdr(WIDTH, HEIGHT + 1), "IMAGE_TRUNCATED"),
        ("claims-less", ihdr(WIDTH, HEIGHT - 9), ""),
        ("claims-49-megapixels", ihdr(7000, 7000), "IMAGE_TRUNCATED"),
    ):  # fmt: skip
        yield Case(f"png-{name}", png(header, raw), reason)
    gigapixel = SIGNATURE + chunk(b"IHDR", ihdr(40_000, 40_000)) + b"\0\0\0\0IDAT" + bytes(7)
    yield Case("png-bomb-48-bytes", gigapixel[:48], "IMAGE_TOO_MANY_PIXELS")


def _chunks() -> Iterable[Case]:
    good, header, raw = plain(), chunk(b"IHDR", ihdr()), rows(np.asarray(picture()))
    body = zlib.compress(raw)
    data, end = chunk(b"IDAT", body), chunk(b"IEND")
    single = b"".join(chunk(b"IDAT", body[at : at + 1]) for at in range(len(body)))
    half = chunk(b"IDAT", body[: len(body) // 2])
    other_half, half_rows = chunk(b"IDAT", body[len(body) // 2 :]), chunk(b"IDAT", zlib.compress(raw[: len(raw) // 2]))
    small, huge = chunk(b"IHDR", ihdr(8, 8)), chunk(b"IHDR", ihdr(30_000, 30_000))
    for name, parts, reason in (
        ("idat-bytes", (header, single, end), ""),
        ("idat-empty", (header, chunk(b"IDAT"), data, chunk(b"IDAT"), end), ""),
        ("idat-none", (header, end), "IMAGE_TRUNCATED"),
        ("idat-first", (data, header, end), "IMAGE_CORRUPT"),
        ("idat-half", (header, half, end), "IMAGE_TRUNCATED"),
        ("idat-crc", (header, chunk(b"IDAT", body, flip=1), end), ""),
        ("header-crc", (chunk(b"IHDR", ihdr(), flip=1), data, end), "IMAGE_CORRUPT"),
        ("header-none", (data, end), "IMAGE_CORRUPT"),
        ("header-twice", (header, header, data, end), ""),
        ("header-second-small", (header, small, data, end), "IMAGE_CORRUPT"),
        ("header-second-huge", (header, huge, data, end), "IMAGE_TOO_MANY_PIXELS"),
        ("header-behind", (header, half, small, end), "IMAGE_TRUNCATED"),
        ("header-behind-half-the-rows", (header, half_rows, small, end), "IMAGE_TRUNCATED"),
        ("text-amid-pixels", (header, half, chunk(b"tEXt", b"a\0b"), other_half, end), ""),
        ("end-none", (header, data), "IMAGE_TRUNCATED"),
        ("end-twice", (header, data, end, end), ""),
        ("end-crc", (header, data, chunk(b"IEND", flip=1)), ""),
        ("end-body", (header, data, chunk(b"IEND", b"more")), ""),
        ("end-first", (header, end, data), "IMAGE_TRUNCATED"),
        ("length-lies", (header, b"\xff\xff\xff\xffIDAT" + body, end), "IMAGE_TRUNCATED"),
        ("unknown-critical", (header, chunk(b"ABCD", b"?"), data, end), ""),
        ("unknown-ancillary", (header, chunk(b"abCd", b"?" * 999), data, end), ""),
        ("chunk-no-letters", (header, chunk(b"\1\2\3\4"), data, end), "IMAGE_CORRUPT"),
        ("trailing", (header, data, end, b"more" * 999), ""),
        ("trailing-png", (header, data, end, good), ""),
    ):
        like = "png" if not reason and "small" not in name else ""
        yield Case(f"png-{name}", SIGNATURE + b"".join(parts), reason, like)


def _compression() -> Iterable[Case]:
    def stream(level: int, bits: int) -> Callable[[bytes], bytes]:
        def pack(raw: bytes) -> bytes:
            deflater = zlib.compressobj(level, zlib.DEFLATED, bits)
            return deflater.compress(raw) + deflater.flush()

        return pack

    for name, pack, reason in (
        ("stored", stream(0, 15), ""),
        ("window-512", stream(9, 9), ""),
        ("no-zlib-header", stream(9, -15), "IMAGE_CORRUPT"),
        ("gzip", stream(9, 31), "IMAGE_CORRUPT"),
        ("half-the-rows", lambda raw: zlib.compress(raw[: len(raw) // 2]), "IMAGE_TRUNCATED"),
        ("one-byte-less", lambda raw: zlib.compress(raw[:-1]), "IMAGE_TRUNCATED"),
        ("more-rows", lambda raw: zlib.compress(raw * 3), ""),
        ("bomb", lambda raw: zlib.compress(raw + bytes(200 << 20), 9), ""),
        ("wrong-adler", lambda raw: zlib.compress(raw)[:-4] + b"\0\0\0\0", "IMAGE_CORRUPT"),
        ("noise", lambda raw: b"\x78\x9c" + np.random.default_rng(0).bytes(999), "IMAGE_CORRUPT"),
        ("zeros", lambda raw: bytes(999), "IMAGE_CORRUPT"),
        ("filter-9", lambda raw: zlib.compress(b"\x09" + raw[1:]), "IMAGE_CORRUPT"),
    ):
        yield Case(f"png-zlib-{name}", plain(pack=pack), reason, "" if reason else "png")


def _metadata() -> Iterable[Case]:
    bomb = zlib.compress(bytes(64 << 20), 9)
    for name, before in (
        ("ztxt-bomb", chunk(b"zTXt", b"Comment\0\0" + bomb)),
        ("itxt-bomb", chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)),
        ("iccp-bomb", chunk(b"iCCP", b"profile\0\0" + bomb)),
        ("iccp-noise", chunk(b"iCCP", b"profile\0\0" + b"noise" * 9)),
        ("iccp-empty", chunk(b"iCCP")),
        ("ztxt-empty", chunk(b"zTXt")),
        ("text-20000", chunk(b"tEXt", b"a\0b") * 20_000),
        ("text-2mib", chunk(b"tEXt", b"a\0" + b"b" * (2 << 20))),
        ("text-crc", chunk(b"tEXt", b"a\0b", flip=9)),
        ("phys-short", chunk(b"pHYs", b"\0")),
        ("gama-short", chunk(b"gAMA", b"\0")),
        ("chrm-short", chunk(b"cHRM", b"\0")),
        ("srgb-empty", chunk(b"sRGB")),
        ("exif-noise", chunk(b"eXIf", b"noise" * 9)),
        ("exif-empty", chunk(b"eXIf")),
    ):
        yield Case(f"png-{name}", plain(before), like="png")
    for orientation in (3, 6):
        turned = np.asarray(stored(orientation))
        data = png(ihdr(*turned.shape[1::-1]), rows(turned), chunk(b"eXIf", exif(orientation)))
        yield Case(f"png-exif-{orientation}", data, like="png")


def _animated() -> Iterable[Case]:
    raw, end = rows(np.asarray(picture())), chunk(b"IEND")
    frame = struct.pack(">IIIIHHBB", WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    first = chunk(b"fcTL", bytes(4) + frame) + chunk(b"IDAT", zlib.compress(raw))
    second = chunk(b"fcTL", b"\0\0\0\1" + frame) + chunk(b"fdAT", b"\0\0\0\2" + zlib.compress(bytes(len(raw))))
    for name, frames, parts in (
        ("two-frames", 2, first + second),
        ("claims-billions", 2**31 - 1, first),
        ("claims-none", 0, first),
        ("frame-missing", 2, first),
    ):
        control = chunk(b"acTL", struct.pack(">II", frames, 0))
        yield Case(f"apng-{name}", SIGNATURE + chunk(b"IHDR", ihdr()) + control + parts + end, like="png")


def _sizes() -> Iterable[Case]:
    for width, height in ((1, 1), (1, 5000), (5000, 1), (16_384, 1), (2, 3), (333, 7)):
        yield Case(f"png-{width}x{height}", png(ihdr(width, height), rows(np.full((height, width, 3), 99))))
    for name, side, depth, colour, bits in (
        ("rgb", 7000, 8, 2, 24),
        ("rgba", 7000, 8, 6, 32),
        ("grey16", 7000, 16, 0, 16),
        ("la16", 5000, 16, 4, 32),
        ("1bit", 7000, 1, 0, 1),
    ):
        size = (1 + (side * bits + 7) // 8) * side
        yield Case(f"png-large-{name}", partial(_black, ihdr(side, side, depth, colour), size), is_slow=True)
    woven = sum((1 + -(-(7000 - x) // dx) * 4) * -(-(7000 - y) // dy) for x, y, dx, dy in _ADAM7)
    yield Case("png-large-adam7", partial(_black, ihdr(7000, 7000, 8, 6, b"\0\0\1"), woven), is_slow=True)


def _black(header: bytes, size: int) -> bytes:
    return png(header, bytes(size))


def all_pngs() -> Iterable[Case]:
    """Every PNG of the corpus."""
    yield Case("png", encode(picture(), "PNG"))
    yield Case("png-grey", encode(picture().convert("L"), "PNG"))
    white = np.full((HEIGHT, WIDTH, 3), 255)
    yield Case("white", png(ihdr(), rows(white)))
    for make in (_layouts, _palettes, _clear, _headers, _chunks, _compression, _metadata, _animated, _sizes):
        yield from make()
    early = {0.01: "IMAGE_UNKNOWN_FORMAT", 0.02: "IMAGE_CORRUPT"}
    yield from cuts("png", encode(picture(), "PNG"), (0.01, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99), early)
