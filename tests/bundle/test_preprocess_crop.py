"""Resizing and cropping: within one grey level of torchvision's transforms, from a file or from raw pixels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penult.bundle.errors import ImageError
from penult.bundle.guards import ImageLimits
from penult.bundle.preprocess import Preprocess, crop_encoded, crop_image, crop_rgb

_SIZES = [
    (640, 427),
    (427, 640),
    (256, 256),
    (224, 224),
    (255, 257),
    (33, 1000),
    (1000, 33),
    (1001, 999),
    (20, 15),
    (1, 7),
]


@pytest.fixture
def differences() -> Callable[[Image.Image, Preprocess], np.ndarray]:
    """Return the grey levels between our crop of a picture and torchvision's."""
    from torchvision import transforms

    def differ(image: Image.Image, spec: Preprocess) -> np.ndarray:
        mode = transforms.InterpolationMode(spec.interpolation)
        size = [spec.resize] * 2 if spec.fit == "stretch" else spec.resize
        resize, crop = transforms.Resize(size, mode, antialias=True), transforms.CenterCrop(spec.crop)
        return np.abs(crop_image(image, spec).astype(int) - np.asarray(crop(resize(image))))

    return differ


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (224, 224), (32, 32), (41, 32)])
def test_the_crop_is_torchvisions(
    photo: Image.Image, differences: Callable[..., np.ndarray], size: tuple[int, int], resize: int, crop: int
):
    """Computing the cropped part alone gives Resize + CenterCrop within one grey level, whatever the shape."""
    assert differences(photo.resize(size), Preprocess(resize, crop)).max() <= 1


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (224, 224), (32, 32)])
def test_a_stretched_photo_is_torchvisions(
    photo: Image.Image, differences: Callable[..., np.ndarray], size: tuple[int, int], resize: int, crop: int
):
    """Where fit is stretch, it is torchvision's Resize to both sides, within one grey level."""
    assert differences(photo.resize(size), Preprocess(resize, crop, fit="stretch")).max() <= 1


@pytest.mark.parametrize("size", [(64, 40), (40, 64)])
def test_stretch_sees_the_edges_and_crop_does_not(size: tuple[int, int]):
    """What stands at the far ends of a long photo is in the input of one fit, and not in that of the other."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    ends = (slice(None), [0, 1, 2, -3, -2, -1]) if size[0] > size[1] else ([0, 1, 2, -3, -2, -1],)
    pixels[ends] = 255
    seen = {fit: crop_image(Image.fromarray(pixels), Preprocess(32, 32, fit=fit)).max() for fit in ("crop", "stretch")}
    assert seen["crop"] == 0
    assert seen["stretch"] > 200


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize(("resize", "interpolation"), [(232, "bilinear"), (232, "bicubic"), (256, "bicubic")])
def test_other_crops_are_torchvisions_but_for_rounding(
    photo: Image.Image, differences: Callable[..., np.ndarray], size: tuple[int, int], resize: int, interpolation: str
):
    """For bicubic and for odd factors, fewer than 1 value in 10,000 is off by more than one level, and none by four."""
    found = differences(photo.resize(size), Preprocess(resize, 224, interpolation))
    assert found.max() <= 3
    assert (found > 1).mean() < 1e-4


def test_a_picture_of_the_right_size_is_passed_on(small_photo: Image.Image):
    """Nothing is resampled where the size is right already."""
    image = small_photo.resize((32, 32))
    assert np.array_equal(crop_image(image, Preprocess(32, 32)), np.asarray(image))


@pytest.mark.parametrize("size", [(640, 427), (31, 57), (32, 32)])
def test_raw_pixels_are_treated_as_the_same_png(
    photo: Image.Image, encode: Callable[..., bytes], size: tuple[int, int]
):
    """Raw RGB, rows from the top, gives bit for bit what the same pixels give as a PNG."""
    image, spec = photo.resize(size), Preprocess(resize=32, crop=32)
    raw = crop_rgb(image.tobytes(), image.height, image.width, spec)
    assert np.array_equal(raw, crop_encoded(encode(image, "PNG"), spec))


@pytest.mark.parametrize("length", [0, 1, 17, 19, 36])
def test_raw_pixels_of_another_length_are_refused(length: int):
    """2 x 3 pixels are 18 bytes, and nothing else is accepted for them."""
    spec = Preprocess(resize=8, crop=8)
    with pytest.raises(ImageError) as caught:
        crop_rgb(bytes(length), 2, 3, spec)
    assert caught.value.reason == "IMAGE_WRONG_LENGTH"
    assert crop_rgb(bytes(18), 2, 3, spec).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("height", "width", "reason"),
    [(0, 0, "IMAGE_NO_PIXELS"), (0, 5, "IMAGE_NO_PIXELS"), (-2, -3, "IMAGE_NO_PIXELS"), (5, 65_501, "IMAGE_TOO_MANY_PIXELS"),
     (65_501, 1, "IMAGE_TOO_MANY_PIXELS"), (20_000, 20_000, "IMAGE_TOO_MANY_PIXELS")],
)  # fmt: skip
def test_raw_sizes_are_checked_before_the_length(height: int, width: int, reason: str):
    """Sizes that no picture has, or that cost too much, are refused by name, without their bytes being there."""
    with pytest.raises(ImageError) as caught:
        crop_rgb(b"\0" * 18, height, width, Preprocess())
    assert caught.value.reason == reason


def test_raw_pixels_keep_to_the_callers_limits():
    """Limits given are the limits used."""
    with pytest.raises(ImageError):
        crop_rgb(bytes(18), 2, 3, Preprocess(), ImageLimits(max_pixels=5))


@pytest.mark.parametrize(
    "values",
    [{"resize": 100, "crop": 101}, {"crop": 0}, {"resize": 4097}, {"interpolation": "nearest"}, {"mean": (0.5, 0.5)},
     {"std": (0.1, 0.1, 0.0)}, {"std": (0.1, 0.1, -1.0)}],
)  # fmt: skip
def test_values_that_cannot_work_are_refused(values: dict[str, Any]):
    """Preprocessing values are checked when they are made."""
    with pytest.raises(ValueError, match="preprocess: "):
        Preprocess(**values)
