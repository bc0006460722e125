"""Decoding: odd but good photos give the picture that a person would see."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from penult.bundle.errors import ImageError
from penult.bundle.guards import DEFAULT_LIMITS
from penult.bundle.preprocess import Preprocess, crop_encoded, crop_image, decode, open_image

# What must be done to an upright picture so that turning it by this EXIF orientation makes it upright again.
_STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


def exif(orientation: int) -> Image.Exif:
    """Make an EXIF block that holds an orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def decoded(data: bytes) -> np.ndarray:
    """Decode and return uint8 [H, W, 3]."""
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_16_bit_grey_is_divided_by_257(make_png: Callable[..., bytes]):
    """Each of the 65,536 grey values becomes the nearest of 256, and none is clipped to white."""
    values = np.arange(65_536).reshape(256, 256, 1)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(decoded(make_png(values, depth=16)), expected.repeat(3, axis=2))


def test_16_bit_rgb_keeps_its_brightness(make_png: Callable[..., bytes]):
    """16-bit colours come out within one level of a 257th."""
    values = np.random.default_rng(0).integers(0, 65_536, (20, 30, 3))
    assert np.abs(decoded(make_png(values, depth=16)) - values / 257).max() <= 1


@pytest.mark.parametrize(("ink", "rgb"), [((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 0), (255, 255, 255)),
                                          ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))])  # fmt: skip
