"""What stands beside the pixels decides nothing: pictures with faulty metadata are those without it, and cost as much."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tests.attacks.case import encode, exif, picture, stored
from tests.attacks.jpegs import jpeg, segment, with_front
from tests.attacks.pngs import chunk, ihdr, plain, png, rows
from tests.attacks.webps import animated, extended, part, riff, webp

from penult.bundle.errors import ImageError
from penult.bundle.guards import ImageLimits
from penult.bundle.opening import walk
from penult.bundle.orientation import exif_orientation
from penult.bundle.preprocess import Preprocess, crop_encoded, decode

_XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
_XMP_OF_JPEG = b"http://ns.adobe.com/xap/1.0/\0" + _XMP
_TURNED = exif(6)
_RAW_PROFILE = b"\nexif\n%8d\n%s\n" % (len(_TURNED) + 6, (b"Exif\0\0" + _TURNED).hex().encode())
_BOMB = zlib.compress(bytes(2 << 20))
_FRAME = struct.pack(">IIIIIHHBB", 0, 96, 72, 0, 0, 1, 10, 0, 0)

PNG_CHUNKS = {
    "ztxt of 2 MiB": (b"zTXt", b"Comment\0\0" + _BOMB),
    "ztxt of method 7": (b"zTXt", b"Comment\0\7noise"),
    "ztxt of noise": (b"zTXt", b"Comment\0\0noise"),
    "ztxt empty": (b"zTXt", b""),
    "ztxt profile that turns": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(_RAW_PROFILE)),
    "text empty": (b"tEXt", b""),
    "text without a value": (b"tEXt", b"Comment"),
    "text transparency": (b"tEXt", b"transparency\0\0"),
    "text gamma": (b"tEXt", b"gamma\0x"),
    "text bbox": (b"tEXt", b"bbox\0xxxx"),
    "text interlace": (b"tEXt", b"interlace\0\1"),
    "text default_image": (b"tEXt", b"default_image\0\1"),
    "text exif that turns": (b"tEXt", b"exif\0" + _TURNED),
    "text profile that turns": (b"tEXt", b"Raw profile type exif\0" + _RAW_PROFILE),
    "text profile that is none": (b"tEXt", b"Raw profile type exif\0no\nhex\nat\nall"),
    "itxt of 2 MiB": (b"iTXt", b"Comment\0\1\0\0\0" + _BOMB),
    "itxt short": (b"iTXt", b"Comment\0\1"),
    "itxt of method 9": (b"iTXt", b"Comment\0\1\x09\0\0noise"),
    "itxt that is no UTF-8": (b"iTXt", b"Comment\0\0\0\xff\0\xff\0\xff"),
    "itxt xmp that turns": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _XMP),
    "iccp empty": (b"iCCP", b""),
    "iccp name alone": (b"iCCP", b"profile"),
    "iccp of method 1": (b"iCCP", b"profile\0\1noise"),
    "iccp of 2 MiB": (b"iCCP", b"profile\0\0" + _BOMB),
    "gama short": (b"gAMA", b"\0"),
    "gama 0": (b"gAMA", bytes(4)),
    "chrm short": (b"cHRM", bytes(31)),
    "srgb empty": (b"sRGB", b""),
    "srgb 99": (b"sRGB", b"\x63"),
    "phys short": (b"pHYs", bytes(8)),
    "time short": (b"tIME", b"\7"),
    "time of month 99": (b"tIME", b"\x07\xe0\x63\x63\x63\x63\x63"),
    "background short": (b"bKGD", b"\0"),
    "histogram without a palette": (b"hIST", b"\0\1"),
    "significant bits 99": (b"sBIT", b"\x63\x63\x63"),
    "suggested palette cut": (b"sPLT", b"name\0\x08abc"),
    "colour space short": (b"cICP", b"\1"),
    "exif empty": (b"eXIf", b""),
    "exif noise": (b"eXIf", b"noise" * 9),
    "exif cut": (b"eXIf", _TURNED[:14]),
    "exif of 65,535 entries": (b"eXIf", exif(1)[:8] + b"\xff\xff" + exif(1)[10:]),
    "animation short": (b"acTL", b"\0"),
    "animation of no frames": (b"acTL", bytes(8)),
    "frame short": (b"fcTL", b"\0"),
    "frame out of order": (b"fcTL", b"\0\0\0\x09" + _FRAME[4:]),
    "frame beyond the picture": (b"fcTL", _FRAME[:12] + b"\0\0\0\x09" + _FRAME[16:]),
    "frame data short": (b"fdAT", b"\0"),
    "unknown": (b"xxXx", b"?" * 999),
}  # fmt: skip

JPEG_SEGMENTS = {
    "jfif empty": segment(0xE0, b"JFIF\0"),
    "jfif cut": segment(0xE0, b"JFIF\0\1\2"),
    "jfif of 13 bytes": segment(0xE0, b"JFIF\0\1\2\0\0\1\0\1\0"),
    "adobe of 5 bytes": segment(0xEE, b"Adobe"),
    "adobe of 6 bytes": segment(0xEE, b"Adobe\0"),
    "adobe of 11 bytes, as it says RGB": segment(0xEE, b"Adobe\0\x64\0\0\0\0"),
    "exif short": segment(0xE1, b"Exif\0"),
    "exif empty": segment(0xE1, b"Exif\0\0"),
    "exif cut": segment(0xE1, b"Exif\0\0" + _TURNED[:14]),
    "exif noise": segment(0xE1, b"Exif\0\0II*\0" + b"\xff" * 99),
    "xmp that turns": segment(0xE1, _XMP_OF_JPEG),
    "xmp cut": segment(0xE1, _XMP_OF_JPEG[:29]),
    "icc without numbers": segment(0xE2, b"ICC_PROFILE\0"),
    "icc with one number": segment(0xE2, b"ICC_PROFILE\0\1"),
    "icc part 0 of 0": segment(0xE2, b"ICC_PROFILE\0\0\0"),
    "flashpix": segment(0xE2, b"FPXR\0"),
    "several pictures, cut": segment(0xE2, b"MPF\0II*\0"),
    "several pictures, noise": segment(0xE2, b"MPF\0MM\0*" + b"\xff" * 40),
    "photoshop cut in a number": segment(0xED, b"Photoshop 3.0\x008BIM\x03"),
    "photoshop cut in a name": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "photoshop resolution cut": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2\0\0"),
    "photoshop of 4 GiB": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"),
    "comment empty": segment(0xFE, b""),
    "application of length 0": b"\xff\xe5\0\0",
    "application of length 1": b"\xff\xe5\0\1",
    "restart marker": b"\xff\xd3",
    "temporary marker": b"\xff\x01",
    "junk": segment(0xFE, b"") + b"junk\xff\x00" * 99,
}  # fmt: skip


def _with(at: int, data: bytes, more: bytes) -> bytes:
    return data[:at] + more + data[at:]


def _pngs() -> Iterator[tuple[str, bytes, bytes]]:
    """Every chunk before the pixels, and most again amid and behind them and with a bad checksum."""
    raw = zlib.compress(rows(np.asarray(picture())))
    good = plain()
    for name, (kind, body) in PNG_CHUNKS.items():
        yield f"png {name}", plain(chunk(kind, body)), good
        if kind not in (b"eXIf", b"fdAT"):
            yield f"png {name}, bad checksum", plain(chunk(kind, body, flip=9)), good
    for name in ("ztxt of 2 MiB", "gama short", "iccp empty", "itxt xmp that turns", "unknown", "frame short"):
        kind, body = PNG_CHUNKS[name]
        halves = chunk(b"IDAT", raw[:99]) + chunk(kind, body) + chunk(b"IDAT", raw[99:])
        end, start = chunk(b"IEND"), good[: good.index(b"IDAT") - 4]
        yield f"png {name}, amid the pixels", start + halves + end, good
        yield f"png {name}, behind the pixels", _with(len(good) - 12, good, chunk(kind, body)), good
    yield "png nameless, behind the pixels", _with(len(good) - 12, good, chunk(b"\1\2\3\4") + chunk(b"tEXt")), good
    yield "png exif that turns, bad checksum", plain(chunk(b"eXIf", _TURNED, flip=9)), good
    yield "png transparency behind the pixels", _with(len(good) - 12, good, chunk(b"tRNS", bytes(6))), good
    grey = png(ihdr(depth=16, colour=0), rows(np.full((72, 96, 1), 7), 16), chunk(b"tEXt", b"transparency\0\0\7"))
    yield "png text transparency, grey", grey, png(ihdr(depth=16, colour=0), rows(np.full((72, 96, 1), 7), 16))


def _jpegs() -> Iterator[tuple[str, bytes, bytes]]:
    """Every segment at the front, and behind the frame."""
    good = jpeg()
    for name, more in JPEG_SEGMENTS.items():
        yield f"jpeg {name}", with_front(good, more), good
        yield f"jpeg {name}, before the scan", _with(good.index(b"\xff\xda"), good, more), good
    many = with_front(good, *JPEG_SEGMENTS.values())
    yield "jpeg with all of them", many, good
    # What says how colours are stored is believed, whatever stands around it.
    kept = encode(picture(), "JPEG", quality=95, keep_rgb=True)
    yield "jpeg of RGB with all of them", with_front(kept, *JPEG_SEGMENTS.values()), kept
    cmyk = encode(picture().convert("CMYK"), "JPEG", quality=95)
    yield "jpeg of CMYK with all of them", with_front(cmyk, *JPEG_SEGMENTS.values()), cmyk


def _webps() -> Iterator[tuple[str, bytes, bytes]]:
    good, lossless, size = webp(), webp(lossless=True), picture().size
    odd, end = part(b"EXIF", b"odd"), part(b"XMP ", _XMP)
    for kind, data in (("lossy", good), ("lossless", lossless)):
        stream = data[12:]
        for name, parts in (
            ("reserved bits", (extended(*size, 0xC1), stream)),
            ("all flags, nothing there", (extended(*size, 0x2C), stream)),
            ("profile without a pad byte", (extended(*size, 0x20), stream, part(b"ICCP", b"odd")[:-1])),
            ("exif without a pad byte", (extended(*size, 0x08), stream, odd[:-1])),
            ("exif cut", (extended(*size, 0x08), stream, odd[:4] + b"\xff\xff\0\0" + odd[8:])),
            ("exif noise", (extended(*size, 0x08), stream, part(b"EXIF", b"II*\0" + b"\xff" * 40))),
            ("exif twice", (extended(*size, 0x08), odd, stream, odd)),
            ("xmp that turns", (extended(*size, 0x04), stream, end)),
            ("profile of 4 GiB", (extended(*size, 0x20), stream, b"ICCP\xff\xff\xff\xff")),
            ("unknown first", (part(b"?\xff\0!", b"odd"), stream)),
            ("unknown everywhere", (extended(*size), part(b"odd ", b"odd"), stream, part(b"odd ", b"odd"))),
            ("three bytes more", (extended(*size), stream, b"abc")),
            ("a byte more", (stream, b"\0")),
        ):
            yield f"webp {kind} {name}", riff(*parts), data
    moving = animated()
    at = moving.index(b"ANMF")
    broken = moving[:at] + moving[at:].replace(b"ANMF", b"odd ", 2).replace(b"odd ", b"ANMF", 1)
    yield "webp animation with an unknown chunk", broken, moving


FAULTS = {name: (bad, good) for make in (_pngs, _jpegs, _webps) for name, bad, good in make()}


def test_there_are_enough():
    """There are more than 60 files, no two of them the same."""
    assert len(FAULTS) > 60
    assert len({bad for bad, _ in FAULTS.values()}) == len(FAULTS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FAULTS)
def test_faulty_metadata_change_nothing(name: str):
    """A picture with faulty metadata has the pixels of the one without, and nothing is warned of."""
    bad, good = FAULTS[name]
    assert np.array_equal(np.asarray(decode(bad)), np.asarray(decode(good)))


SPEC, _ROOMY, _KB = Preprocess(resize=32, crop=32), ImageLimits(max_bytes=64 << 20), b"k" * 1000


def _large(kind: str) -> tuple[bytes, int]:
    """Return a file of 20 MB whose pixels have a few KB, and how many bytes the same has without metadata."""
    if kind == "PNG":
        bomb = zlib.compress(bytes(32 << 20), 9)
        texts = b"".join(chunk(name, b"a\0\0\0\0\0" + bomb) for name in (b"zTXt", b"iTXt", b"iCCP"))
        return plain(texts, chunk(b"tEXt", b"a\0" + _KB * 10_000), chunk(b"eXIf", _KB) * 9999), len(plain())
    if kind == "JPEG":
        return with_front(jpeg(), segment(0xE2, _KB) * 10_000, segment(0xE1, b"Exif\0\0" + _KB) * 9999), len(jpeg())
    more = part(b"ICCP", _KB * 10_000) + part(b"EXIF", _KB * 10_000)
    return riff(extended(*picture().size, 0x28), webp()[12:], more), len(webp())


def _turned_by_exif(kind: str, block: bytes) -> bytes:
    """Return the picture, stored for orientation 6, with an EXIF block among other metadata that say 1."""
    image, upright = stored(6), _XMP.replace(b"6", b"1")
    if kind == "JPEG":
        xmp = segment(0xE1, _XMP_OF_JPEG[:29] + upright)
        return with_front(encode(image, kind, quality=95), xmp, segment(0xE1, b"Exif\0\0" + block))
    if kind == "WEBP":
        stream = encode(image, kind, lossless=True)[12:]
        return riff(extended(*image.size, 0x0C), stream, part(b"EXIF", block), part(b"XMP ", upright))
    pixels = np.asarray(image)
    texts = chunk(b"tEXt", b"exif\0" + exif(1)), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + upright)
    return png(ihdr(*image.size), rows(pixels), chunk(b"eXIf", block), *texts)


def _block(order: str, kind: str, number: int, count: int = 1) -> bytes:
    """Return an EXIF block with a few entries, in either byte order; several values stand behind the directory."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(f"{order}{kind}", 6)
    inline = value.ljust(4, b"\0") if count == 1 else struct.pack(f"{order}I", 8 + 2 + 24 + 4)
    entries = struct.pack(f"{order}HHI4s", 0x010F, 2, 4, b"abc\0")
    entries += struct.pack(f"{order}HHI4s", 0x0112, number, count, inline)
    return head + struct.pack(f"{order}IH", 8, 2) + entries + bytes(4) + value * count


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_turns_whatever_else_is_said(kind: str, order: str):
    """EXIF alone counts, in both byte orders, as a whole number of any width, with a prefix or without."""
    upright = np.asarray(decode(encode(picture(), "JPEG", quality=95) if kind == "JPEG" else plain())).astype(int)
    blocks = [_block(order, letter, number) for letter, number in (("H", 3), ("I", 4), ("h", 8), ("i", 9))]
    for block in (*blocks, _block(order, "H", 3, count=9), b"Exif\0\0" + blocks[0]):
        found = np.asarray(decode(_turned_by_exif(kind, block)))
        assert found.shape == upright.shape
        assert np.abs(found - upright).mean() < 3


