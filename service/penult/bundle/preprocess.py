"""From an encoded photo to the network's input: the one implementation that training and serving share.

bytes → guards → the parts that pixels need → decode (upright, 8-bit RGB) → resize and crop → uint8 [crop, crop, 3]

If the bundle was made so, the crop is converted to sRGB. Scaling to 0..1 and normalising are inside the ONNX graph.
Pillow decodes, because of the decoders measured it alone (guarded) failed on none of 139 bad files
(research/reliability.md, section 3). Of undamaged baseline JPEGs, which are nearly all, simplejpeg returns the same
pixels in less CPU time (plain_jpegs.py). Resizing computes only the cropped part, which is within one grey level of
torchvision's Resize + CenterCrop on Pillow images (research/ceilings.md, section 3). JPEGs are decoded at 1/2, 1/4 or
1/8 if at least twice the needed size is left. The crop then differs by less than half a grey level on average.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from penult.bundle.containers import Stored
from penult.bundle.errors import ImageError
from penult.bundle.formats import title
from penult.bundle.guards import DEFAULT_LIMITS, ImageLimits, check_png_complete, check_webp_complete, webp_size
from penult.bundle.opening import open_stored, walk
from penult.bundle.profiles import conversion

# Our own limits are checked on the header, before Pillow's warning could fire.
Image.MAX_IMAGE_PIXELS = None
# Pillow keeps an image in blocks of 16 MiB, which the C library keeps for the next one, in every thread's own heap: a
# few large photos, and the process stays hundreds of MiB larger. Blocks of this size go back to the kernel instead.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]
# Pillow passes files to decoders, and pixels to NumPy, in pieces of so many bytes. A crop fits into one.
ImageFile.MAXBLOCK = 1 << 18

Pixels = NDArray[np.uint8]

# Part of the fingerprint: raise it when the pixels of usual photos change. Bundles and collections of before are then
# refused, which a rare file that was read wrongly (turned by text, the wrong colour transparent) is not worth.
PREPROCESS_VERSION = 2

# Pixels of a crop, and of the sides before it, at most.
MAX_SIDE = 4096
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
INTERPOLATIONS = tuple(_FILTERS)
CROP, STRETCH = "crop", "stretch"
FITS = (CROP, STRETCH)
# Whether pixels are taken as they are stored, or converted from the colors of an image's ICC profile.
AS_STORED, SRGB = "stored", "srgb"
COLORS = (AS_STORED, SRGB)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Below this many times the size needed, a scaled JPEG decode visibly changes pixels (ceilings.md, section 3).
_DRAFT_MARGIN = 2
_DRAFT_SCALES = (8, 4, 2)
# Where _draft() notes in an image's info what it did; no file can bring a key that is no text.
_REDUCED: Any = object()
# Where open_image() notes what decoding takes, the size as stored, and the file's parts.
_COST: Any = object()
_SIZE: Any = object()
_STORED: Any = object()
# Transparency and 16 bits are converted so many pixels at a time: several copies of all would be most of the memory.
_STRIP_PIXELS = 1 << 20


@dataclass(frozen=True)
class Preprocess:
    """The values of the manifest that turn an image into the network's input.

    The shorter side is resized to `resize` pixels, then comes a center crop of `crop` pixels. If `fit` is "stretch",
    both sides are resized to `resize`, so that the crop loses nothing of the longer side. `mean` and `std` (red, green,
    blue, for values of 0..1) are applied inside the graph. If `colors` is "srgb", crops are converted from the colors
    of an image's ICC profile. Raises ValueError on values that cannot work.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: str = CROP
    colors: str = AS_STORED

    def __post_init__(self) -> None:
        """Check the values once; later code relies on it."""
        sizes_are_whole = type(self.crop) is int and type(self.resize) is int
        if not sizes_are_whole or not 1 <= self.crop <= self.resize <= MAX_SIDE:
            raise ValueError(
                f"preprocess: crop {self.crop} and resize {self.resize} need 1 <= crop <= resize <= {MAX_SIDE}"
            )
        if self.interpolation not in _FILTERS:
            raise ValueError(f"preprocess: interpolation {self.interpolation!r} is not one of {', '.join(_FILTERS)}")
        if self.fit not in FITS:
            raise ValueError(f"preprocess: fit {self.fit!r} is not one of {', '.join(FITS)}")
        if self.colors not in COLORS:
            raise ValueError(f"preprocess: colors {self.colors!r} is not one of {', '.join(COLORS)}")
        numbers = (*self.mean, *self.std)
        if (
            len(self.mean) != 3
            or len(self.std) != 3
            or not all(math.isfinite(n) for n in numbers)
            or min(self.std) <= 0
        ):
            raise ValueError("preprocess: mean and std need three finite numbers each, std above 0")

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing, rounded as torchvision's Resize does."""
        if self.fit == STRETCH:
            return self.resize, self.resize
        short, long = min(width, height), max(width, height)
        resized_long = max(self.resize, int(self.resize * long / short))
        return (self.resize, resized_long) if width <= height else (resized_long, self.resize)

    def as_json(self) -> dict[str, Any]:
        """Return plain values. Those of before are left out: older readers, and fingerprints of before, know none."""
        old = {"fit": CROP, "colors": AS_STORED}
        return {name: value for name, value in asdict(self).items() if value != old.get(name)}


