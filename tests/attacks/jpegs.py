"""JPEGs of the corpus: every way that cameras, phones and attackers write them."""

import io
import struct
from collections.abc import Iterable
from functools import cache, partial

import numpy as np
from PIL import Image
from tests.attacks.case import HEIGHT, WIDTH, Case, cuts, encode, exif, picture, stored

_SOI, _EOI, _SOS, _SOF0, _SOF2 = b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"\xff\xc2"


@cache
def jpeg(**options: object) -> bytes:
    """The picture as a JPEG of high quality."""
    return encode(picture(), "JPEG", **({"quality": 95} | options))


def segment(marker: int, body: bytes) -> bytes:
    """One segment with its length."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def with_front(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments at its front."""
    return data[:2] + b"".join(segments) + data[2:]


def _sized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims another size."""
    at = (data.index(_SOF2) if _SOF2 in data else data.index(_SOF0)) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _three_scans() -> bytes:
    """A baseline JPEG whose red, green and blue, all alike, stand in a scan each."""
    data = encode(picture().convert("L"), "JPEG", quality=95)
    tables, frame, scan = data.index(b"\xff\xdb"), data.index(_SOF0), data.index(_SOS)
    components = b"".join(bytes((letter, 0x11, 0)) for letter in b"RGB")
    header = segment(0xC0, data[frame + 4 : frame + 9] + b"\3" + components) + data[frame + 13 : scan]
    scans_of_one = (segment(0xDA, bytes((1, letter, 0, 0, 63, 0))) + data[scan + 10 : -2] for letter in b"RGB")
    return _SOI + data[tables:frame] + header + b"".join(scans_of_one) + _EOI


def _frame(data: bytes, marker: int, precision: int = 8) -> bytes:
    """A baseline JPEG that claims to be of another kind."""
    at = data.index(_SOF0)
    return data[:at] + bytes((0xFF, marker)) + data[at + 2 : at + 4] + bytes((precision,)) + data[at + 5 :]


def scans(count: int) -> bytes:
    """A progressive JPEG with its last scan repeated until there are `count`."""
    data = jpeg(progressive=True)
    last = data[data.rindex(_SOS) : -2]
    return data[:-2] + last * (count - data.count(_SOS)) + _EOI


def _kinds() -> Iterable[Case]:
    for name, options in (
        ("progressive", {"progressive": True}),
        ("optimized", {"optimize": True}),
        ("444", {"subsampling": 0}),
        ("422", {"subsampling": 1}),
        ("rgb-inside", {"keep_rgb": True}),
        ("restart-blocks", {"restart_marker_blocks": 1}),
        ("restart-rows", {"restart_marker_rows": 1}),
        ("dpi", {"dpi": (65535, 1)}),
        ("comment", {"comment": b"\xff\xda\xff\xd9" * 99}),
    ):
        yield Case(f"jpeg-{name}", jpeg(**options), like="jpeg")
    yield Case("jpeg-quality-1", jpeg(quality=1), like="jpeg", cosine=0.6)
    yield Case("jpeg-grey", encode(picture().convert("L"), "JPEG", quality=95), like="png-grey")
    cmyk = encode(picture().convert("CMYK"), "JPEG", quality=95)
    yield Case("jpeg-cmyk", cmyk, like="jpeg")
    yield Case("jpeg-ycck", _ycck(), like="jpeg", cosine=0.98)
    at = cmyk.index(b"Adobe")
    yield Case("jpeg-three-scans", _three_scans(), like="jpeg-grey")
    yield Case("jpeg-cmyk-no-adobe", cmyk[: at - 4] + cmyk[at + 12 :])


def _ycck() -> bytes:
    """The picture as luma and chroma with an empty black plate, as Photoshop writes it."""
    luma = picture().convert("YCbCr").split()
    # Pillow stores CMYK inverted; the decoder turns YCC into RGB and takes that for inverted CMY.
    data = encode(Image.merge("CMYK", (*luma, Image.new("L", (WIDTH, HEIGHT)))), "JPEG", quality=95)
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\2" + data[at + 1 :]


def _orientations() -> Iterable[Case]:
    for orientation in range(1, 9):
        header = segment(0xE1, b"Exif\0\0" + exif(orientation))
        turned = encode(stored(orientation), "JPEG", quality=95)
        yield Case(f"jpeg-exif-{orientation}", with_front(turned, header), like="jpeg")
    large = picture().resize((8 * WIDTH, 8 * HEIGHT))
    for orientation in (1, 3, 6, 8):  # large enough to be decoded at a fraction of the size
        header = segment(0xE1, b"Exif\0\0" + exif(orientation))
        turned = encode(stored(orientation, large), "JPEG", quality=95)
        yield Case(f"jpeg-exif-large-{orientation}", with_front(turned, header), like="jpeg", cosine=0.98)
    good = exif(6)
    for name, block in (
        ("0", exif(0)),
        ("9", exif(9)),
        ("65535", exif(65535)),
        ("string", exif(b"6\0", kind=2, count=2)),
        ("rational", exif(8, kind=5)),
        ("type-99", exif(6, kind=99)),
        ("count-billions", exif(6, count=2**32 - 1)),
        ("cut", good[:14]),
        ("empty", b""),
        ("noise", b"noise" * 9),
        ("byte-order", b"XX" + good[2:]),
        ("offset-beyond", good[:4] + b"\xff\xff\xff\x7f" + good[8:]),
        ("loop", exif(1)[:-4] + b"\x08\0\0\0"),
        ("65535-entries", exif(1)[:8] + b"\xff\xff" + exif(1)[10:]),
    ):
        yield Case(f"jpeg-exif-bad-{name}", with_front(jpeg(), segment(0xE1, b"Exif\0\0" + block)), like="jpeg")


def _segments() -> Iterable[Case]:
    data, thumbnail = jpeg(), encode(picture().resize((16, 12)), "JPEG")
    for name, front in (
        ("thumbnail", segment(0xE1, b"Exif\0\0" + exif(1) + thumbnail)),
        ("100-thumbnails", segment(0xE2, thumbnail) * 100),
        ("2000-apps", segment(0xE5, b"app") * 2000),
        ("empty-segment", segment(0xE5, b"")),
        ("fill-bytes", b"\xff" * 999),
        ("icc-noise", segment(0xE2, b"ICC_PROFILE\0\1\1" + b"noise" * 9)),
        ("icc-part-9-of-3", segment(0xE2, b"ICC_PROFILE\0\x09\3" + b"noise")),
        ("photoshop-noise", segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 40)),
        ("xmp-noise", segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta" + b"<" * 999)),
        ("jfxx", segment(0xE0, b"JFXX\0\x10" + thumbnail)),
        ("mpf-noise", segment(0xE2, b"MPF\0" + b"noise" * 9)),
        ("comment-64k", segment(0xFE, b"\xff" * 65533)),
    ):
        yield Case(f"jpeg-{name}", with_front(data, front), like="jpeg")
    yield Case("jpeg-segment-length-0", with_front(data, b"\xff\xe5\0\0"), like="jpeg")
    yield Case("jpeg-segment-length-1", with_front(data, b"\xff\xe5\0\1"), like="jpeg")
    yield Case("jpeg-segment-too-long", with_front(data, b"\xff\xe5\xff\xff"), "IMAGE_CORRUPT")
    yield Case("jpeg-icc-short", with_front(data, segment(0xE2, b"ICC_PROFILE\0")), like="jpeg")
    for name, tail in (("zeros", bytes(9999)), ("jpeg", data), ("film", b"ftypmp42" + b"\xff\xda\0\2" * 999)):
        yield Case(f"jpeg-trailing-{name}", data + tail, like="jpeg")
    mpo = io.BytesIO()
    picture().save(mpo, "MPO", save_all=True, append_images=[picture().rotate(90)], quality=95)
    yield Case("jpeg-two-pictures", mpo.getvalue(), like="jpeg")
    yield Case("jpeg-second-picture-cut", mpo.getvalue()[: mpo.getvalue().rindex(_SOI) + 40], like="jpeg")


def _frames() -> Iterable[Case]:
    data = jpeg()
    at, scan = data.index(_SOF0), data.index(_SOS)
    tables, quantizers = data.index(b"\xff\xc4"), data.index(b"\xff\xdb")
    for name, bad, reason in (
        ("12-bit", _frame(data, 0xC1, 12), "IMAGE_CORRUPT"),
        ("16-bit", _frame(data, 0xC0, 16), "IMAGE_CORRUPT"),
        ("lossless", _frame(data, 0xC3), "IMAGE_CORRUPT"),
        ("hierarchical", _frame(data, 0xC5), "IMAGE_CORRUPT"),
        ("ls", _frame(data, 0xF7), "IMAGE_CORRUPT"),
        ("arithmetic", _frame(data, 0xC9), ""),
        (
            "height-0-dnl",
            _sized(data, WIDTH, 0)[:-2] + segment(0xDC, struct.pack(">H", HEIGHT)) + _EOI,
            "IMAGE_CORRUPT",
        ),
        ("no-pixels", _sized(data, 0, 0), "IMAGE_CORRUPT"),
        ("bomb", _sized(data, 65_500, 65_500), "IMAGE_TOO_MANY_PIXELS"),
        ("bomb-side", _sized(data, 65_535, 1), "IMAGE_TOO_MANY_PIXELS"),
        ("claims-49-megapixels", _sized(data, 7000, 7000), ""),
        ("claims-one-more-block", _sized(data, WIDTH, HEIGHT + 16), ""),
        ("claims-less", _sized(data, WIDTH // 2, HEIGHT // 2), ""),
        ("no-components", data[: at + 9] + b"\0" + data[at + 10 :], "IMAGE_CORRUPT"),
        ("sampling-0", data[: at + 11] + b"\0" + data[at + 12 :], "IMAGE_CORRUPT"),
        ("sampling-15", data[: at + 11] + b"\xff" + data[at + 12 :], "IMAGE_CORRUPT"),
        ("quantizer-9", data[: at + 12] + b"\x09" + data[at + 13 :], "IMAGE_CORRUPT"),
        ("no-frame", data[:at] + data[scan:], "IMAGE_CORRUPT"),
        ("two-frames", data[:at] + data[at:tables] * 2 + data[tables:], "IMAGE_CORRUPT"),
        ("no-scan", data[:scan] + _EOI, "IMAGE_CORRUPT"),
        ("no-quantizers", data[:quantizers] + data[at:], "IMAGE_CORRUPT"),
        ("no-huffman-tables", data[:tables] + data[scan:], ""),
        ("huffman-noise", data[: tables + 5] + b"\xff" * 16 + data[tables + 21 :], "IMAGE_CORRUPT"),
        ("scan-empty", data[: scan + 14] + _EOI, ""),
        ("scan-noise", data[: scan + 14] + b"\x5a\xa5" * 2000 + _EOI, ""),
        ("no-end", data[:-2], "IMAGE_TRUNCATED"),
        ("restart-missing", jpeg(restart_marker_blocks=1).replace(b"\xff\xd1", b"", 1), ""),
        ("start-only", _SOI, "IMAGE_UNKNOWN_FORMAT"),
        ("start-end", _SOI + _EOI, "IMAGE_CORRUPT"),
        ("start-fill", _SOI + b"\xff" * 99, "IMAGE_CORRUPT"),
    ):
        yield Case(f"jpeg-{name}", bad, reason)


def _costly() -> Iterable[Case]:
    yield Case("jpeg-64-scans", scans(64), like="jpeg")
    yield Case("jpeg-65-scans", scans(65), "IMAGE_TOO_MANY_SCANS")
    yield Case("jpeg-1500-scans", scans(1500), "IMAGE_TOO_MANY_SCANS")
    for width, height in ((1, 1), (1, 5000), (5000, 1), (16_384, 2), (7, 333)):
        image = Image.new("RGB", (width, height), (99, 99, 99))
        yield Case(f"jpeg-{width}x{height}", encode(image, "JPEG"))
    yield Case("jpeg-65500x1", encode(Image.new("RGB", (65_500, 1)), "JPEG"))
    yield Case("jpeg-65501x1", _sized(jpeg(), 65_501, 1), "IMAGE_TOO_MANY_PIXELS")
    for name, mode, options in (
        ("baseline", "RGB", {}),
        ("progressive", "RGB", {"progressive": True}),
        ("cmyk", "CMYK", {}),
    ):
        yield Case(f"jpeg-large-{name}", partial(_large, mode, **options), is_slow=True)
    for name, data in (
        ("baseline", jpeg()),
        ("progressive", jpeg(progressive=True)),
        ("cmyk", encode(picture().convert("CMYK"), "JPEG")),
    ):
        yield Case(f"jpeg-claims-200-megapixels-{name}", _sized(data, 16_320, 12_240), is_slow=True)
    yield Case("jpeg-claims-49-megapixels-in-three-scans", _sized(_three_scans(), 7000, 7000), is_slow=True)
    whole = jpeg(progressive=True, subsampling=0)
    yield Case("jpeg-bomb-progressive-444", _sized(whole, 16_320, 12_240), "IMAGE_TOO_MANY_PIXELS")


def _large(mode: str, **options: bool) -> bytes:
    return encode(Image.fromarray(np.zeros((7000, 7000), np.uint8)).convert(mode), "JPEG", **options)


def all_jpegs() -> Iterable[Case]:
    """Every JPEG of the corpus."""
    yield Case("jpeg", jpeg(), like="png", cosine=0.98)
    for make in (_kinds, _orientations, _segments, _frames, _costly):
        yield from make()
    early = dict.fromkeys((0.01, 0.02, 0.1, 0.25), "IMAGE_CORRUPT")
    yield from cuts("jpeg", jpeg(), (0.01, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999), early)
    yield from cuts("jpeg-progressive", jpeg(progressive=True), (0.1, 0.4, 0.6, 0.8, 0.95), early)