def test_no_exif_block_raises():
    """However a block is cut or changed, an orientation comes out."""
    rng, block = np.random.default_rng(0), _block(">", "H", 3, count=9)
    for cut in range(len(block)):
        assert exif_orientation(block[:cut]) in range(1, 9)
    for _ in range(2000):
        noisy = bytearray(block)
        noisy[int(rng.integers(len(block)))] = int(rng.integers(256))
        assert exif_orientation(bytes(noisy)) in range(1, 9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_large_metadata_cost_nothing(kind: str):
    """Of 20 MB of metadata nothing reaches the decoder, and nothing is copied or inflated."""
    data, needed = _large(kind)
    assert len(data) > 19_000_000
    assert sum(map(len, walk(data, kind).parts)) <= needed + 64
    crop_encoded(data, SPEC, _ROOMY)  # what is loaded once
    tracemalloc.start()
    try:
        crop_encoded(data, SPEC, _ROOMY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: plain(chunk(b"abCd") * (1 << 18)),
        lambda: with_front(jpeg(), b"\xff\xe5\0\2" * (1 << 18)),
        lambda: riff(extended(96, 72), part(b"odd ", b"") * (1 << 18), webp()[12:]),
        lambda: plain(chunk(b"ABCD", bytes(1000)) * 300),
        lambda: with_front(jpeg(), segment(0xDB, bytes(65)) * 4000),
    ],
    ids=["PNG", "JPEG", "WEBP", "PNG critical", "JPEG tables"],
)
def test_more_parts_than_any_picture_has_are_refused(make: Callable[[], bytes]):
    """Hundreds of thousands of parts of no length, which cost a decoder seconds, are one refusal."""
    with pytest.raises(ImageError, match="more parts than a picture needs"):
        crop_encoded(make(), SPEC)