class Reduced(NamedTuple):
    """What a photo's size is, in pixels, where it was decoded at 1/scale."""

    width: int
    height: int
    scale: int


def crop_encoded(data: bytes, spec: Preprocess, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode an image and return the network's input, uint8 [crop, crop, 3]; raise ImageError."""
    return crop_opened(open_image(data, limits, spec), spec)


def crop_opened(image: Image.Image, spec: Preprocess) -> Pixels:
    """Decode what open_image() returned and return the network's input, uint8 [crop, crop, 3]; raise ImageError."""
    return in_srgb(crop_image(_load(image), spec, image.info.get(_REDUCED)), image, spec)


def in_srgb(pixels: Pixels, opened: Image.Image, spec: Preprocess) -> Pixels:
    """Convert pixels [..., 3] of what open_image() returned to sRGB, if `spec` says so and it has such a profile.

    Of a large photo the crop is converted and not the whole, which differs by less than a gray level.
    """
    convert = conversion(profile_of(opened)) if spec.colors == SRGB else None
    return convert(pixels) if convert else pixels


def profile_of(opened: Image.Image) -> bytes:
    """Return the ICC profile of what open_image() returned; empty if it has none, or one that is too large."""
    profile: bytes = opened.info[_STORED].profile
    return profile


def crop_rgb(rgb: bytes, height: int, width: int, spec: Preprocess, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Return the network's input, uint8 [crop, crop, 3], from height * width * 3 bytes of RGB; raise ImageError."""
    _check_rgb(rgb, height, width, limits)
    return crop_image(Image.frombuffer("RGB", (width, height), rgb, "raw", "RGB", 0, 1), spec)


def ready_crop(rgb: bytes, height: int, width: int, spec: Preprocess, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Return bytes that are the network's input already as uint8 [crop, crop, 3], uncopied; raise ImageError."""
    _check_rgb(rgb, height, width, limits)
    if height != spec.crop or width != spec.crop:
        raise ImageError(
            "IMAGE_NO_CROP",
            f"the model needs {spec.crop} x {spec.crop} pixels and these are {height} x {width}; leave is_crop out",
        )
    return np.frombuffer(rgb, dtype=np.uint8).reshape(height, width, 3)


def _check_rgb(rgb: bytes, height: int, width: int, limits: ImageLimits) -> None:
    limits.check_size(width, height)
    if len(rgb) != height * width * 3:
        raise ImageError(
            "IMAGE_WRONG_LENGTH",
            f"raw RGB of {height} x {width} needs {height * width * 3:,} bytes; {len(rgb):,} were sent",
        )


def crop_image(image: Image.Image, spec: Preprocess, reduced: Reduced | None = None) -> Pixels:
    """Resize and crop an upright RGB image; return uint8 [crop, crop, 3].

    `reduced` describes an image decoded at 1/scale whose sides are no multiples of scale. The crop is that of the full
    size.
    """
    if image.size == (spec.crop, spec.crop) and spec.crop == spec.resize:
        return np.asarray(image)
    width, height, scale = (*image.size, 1) if reduced is None else (reduced.width, reduced.height, reduced.scale)
    resized_width, resized_height = spec.resized_size(width, height)
    left, top = round((resized_width - spec.crop) / 2), round((resized_height - spec.crop) / 2)
    across, down = width / resized_width / scale, height / resized_height / scale
    box = (left * across, top * down, (left + spec.crop) * across, (top + spec.crop) * down)
    # The far edges may exceed the image by a rounding error, which Pillow refuses.
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    return np.asarray(image.resize((spec.crop, spec.crop), _FILTERS[spec.interpolation], box=box))


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, spec: Preprocess | None = None) -> Image.Image:
    """Decode an image to an upright 8-bit RGB in its own colors; raise ImageError, whatever the bytes are.

    It comes at full size, but with `spec` a JPEG much larger than needed comes at a fraction of it.
    """
    return _load(open_image(data, limits, spec))


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, spec: Preprocess | None = None) -> Image.Image:
    """Read a photo's header and check it against the limits; no pixel is decoded yet.

    With `spec`, a JPEG much larger than needed will be decoded at a fraction of its size. `decoding_pixels()` returns
    what decoding will allocate. Raises ImageError.
    """
    limits.check_bytes(len(data))
    kind = limits.check_format(data)
    if kind == "WEBP":
        check_webp_complete(data)
    stored = walk(data, kind)
    if kind == "WEBP":
        limits.check_size(*webp_size(stored))  # libwebp allocates the whole canvas, twice, when it opens a file
    if stored.size:
        limits.check_size(*stored.size)
        limits.check_cost(stored.decoding_pixels, title(kind))
    image = open_stored(stored, kind)
    limits.check_size(*image.size)
    whole = image.width * image.height
    image.info[_STORED], image.info[_SIZE] = stored, image.size
    if kind == "JPEG":
        if _has_many_scans(image):  # else libjpeg refuses a second one
            limits.check_scans(data, stored.first_scan)
        if spec:
            _draft(image, spec, limits)
    image.info[_COST] = _cost(image, kind, whole)
    limits.check_cost(decoding_pixels(image), title(kind))
    if kind == "PNG":
        check_png_complete(stored)
    return image


def decode_opened(image: Image.Image) -> Image.Image:
    """Decode what open_image() returned, as decode() does."""
    return _load(image)


def upright_size(opened: Image.Image) -> tuple[int, int]:
    """Return width and height, in pixels, of what open_image() returned, at full size and upright."""
    width, height = opened.info[_SIZE]
    return (height, width) if opened.info[_STORED].orientation >= 5 else (width, height)


def decoding_pixels(image: Image.Image) -> int:
    """Return what decoding an image that open_image() returned allocates at most, in pixels of 4 bytes."""
    return int(image.info[_COST])


def _cost(image: Image.Image, kind: str, whole: int) -> int:
    """Measured with photos of 49 million pixels (bench/RESULTS.md); an image is kept at 4 bytes a pixel by Pillow."""
    decoded = image.width * image.height
    stored: Stored = image.info[_STORED]
    if stored.size:
        return stored.decoding_pixels + (decoded if stored.orientation in _UPRIGHT else 0)
    if kind == "WEBP":  # two canvases of libwebp's, their copy, and the image
        return 4 * decoded
    is_changed = stored.orientation in _UPRIGHT or "transparency" in image.info
    pixels = decoded if image.mode == "RGB" and not is_changed else 2 * decoded
    return pixels + _coefficients(image, whole) if _has_many_scans(image) else pixels


def _has_many_scans(image: Image.Image) -> bool:
    """Return whether one scan of a JPEG is not all of it: libjpeg then keeps the coefficients of all scans."""
    return isinstance(image, JpegImageFile) and (
        "progressive" in image.info or image.info[_STORED].scan_components < image.layers
    )


def _coefficients(image: Image.Image, whole: int) -> int:
    """Return the memory of all coefficients of a JPEG, 2 bytes each, in pixels of 4 bytes."""
    layers = image.layer  # type: ignore[attr-defined]
    across, down = (max(1, *(layer[side] for layer in layers), 1) for side in (1, 2))
    samples_per_pixel: float = sum(max(1, layer[1]) * max(1, layer[2]) for layer in layers) / (across * down)
    return math.ceil(whole * samples_per_pixel / 2)


def _draft(image: Image.Image, spec: Preprocess, limits: ImageLimits) -> None:
    """Set a JPEG to be decoded at 1/8, 1/4 or 1/2 if that is enough.

    If the scale does not divide a side, the last row or column is partial, and the crop would shift. So the full size
    is kept for crop_image(). If the image is turned or mirrored, the partial row may come first. Such an image is
    decoded whole, unless that takes too much memory: then the crop shifts by less than a pixel.
    """
    width, height = image.size
    for scale in _DRAFT_SCALES:
        if min(width, height) // scale < _DRAFT_MARGIN * spec.resize:
            continue
        divides = width % scale == 0 == height % scale
        is_turned = image.info[_STORED].orientation in _UPRIGHT
        if divides or not is_turned or 2 * width * height > limits.max_decoded_pixels:
            image.draft(None, (width // scale, height // scale))
            if not (divides or is_turned):
                image.info[_REDUCED] = Reduced(width, height, scale)
            return


def _load(image: Image.Image) -> Image.Image:
    """Decode an opened image to upright 8-bit RGB, transparency laid on white; raise ImageError, and MemoryError."""
    try:
        stored = image.info[_STORED]
        image.load()
        if stored.transparency and image.mode != "P":
            _set_key(image, stored)
        rgb = _to_rgb(image)
        if rgb is not image:
            image.close()  # its pixels: nobody needs both, and large photos are large twice
        return rgb.transpose(_UPRIGHT[stored.orientation]) if stored.orientation in _UPRIGHT else rgb
    except (MemoryError, ImageError):  # the former is not the photo's fault
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, … on bad bytes
        if "truncated" in str(error).lower():
            raise ImageError("IMAGE_TRUNCATED", "the image ends too early; send the whole file") from error
        raise ImageError("IMAGE_CORRUPT", "the image is damaged and cannot be decoded; send the original") from error


def _set_key(image: Image.Image, png: Stored) -> None:
    """Scale the transparent colour of a grey or RGB PNG as Pillow scales the samples; whiten 16-bit RGB.

    The key has 16 bits, of which as many count as a sample has. Pillow does not scale it.
    """
    depth, colour = png.header[8:10]
    if colour not in (0, 2):
        return
    key = [sample & (1 << depth) - 1 for sample in struct.unpack_from(">H" if colour == 0 else ">3H", png.transparency)]
    if colour == 2 and depth == 16:
        del image.info["transparency"]
        _whiten(image, png, np.array(key))
    elif colour == 2:
        image.info["transparency"] = tuple(key)
    else:
        image.info["transparency"] = key[0] * (255 // ((1 << depth) - 1) if depth < 8 else 1)


def _whiten(image: Image.Image, png: Stored, key: NDArray[Any]) -> None:
    """Make one colour of 16 bits a channel white: `image` has the samples' upper bytes, another decode the lower."""
    lower = Image.open(png.file(), formats=["PNG"])
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
    lower.load()
    for box in _strips(image):
        is_clear = (np.asarray(image.crop(box)) == key >> 8) & (np.asarray(lower.crop(box)) == key & 255)
        image.paste("white", box, Image.fromarray(np.where(is_clear.all(axis=2), 255, 0).astype(np.uint8)))


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB: 16-bit grey is divided by 257, transparency is laid on white, CMYK and palettes converted."""
    key = image.info.get("transparency")
    is_clear = image.mode in ("LA", "PA", "RGBA", "RGBa") or key is not None
    if not is_clear and not image.mode.startswith("I"):
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for box in _strips(image):
        strip = image.crop(box)
        rgb.paste(_grey16_to_rgb(strip, key) if image.mode.startswith("I") else _on_white(strip), box)
    return rgb


def _grey16_to_rgb(image: Image.Image, key: object) -> Image.Image:
    grey = np.asarray(image).astype(np.uint32)
    if isinstance(key, int):
        grey = np.where(grey == key, 65535, grey)
    return Image.fromarray(((grey + 128) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