def test_cmyk_jpegs_have_the_right_colours(encode: Callable[..., bytes], ink: tuple[int, ...], rgb: tuple[int, ...]):
    """Inks of a CMYK JPEG become the colours they print, not their negatives."""
    data = encode(Image.new("CMYK", (40, 30), ink), "JPEG", quality=100)
    assert np.abs(decoded(data).astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(encode: Callable[..., bytes], kind: str):
    """Transparent is white, opaque keeps its colour, half-way is the mean, whatever colour hides below."""
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    pixels[0, :, 0] = 40
    rgb = decoded(
        encode(Image.fromarray(pixels), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    )
    assert np.abs(rgb[0].astype(int) - [[255, 255, 255], [147, 127, 127], [40, 0, 0]]).max() <= 1


def test_grey_with_alpha_is_laid_on_white(make_png: Callable[..., bytes]):
    """Grey with alpha behaves as colour does, at 8 and at 16 bits."""
    pixels = np.array([[[0, 0], [0, 255], [200, 255]]])
    for depth, factor in ((8, 1), (16, 257)):
        rgb = decoded(make_png(pixels * factor, depth))
        assert rgb[0].tolist() == [[255] * 3, [0] * 3, [200] * 3]


def test_a_palette_with_transparency_is_laid_on_white(make_png: Callable[..., bytes]):
    """Palette entries keep their colours; transparent ones are white."""
    palette = bytes([10, 20, 30, 0, 0, 0, 200, 100, 0])
    rgb = decoded(make_png(np.array([[[0], [1], [2]]]), 2, palette=palette, trns=bytes([255, 0])))
    assert rgb[0].tolist() == [[10, 20, 30], [255, 255, 255], [200, 100, 0]]


@pytest.mark.parametrize(("depth", "channels"), [(1, 1), (8, 1), (16, 1), (8, 3)])
def test_a_transparent_key_colour_is_laid_on_white(make_png: Callable[..., bytes], depth: int, channels: int):
    """A PNG may name one colour as transparent (tRNS) in grey and RGB too: those pixels are white."""
    pixels = np.zeros((1, 2, channels), int)
    pixels[0, 1] = 1
    trns = struct.pack(f">{channels}H", *[0] * channels)
    assert decoded(make_png(pixels, depth, trns=trns))[0, 0].tolist() == [255, 255, 255]


def test_one_bit_is_black_and_white(make_png: Callable[..., bytes]):
    """A 1-bit picture has 0 and 255, in the right places."""
    bits = np.random.default_rng(0).integers(0, 2, (9, 13, 1))
    assert np.array_equal(decoded(make_png(bits, depth=1)), (bits * 255).repeat(3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_every_exif_orientation_gives_the_upright_picture(
    small_photo: Image.Image, encode: Callable[..., bytes], kind: str, orientation: int
):
    """A picture stored turned or mirrored, with the EXIF note of it, comes out upright."""
    upright = np.asarray(small_photo)
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](upright)))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    rgb = decoded(encode(stored, kind, exif=exif(orientation), **options))
    assert rgb.shape == upright.shape
    assert np.abs(rgb.astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)


_SENSELESS_EXIF = [
    exif(0),
    exif(9),
    b"Exif\0\0garbage",
    b"Exif\0\0II+\0\x08\0\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0a\0\0\0\0\0\0\0",  # orientation "a"
    b"Exif\0\0",
]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("block", _SENSELESS_EXIF, ids=range(len(_SENSELESS_EXIF)))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_senseless_exif_block_is_ignored(
    small_photo: Image.Image, encode: Callable[..., bytes], kind: str, block: object
):
    """An unknown orientation or a damaged block leaves the picture as it is stored."""
    plain, odd = encode(small_photo, kind), encode(small_photo, kind, exif=block)
    assert np.array_equal(decoded(odd), decoded(plain))


def test_progressive_is_baseline_in_another_order(photo: Image.Image, encode: Callable[..., bytes]):
    """A progressive JPEG decodes to the pixels of its baseline twin."""
    baseline, progressive = (encode(photo, "JPEG", progressive=flag) for flag in (False, True))
    assert np.array_equal(decoded(progressive), decoded(baseline))


def test_a_multi_picture_jpeg_gives_its_first(photo: Image.Image, encode: Callable[..., bytes]):
    """What phones write with a second picture behind the first (MPO) is a JPEG like any other."""
    both = encode(photo, "MPO", save_all=True, append_images=[Image.new("RGB", (640, 427))])
    assert np.array_equal(decoded(both), decoded(encode(photo, "JPEG")))


def test_an_animated_webp_gives_its_first_picture(encode: Callable[..., bytes]):
    """Of an animation the first picture counts."""
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    data = encode(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    assert decoded(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (16_384, 1), (1, 16_384), (3, 2)])
def test_extreme_shapes_fill_the_crop(encode: Callable[..., bytes], size: tuple[int, int]):
    """The smallest and the longest pictures become a full crop of their own colour."""
    crop = crop_encoded(encode(Image.new("RGB", size, (200, 100, 50)), "PNG"), Preprocess())
    assert crop.shape == (224, 224, 3)
    assert (crop == [200, 100, 50]).all()


@pytest.mark.parametrize(
    ("size", "opened"),
    [
        ((4000, 3000), (1000, 750)),
        ((4480, 2990), (1120, 748)),
        ((4480, 2989), (1120, 748)),
        ((2047, 1535), (1024, 768)),
        ((1501, 1021), (1501, 1021)),
    ],
)
def test_large_jpegs_are_decoded_small(
    photo: Image.Image, encode: Callable[..., bytes], size: tuple[int, int], opened: tuple[int, int]
):
    """Large JPEGs are decoded at a part of their size, and the crop changes by less than half a grey level.

    Also where the factor does not divide a side, so that the small picture's last row or column is a part of one.
    """
    spec, data = Preprocess(), encode(photo.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=92)
    assert open_image(data, DEFAULT_LIMITS, spec).size == opened
    difference = np.abs(crop_encoded(data, spec).astype(int) - crop_image(decode(data), spec))
    assert difference.mean() < 0.5
    assert difference.max() <= 8
    assert (difference.mean() > 0) == (opened != size)


def test_a_stretched_photo_is_decoded_small_too(photo: Image.Image, encode: Callable[..., bytes]):
    """Nor does a small decode shift or change it, where the factor divides no side."""
    spec = Preprocess(resize=224, crop=224, fit="stretch")
    data = encode(photo.resize((2047, 1535), Image.Resampling.BICUBIC), "JPEG", quality=92)
    assert open_image(data, DEFAULT_LIMITS, spec).size == (1024, 768)
    difference = np.abs(crop_encoded(data, spec).astype(int) - crop_image(decode(data), spec))
    assert 0 < difference.mean() < 0.5
    assert difference.max() <= 8


@pytest.mark.parametrize("size", [(1370, 1029), (1371, 1030), (1369, 1027)])
def test_a_small_decode_does_not_shift_the_crop(
    photo: Image.Image, encode: Callable[..., bytes], size: tuple[int, int]
):
    """Of the crops shifted by a fraction of a pixel, the one that a scaled decode gives fits an unshifted one best."""
    spec, data = Preprocess(), encode(photo.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=95)
    assert open_image(data, DEFAULT_LIMITS, spec).size == (-(-size[0] // 2), -(-size[1] // 2))
    full, found = decode(data), crop_encoded(data, spec).astype(int)

    def off_by(shift: float) -> float:
        moved = full.transform(full.size, Image.Transform.AFFINE, (1, 0, shift, 0, 1, shift), Image.Resampling.BICUBIC)
        return float(np.abs(found - crop_image(moved, spec)).mean())

    assert off_by(0) < min(off_by(-0.5), off_by(0.5))


@pytest.mark.parametrize(("orientation", "opened"), [(1, (1024, 768)), (3, (2047, 1535)), (6, (2047, 1535))])
def test_turned_photos_are_decoded_small_where_the_factor_divides(
    photo: Image.Image, encode: Callable[..., bytes], orientation: int, opened: tuple[int, int]
):
    """A photo that will be turned is only decoded small where no part of a row or column is left over."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo.resize((2047, 1535)), "JPEG", exif=exif)
    assert open_image(data, DEFAULT_LIMITS, Preprocess()).size == opened
    even = encode(photo.resize((2048, 1536)), "JPEG", exif=exif)
    assert open_image(even, DEFAULT_LIMITS, Preprocess()).size == (1024, 768)


@pytest.mark.parametrize(
    ("side", "opened"), [(1023, 1023), (1024, 512), (1025, 513), (2046, 1023), (2047, 1024), (2048, 512)]
)
def test_a_small_decode_keeps_twice_the_size_needed(encode: Callable[..., bytes], side: int, opened: int):
    """JPEGs are never decoded below twice the resize, and PNGs always at full size."""
    image, spec = Image.new("RGB", (side, side)), Preprocess(resize=256, crop=224)
    assert open_image(encode(image, "JPEG"), DEFAULT_LIMITS, spec).size == (opened, opened)
    assert open_image(encode(image, "PNG"), DEFAULT_LIMITS, spec).size == (side, side)
    assert open_image(encode(image, "JPEG"), DEFAULT_LIMITS).size == (side, side)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_mutated_photos_raise_nothing_but_image_errors(
    small_photo: Image.Image, encode: Callable[..., bytes], kind: str
):
    """400 photos with bytes changed, cut out or put in (seeded) give a crop of the right shape or an ImageError."""
    spec, good, verdicts = Preprocess(resize=32, crop=24), encode(small_photo, kind), set()
    for seed in range(400):
        data, rng = bytearray(good), np.random.default_rng(seed)
        for _ in range(rng.integers(1, 6)):
            at, length = int(rng.integers(len(data))), int(rng.integers(1, 4))
            data[at : at + length * int(rng.integers(2))] = rng.bytes(length)
        try:
            assert crop_encoded(bytes(data), spec).shape == (24, 24, 3)
            verdicts.add("decoded")
        except ImageError as error:
            verdicts.add(error.reason)
    assert {"IMAGE_CORRUPT"} < verdicts
