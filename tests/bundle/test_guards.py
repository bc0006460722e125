"""Checks on encoded photos before anything is decoded."""

import math
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.attacks.heifs import heic

from penult.bundle import guards
from penult.bundle.errors import ImageError
from penult.bundle.formats import FORMATS, format_of
from penult.bundle.guards import LEARNING_LIMITS, ImageLimits
from penult.bundle.preprocess import Preprocess, crop_encoded, decode, decoding_pixels, open_image

SPEC = Preprocess(resize=32, crop=32)

# Decodes each file named and prints its verdict and by how many MiB the process has grown at its peak.
_PEAK = """
import resource, sys
from pathlib import Path
from penult.bundle.errors import ImageError
from penult.bundle.preprocess import Preprocess, crop_encoded
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
files = [Path(name).read_bytes() for name in sys.argv[1:]]
before = peak()
for data in files:
    try:
        crop_encoded(data, Preprocess())
        print("decoded", 0)
    except ImageError as error:
        print(error.reason, round(peak() - before))
"""


def reason(data: bytes, limits: ImageLimits | None = None) -> str:
    """Return the reason for which a photo is refused."""
    with pytest.raises(ImageError) as caught:
        crop_encoded(data, SPEC, limits or ImageLimits())
    assert "\n" not in caught.value.message
    return caught.value.reason


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def _last_scan(progressive: bytes) -> bytes:
    return progressive[progressive.rindex(b"\xff\xda") : -2]


def _scans(progressive: bytes, count: int) -> bytes:
    """Repeat the last scan of a progressive JPEG until there are `count`."""
    more = count - progressive.count(b"\xff\xda")
    return progressive[:-2] + _last_scan(progressive) * more + progressive[-2:]


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", "IMAGE_EMPTY"), (b"\0", "IMAGE_UNKNOWN_FORMAT"), (b"no photo, but a line of text", "IMAGE_UNKNOWN_FORMAT")],
)
def test_no_photo_is_refused(data: bytes, expected: str):
    """Empty bytes and text are refused, each for its own reason."""
    assert reason(data) == expected


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_formats_that_a_service_does_not_accept_are_refused(
    small_photo: Image.Image, encode: Callable[..., bytes], kind: str
):
    """A good picture in a format that is not accepted is refused by its signature, and the line names the option."""
    data = encode(small_photo, kind)
    with pytest.raises(ImageError, match=f"add {kind.lower()} to penult serve --image-formats") as caught:
        crop_encoded(data, SPEC)
    assert caught.value.reason == "IMAGE_UNKNOWN_FORMAT"
    assert crop_encoded(data, SPEC, ImageLimits(formats=(kind,))).shape == (32, 32, 3)
    assert reason(encode(small_photo, "PNG"), ImageLimits(formats=(kind,))) == "IMAGE_UNKNOWN_FORMAT"


@pytest.mark.parametrize("kind", ["PPM", "ICO"])
def test_other_formats_are_refused(small_photo: Image.Image, encode: Callable[..., bytes], kind: str):
    """A good picture in a format that Pillow knows but nobody may send is refused by its signature."""
    assert reason(encode(small_photo, kind), LEARNING_LIMITS) == "IMAGE_UNKNOWN_FORMAT"


