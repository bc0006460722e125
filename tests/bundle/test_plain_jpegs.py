"""Plain JPEGs are decoded by libjpeg-turbo alone: same pixels, same refusals as with Pillow."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from tests.attacks.jpegs import all_jpegs, with_front

from penult.bundle import plain_jpegs
from penult.bundle.errors import ImageError
from penult.bundle.plain_jpegs import PlainJpeg
from penult.bundle.preprocess import Preprocess, crop_encoded, decode, open_image

SPEC = Preprocess()
# An ordinary photo; two decoded at 1/2 and 1/4; sides that are no multiples of a block; smaller than the crop.
LARGEST = (4032, 3024)
SIZES = ((500, 375), (2047, 1535), LARGEST, (333, 517), (97, 41))


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """by_pillow(function, *arguments): the outcome when every JPEG is left to Pillow."""

    def call(function: Callable[..., object], *arguments: object) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(plain_jpegs, "_plain_size", lambda _: None)
            return outcome(function, *arguments)

    return call


def outcome(function: Callable[..., object], *arguments: object) -> object:
    """Return the pixels as bytes, or the reason and text of the ImageError."""
    try:
        return np.asarray(function(*arguments)).tobytes()
    except ImageError as error:
        return error.reason, error.message


@pytest.mark.parametrize(
    ("size", "sampling"),
    [
        (size, each)
        for size in SIZES
        for each in ("444", "422", "420", "440", "411")
        if size != LARGEST or each == "420"
    ],
)
def test_pixels_are_pillows(photo: Image.Image, by_pillow: Callable[..., object], size: tuple[int, int], sampling: str):
    """Crop and whole picture are equal byte by byte, whatever the chroma's resolution, also where scaled."""
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC))
    data = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling=sampling)
    assert isinstance(open_image(data, spec=SPEC), PlainJpeg)
    assert outcome(crop_encoded, data, SPEC) == by_pillow(crop_encoded, data, SPEC)
    assert outcome(decode, data) == by_pillow(decode, data)


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 5},
        {"quality": 100, "optimize": True},
        {"restart_marker_blocks": 3},
        {"restart_marker_rows": 1, "comment": b"a comment", "icc_profile": bytes(2000)},
        {"keep_rgb": True, "subsampling": 0},
    ],
)
def test_what_encoders_write_is_equal_too(
    photo: Image.Image, encode: Callable[..., bytes], by_pillow: Callable[..., object], options: dict[str, object]
):
    """Qualities, tables, restart markers, metadata, RGB instead of YCbCr, and all orientations of EXIF."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(photo, "JPEG", exif=exif, **options)
        assert isinstance(open_image(data), PlainJpeg)
        assert outcome(crop_encoded, data, SPEC) == by_pillow(crop_encoded, data, SPEC)


def test_other_jpegs_are_left_to_pillow(photo: Image.Image, encode: Callable[..., bytes]):
    """Grey, CMYK, progressive and tiny ones, those without an end, and large ones that may be damaged."""
    plain = encode(photo, "JPEG")
    others = [
        encode(photo.convert("L"), "JPEG"),
        encode(photo.convert("CMYK"), "JPEG"),
        encode(photo, "JPEG", progressive=True),
        encode(photo.resize((15, 400)), "JPEG"),
        encode(Image.new("RGB", (8000, 6400)), "JPEG"),
        plain[:-2],
        with_front(plain, plain[plain.index(b"\xff\xc0") :][:19]),  # a frame header of its own, before the real one
    ]
    assert isinstance(open_image(plain), PlainJpeg)
    assert not [place for place, data in enumerate(others) if isinstance(open_image(data), PlainJpeg)]


def test_pillow_alone_is_enough(photo: Image.Image, encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch):
    """Without simplejpeg every JPEG is left to Pillow, and the crop stays the same."""
    data = encode(photo, "JPEG")
    crop = crop_encoded(data, SPEC)
    monkeypatch.setattr(plain_jpegs, "simplejpeg", None)
    assert not isinstance(open_image(data), PlainJpeg)
    assert np.array_equal(crop_encoded(data, SPEC), crop)


@pytest.mark.system
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
def test_the_corpus_ends_as_with_pillow(by_pillow: Callable[..., object]):
    """Attacks and odd JPEGs: the same pixels, or the same reason and text."""
    for case in all_jpegs():
        assert outcome(crop_encoded, case.data, SPEC) == by_pillow(crop_encoded, case.data, SPEC), case.name


def test_damage_is_judged_by_pillow(
    photo: Image.Image, encode: Callable[..., bytes], by_pillow: Callable[..., object], monkeypatch: pytest.MonkeyPatch
):
    """What libjpeg-turbo warns of or refuses is decoded again: 600 damaged files end as they do with Pillow alone."""
    asked, decode_with_pillow = [], PlainJpeg._decode_with_pillow
    monkeypatch.setattr(
        PlainJpeg, "_decode_with_pillow", lambda image: (asked.append(image), decode_with_pillow(image))[1]
    )
    random, ends = np.random.default_rng(20), set()
    whole = encode(photo.resize((90, 60)), "JPEG", quality=80, restart_marker_rows=2)
    for _ in range(600):
        data = bytearray(whole)
        for place in random.integers(2, len(data) - 2, random.integers(1, 4)):
            data[place] = random.integers(256)
        found = outcome(decode, bytes(data))
        assert found == by_pillow(decode, bytes(data))
        ends.add(found[0] if isinstance(found, tuple) else "")
    assert len(asked) > 50
    assert {"", "IMAGE_CORRUPT"} <= ends
