"""Colors of ICC profiles: converted to sRGB where a bundle was made so, and ignored where they cannot be read."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms
from tests.attacks.heifs import box, built, coded
from tests.fixtures.profiles import ADOBE_RGB, DISPLAY_P3, SRGB, SRGB_CURVE, curve, parametric, profile

from penult.bundle.guards import LEARNING_LIMITS
from penult.bundle.preprocess import SRGB as IN_SRGB
from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.bundle.profiles import MAX_PROFILE_BYTES, conversion

STORED, CONVERTED = Preprocess(64, 64), Preprocess(64, 64, colors=IN_SRGB)
_GAMMA = (curve(round(2.2 * 256)),) * 3
_TABLE = (curve(*(round(65535 * (step / 1023) ** 1.8) for step in range(1024))),) * 3


def _littlecms(pixels: np.ndarray, data: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(data))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    made = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), made))


@pytest.mark.parametrize(
    "data",
    [
        profile(),
        profile(ADOBE_RGB, (curve(563),) * 3),
        profile(SRGB, _GAMMA),
        profile(SRGB, _TABLE),
        profile(DISPLAY_P3, (parametric(0, 2.0),) * 3),
        profile(DISPLAY_P3, (curve(),) * 3),
    ],
    ids=["display-p3", "adobe-rgb", "gamma", "table", "function", "linear"],
)
def test_colors_are_those_of_littlecms(data: bytes):
    """Within two gray levels: littleCMS interpolates on a grid."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    convert = conversion(data)
    assert convert is not None
    assert np.abs(convert(pixels).astype(int) - _littlecms(pixels, data)).max() <= 2


def test_white_gray_and_black_stay():
    """Display P3 differs from sRGB in its primaries alone."""
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    convert = conversion(profile())
    assert convert is not None
    assert np.abs(convert(gray).astype(int) - gray).max() <= 1


@pytest.mark.parametrize("shipped", [profile(SRGB), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_srgb_changes_no_pixel(shipped: bytes):
    """A profile of sRGB, as most have it, is none to convert."""
    assert conversion(shipped) is None


def _damaged() -> dict[str, bytes]:
    good = profile()
    at = good.index(b"rXYZ")
    return {
        "empty": b"",
        "noise": np.random.default_rng(0).bytes(548),
        "zeros": bytes(548),
        "cut": good[: len(good) // 2],
        "too-large": good + bytes(MAX_PROFILE_BYTES),
        "gray": profile(space=b"GRAY"),
        "cmyk": profile(space=b"CMYK"),
        "lookup-table": profile(more={b"A2B0": b"mft2" + bytes(99)}),
        "no-primary": good[:at] + b"xxxx" + good[at + 4 :],
        "far-tag": good[: at + 4] + struct.pack(">I", 2**32 - 1) + good[at + 8 :],
        "many-tags": good[:128] + struct.pack(">I", 2**32 - 1) + good[132:],
        "not-white": profile([(0.9, 0.1, 0.1)] * 3),
        "falling": profile(curves=(curve(65535, 0),) * 3),
        "flat": profile(curves=(curve(9, 9),) * 3),
        "curve-of-billions": profile(curves=(b"curv" + bytes(4) + struct.pack(">I", 2**32 - 1),) * 3),
        "function-9": profile(curves=(parametric(9, 2.4),) * 3),
        "infinite": profile(curves=(parametric(0, -2.4),) * 3),
        "text-as-curve": profile(curves=(b"text" + bytes(99), SRGB_CURVE, SRGB_CURVE)),
    }


@pytest.mark.parametrize("name", [name for name in _damaged() if name != "many-tags"])
def test_a_profile_that_cannot_be_read_is_ignored(small_photo: Image.Image, encode: Callable[..., bytes], name: str):
    """Damaged, too large or of another kind: no error, and the pixels are those without it."""
    data = _damaged()[name]
    assert conversion(data) is None
    plain, marked = encode(small_photo, "PNG"), encode(small_photo, "PNG", icc_profile=data)
    assert np.array_equal(crop_encoded(marked, CONVERTED), crop_encoded(plain, STORED))


def test_a_profile_of_billions_of_tags_is_read_up_to_its_end():
    """What the directory claims is not reserved, and tags behind the first hundred are not read."""
    assert conversion(_damaged()["many-tags"]) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_format_carries_its_profile(photo: Image.Image, encode: Callable[..., bytes], kind: str):
    """The same colors stored in Display P3 give the crop of the photo in sRGB, if the bundle was made so."""
    p3 = ImageCms.profileToProfile(photo.convert("RGB"), ImageCms.createProfile("sRGB"), _opened(profile()))
    assert p3 is not None
    options = {} if kind in ("TIFF", "PNG") else {"quality": 95} | ({"subsampling": 0} if kind == "JPEG" else {})
    data = encode(p3, kind, icc_profile=profile(), **options)
    expected = crop_encoded(encode(photo.convert("RGB"), "PNG"), STORED).astype(int)
    stored, converted = (crop_encoded(data, spec, LEARNING_LIMITS).astype(int) for spec in (STORED, CONVERTED))
    off = np.abs(converted - expected).mean()
    assert off < np.abs(stored - expected).mean() / 2
    assert off < 3
    assert np.array_equal(stored, crop_encoded(encode(p3, kind, **options), STORED, LEARNING_LIMITS))


def test_heic_carries_its_profile():
    """As an iPhone stores it, in a box."""
    spec = Preprocess(72, 72)
    plain, marked = (built("heic", coded("heic").item(*more)) for more in ((), (box(b"colr", b"prof", profile()),)))
    convert = conversion(profile())
    assert convert is not None
    expected = convert(crop_encoded(plain, spec, LEARNING_LIMITS))
    assert np.array_equal(crop_encoded(marked, Preprocess(72, 72, colors=IN_SRGB), LEARNING_LIMITS), expected)


def test_a_profile_in_parts_is_joined(photo: Image.Image, encode: Callable[..., bytes]):
    """A JPEG's profile may come in parts; if one is missing it is ignored."""
    data, whole = encode(photo, "JPEG"), profile()

    def marked(*parts: tuple[int, int, bytes]) -> bytes:
        segments = (b"ICC_PROFILE\0" + bytes(place[:2]) + place[2] for place in parts)
        return data[:2] + b"".join(b"\xff\xe2" + struct.pack(">H", len(s) + 2) + s for s in segments) + data[2:]

    one = crop_encoded(encode(photo, "JPEG", icc_profile=whole), CONVERTED)
    assert np.array_equal(crop_encoded(marked((1, 2, whole[:99]), (2, 2, whole[99:])), CONVERTED), one)
    plain = crop_encoded(data, STORED)
    assert not np.array_equal(plain, one)
    for parts in (((1, 2, whole),), ((2, 2, whole[99:]), (1, 2, whole[:99])), ((1, 1, b""),)):
        assert np.array_equal(crop_encoded(marked(*parts), CONVERTED), plain)


def _opened(data: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(data))