def test_heic_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    """If pi-heif is not installed, the line has the extra and the command."""
    monkeypatch.setattr(guards, "can_read_heic", lambda: False)
    with pytest.raises(ImageError, match=r"pip install '\.\[heic\]'"):
        crop_encoded(heic(), SPEC, LEARNING_LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"])
def test_the_format_is_told_from_the_signature(small_photo: Image.Image, encode: Callable[..., bytes], kind: str):
    """Formats are recognised by their first bytes."""
    assert format_of(encode(small_photo, kind)) == kind


@pytest.mark.parametrize(
    ("brands", "kind"),
    [(b"heic", "HEIC"), (b"mif1\0\0\0\0mif1heic", "HEIC"), (b"mif1\0\0\0\0mif1avif", "AVIF"),
     (b"avif\0\0\0\0heic", "AVIF"), (b"mp42\0\0\0\0isom", None), (b"qt  ", None)],
)  # fmt: skip
def test_brands_decide_between_files_of_boxes(brands: bytes, kind: str | None):
    """A file's own brand comes first, then those that it is compatible with; films have others."""
    assert format_of(len(brands + bytes(8)).to_bytes(4, "big") + b"ftyp" + brands + bytes(99)) == kind


@pytest.mark.parametrize("signature", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\xf4\x01\0\0WEBPVP8 "])
def test_garbage_behind_a_signature_is_corrupt(signature: bytes):
    """A valid signature does not make garbage a photo."""
    assert reason(signature + np.random.default_rng(0).bytes(500)) == "IMAGE_CORRUPT"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"])
def test_a_truncated_photo_is_said_to_be_truncated(photo: Image.Image, encode: Callable[..., bytes], kind: str):
    """A photo whose second half is missing is refused as truncated, whatever its format."""
    data = encode(photo, kind)
    assert reason(data[: len(data) // 2], LEARNING_LIMITS) == "IMAGE_TRUNCATED"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "tail"), [("JPEG", 0), ("PNG", 4), ("WEBP", 0), ("AVIF", 0), ("BMP", 0), ("GIF", 1)])
def test_no_cut_passes(small_photo: Image.Image, encode: Callable[..., bytes], kind: str, tail: int):
    """However many bytes are missing at the end, the photo is refused; only a PNG's last checksum and a GIF's end may lack."""
    data, step = encode(small_photo, kind), 7
    ends = [*range(1, len(data) - tail, max(step, len(data) // 300)), len(data) - tail - 1]
    refused = {reason(data[:end], LEARNING_LIMITS) for end in ends}
    assert refused <= {"IMAGE_TRUNCATED", "IMAGE_CORRUPT", "IMAGE_UNKNOWN_FORMAT"}


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("whole_stream", [False, True])
def test_a_png_whose_rows_stop_early_is_truncated(make_png: Callable[..., bytes], interlaced: bool, whole_stream: bool):
    """A PNG with a proper end but pixel data for half its rows is refused; Pillow would paint the rest black."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3))

    def half(raw: bytes) -> bytes:
        packed = zlib.compress(raw)
        return zlib.compress(raw[: len(raw) // 2]) if whole_stream else packed[: len(packed) // 2]

    assert reason(make_png(pixels, interlaced=interlaced, pack=half)) == "IMAGE_TRUNCATED"


def test_a_png_that_lacks_one_byte_of_pixels_is_truncated(make_png: Callable[..., bytes]):
    """The length that the header promises is checked to the byte."""
    pixels = np.zeros((5, 7, 3), int)
    assert reason(make_png(pixels, pack=lambda raw: zlib.compress(raw[:-1]))) == "IMAGE_TRUNCATED"
    crop_encoded(make_png(pixels), SPEC)


def test_a_png_with_damaged_pixel_data_is_corrupt(make_png: Callable[..., bytes]):
    """Pixel data that are no zlib stream are refused as corrupt."""
    assert reason(make_png(np.zeros((5, 7, 3), int), pack=lambda raw: b"\x78\x9c" + b"\xff" * 60)) == "IMAGE_CORRUPT"


def test_a_chunk_without_a_name_is_corrupt(make_png: Callable[..., bytes]):
    """A chunk without a name amid the pixels is refused like any other damage."""
    good = make_png(np.random.default_rng(0).integers(0, 256, (40, 30, 3)))
    at = good.index(b"IDAT") - 4
    body = good[at + 8 : good.index(b"IEND") - 8]
    nameless = good[:at] + b"".join(
        _chunk(kind, part) for kind, part in ((b"IDAT", body[:900]), (b"\1\2\3\4", b""), (b"IDAT", body[900:]))
    )
    assert reason(nameless + good[good.index(b"IEND") - 4 :]) == "IMAGE_CORRUPT"


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 5), (8, 8), (17, 9), (2, 33)])
@pytest.mark.parametrize(("depth", "channels"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 2), (8, 3), (16, 4)])
def test_good_interlaced_pngs_pass(make_png: Callable[..., bytes], size: tuple[int, int], depth: int, channels: int):
    """Adam7 PNGs of every depth, also of sizes where passes are empty, decode as their plain twins do."""
    pixels = np.random.default_rng(0).integers(0, 1 << depth, (*size, channels))
    plain, interlaced = (np.asarray(decode(make_png(pixels, depth, woven))) for woven in (False, True))
    assert np.array_equal(plain, interlaced)


def test_too_many_bytes_are_refused(small_photo: Image.Image, encode: Callable[..., bytes]):
    """The byte cap counts the whole file: one byte below its size refuses it, its size does not."""
    data = encode(small_photo, "PNG")
    assert reason(data, ImageLimits(max_bytes=len(data) - 1)) == "IMAGE_TOO_MANY_BYTES"
    crop_encoded(data, SPEC, ImageLimits(max_bytes=len(data)))
    assert reason(bytes(ImageLimits().max_bytes + 1)) == "IMAGE_TOO_MANY_BYTES"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"])
def test_too_many_pixels_are_refused(small_photo: Image.Image, encode: Callable[..., bytes], kind: str):
    """Both the number of pixels and the longer side are capped, exactly."""
    data, (width, height) = encode(small_photo, kind), small_photo.size
    for limits in (ImageLimits(max_pixels=width * height - 1), ImageLimits(max_side=width - 1)):
        assert reason(data, replace(limits, formats=FORMATS)) == "IMAGE_TOO_MANY_PIXELS"
    crop_encoded(data, SPEC, ImageLimits(max_pixels=width * height, max_side=width, formats=FORMATS))


def test_the_memory_that_decoding_takes_is_bounded(
    small_photo: Image.Image, encode: Callable[..., bytes], make_png: Callable[..., bytes]
):
    """Whatever takes the memory of several pixels for one is refused at a smaller size; a large JPEG is decoded small."""
    width, height = small_photo.size
    whole, spec = width * height, Preprocess(resize=8, crop=8)
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = make_png(np.zeros((height, width, 3), int), trns=bytes(6))
    for data, pixels in (
        (encode(small_photo, "PNG"), whole),
        (encode(small_photo.convert("RGBA"), "PNG"), 2 * whole),
        (clear, 2 * whole),
        (encode(small_photo, "WEBP"), 4 * whole),
        (encode(small_photo, "PNG", exif=turned), 2 * whole),
        (encode(small_photo, "JPEG"), 32 * 22),
        (encode(small_photo, "JPEG", progressive=True, subsampling=0), 32 * 22 + math.ceil(1.5 * whole)),
        (encode(small_photo.convert("L"), "JPEG", progressive=True), 2 * 32 * 22 + whole // 2),
    ):
        assert decoding_pixels(open_image(data, spec=spec)) == pixels
        crop_encoded(data, spec, ImageLimits(max_decoded_pixels=pixels))
        with pytest.raises(ImageError, match="MB of memory") as caught:
            crop_encoded(data, spec, ImageLimits(max_decoded_pixels=pixels - 1))
        assert caught.value.reason == "IMAGE_TOO_MANY_PIXELS"


@pytest.mark.parametrize(
    ("width", "height"), [(8160, 6144), (12_000, 9000), (16_320, 12_240), (16_319, 12_239), (16_382, 3900)]
)
@pytest.mark.parametrize("turned", [1, 6])
def test_no_phones_photo_is_too_large(
    small_photo: Image.Image, encode: Callable[..., bytes], width: int, height: int, turned: int
):
    """Photos of 50, 108 and 200 megapixels and panoramas are taken, and cost a fraction of their size."""
    exif = Image.Exif()
    exif[0x0112] = turned
    jpeg = bytearray(encode(small_photo, "JPEG", exif=exif))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    opened = open_image(bytes(jpeg), spec=Preprocess())
    if turned == 1 or width * height > 100_000_000:
        assert decoding_pixels(opened) < width * height / 15


def test_bombs_cost_no_memory(
    small_photo: Image.Image, encode: Callable[..., bytes], make_png: Callable[..., bytes], tmp_path: Path
):
    """A PNG of 50,000 x 50,000, a JPEG of 65,500 x 65,500 and a WebP of 16,384 x 16,384 are refused from the header."""
    png = bytearray(make_png(np.zeros((1, 1, 1), int), depth=1))
    png[16:24] = (50_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    jpeg = bytearray(encode(small_photo, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = (65_500).to_bytes(2, "big") * 2
    webp = bytearray(encode(small_photo, "WEBP", lossless=True))
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = ((int.from_bytes(webp[at : at + 4], "little") >> 28 << 28) | (1 << 28) - 1).to_bytes(
        4, "little"
    )
    files = [tmp_path / name for name in ("png", "jpeg", "webp")]
    for file, data in zip(files, (png, jpeg, webp), strict=True):
        file.write_bytes(data)
    done = subprocess.run([sys.executable, "-c", _PEAK, *files], capture_output=True, text=True, check=True)
    verdicts = [line.split() for line in done.stdout.splitlines()]
    assert [word for word, _ in verdicts] == ["IMAGE_TOO_MANY_PIXELS"] * 3
    assert max(int(grown) for _, grown in verdicts) < 64


def test_too_many_scans_are_refused(small_photo: Image.Image, encode: Callable[..., bytes]):
    """A JPEG of 64 scans is decoded, one of 65 is refused."""
    progressive = encode(small_photo, "JPEG", progressive=True)
    assert crop_encoded(_scans(progressive, 64), SPEC).shape == (32, 32, 3)
    assert reason(_scans(progressive, 65)) == "IMAGE_TOO_MANY_SCANS"


def test_scans_are_counted_inside_the_picture_only(small_photo: Image.Image, encode: Callable[..., bytes]):
    """Bytes behind a JPEG's end, such as a phone's motion video, and its metadata hold no scans, whatever they look like."""
    lookalikes = b"\xff\xda" * 100
    film, profile = encode(small_photo, "JPEG"), encode(small_photo, "JPEG", icc_profile=lookalikes)
    for data in (film + lookalikes, film + b"\0\2" + b"\xff\xda\0\2" * 100, profile):
        assert crop_encoded(data, SPEC).shape == (32, 32, 3)
