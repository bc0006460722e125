"""Images for the goldens of an imported model: some of a folder without labels, or made-up ones."""

import io
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from penult.bundle.preprocess import Preprocess
from penult.export.data.label_file import is_label_file
from penult.export.errors import DataError
from penult.folders.walk import walk

_COUNT = 32
_SHAPES = 12


def is_unlabelled(photos: Path) -> bool:
    """Return True if a folder has images and none in folders below it; raise DataError if it is no folder."""
    if is_label_file(photos):
        return False
    if not photos.is_dir():
        raise DataError("PHOTOS", f"--photos {photos} is not a folder; give one, or a label file")
    entries = [entry.path for entry in walk(photos, "")]
    return bool(entries) and not any("/" in path for path in entries)


def some_images(folder: Path, count: int) -> list[bytes]:
    """Return the first images of a folder, as files."""
    return [(folder / entry.path).read_bytes() for entry in islice(walk(folder, ""), count)]


def made_up_images(spec: Preprocess) -> list[bytes]:
    """Return images of colored shapes as PNG files, always the same ones for the same preprocessing."""
    height, width = spec.resize, spec.resize * 4 // 3
    return [_made_up(np.random.default_rng(seed), width, height) for seed in range(_COUNT)]


def _made_up(random: np.random.Generator, width: int, height: int) -> bytes:
    image = Image.new("RGB", (width, height), _color(random))
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        left, top = int(random.integers(width)), int(random.integers(height))
        box = (left, top, left + int(random.integers(1, width)), top + int(random.integers(1, height)))
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=_color(random))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _color(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue
