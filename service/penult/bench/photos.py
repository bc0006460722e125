"""The images to send: those of a folder, noise, or synthetic JPEGs that cost as much as photos."""

import io
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penult.bench.settings import BenchError
from penult.extras import how_to_install
from penult.folders.names import PHOTOS
from penult.folders.walk import LeftOut, walk

# Everything sent stays in memory.
_MAX_BYTES = 256 << 20
_MADE_UP = 16
_HEIGHT, _WIDTH = 375, 500
# Rows and amplitudes of the octaves, with the spectrum of photos. With quality 90 a file has about 46 KB, so that
# decoding, whose cost depends on bytes and pixels, costs as much as for a photo of this size.
_OCTAVES = ((4, 90.0), (12, 45.0), (40, 22.0), (130, 14.0), (375, 7.0))
_QUALITY = 90


def read_folder(folder: Path, seed: int) -> list[bytes]:
    """Return the photo files below `folder`, in random order, up to 256 MiB of them. Raises BenchError."""
    paths = paths_in(folder)
    # Otherwise a folder would be sent class by class.
    random.Random(seed).shuffle(paths)
    files: list[bytes] = []
    left = _MAX_BYTES
    for path in paths:
        try:
            files.append(path.read_bytes())
        except OSError as error:
            raise BenchError(f"--photos {path}: {error.strerror}") from error
        left -= len(files[-1])
        if left <= 0:
            break
    return files


def paths_in(folder: Path) -> list[Path]:
    """Return the paths of the photo files below `folder`, in order; raise BenchError if there is none."""
    left_out = LeftOut()
    paths = [folder / path for path, entry in walk(folder, left_out=left_out) if entry.is_file()]
    if not paths:
        there = "; ".join([f"no {PHOTOS} file there", *left_out.lines()])
        raise BenchError(f"--photos {folder}: {there}; name a folder that holds some")
    return paths


def noise(side: int, count: int, seed: int) -> list[bytes]:
    """Return `count` crops of uniform noise, RGB [side, side, 3] as bytes.

    The time of a crop does not depend on its values. Photos would need a decoder, which the base install lacks.
    """
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (side, side, 3), dtype=np.uint8).tobytes() for _ in range(count)]


def made_up(seed: int) -> list[bytes]:
    """Return JPEG files of 500 x 375 pixels, about 50 KB each. Raises BenchError if Pillow is missing."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise BenchError(
            f"making up JPEGs needs Pillow; give --photos FOLDER or --raw, or {how_to_install('serve')}"
        ) from error
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(_MADE_UP):
        buffer = io.BytesIO()
        Image.fromarray(_texture(generator)).save(buffer, "JPEG", quality=_QUALITY)
        files.append(buffer.getvalue())
    return files


def _texture(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return uint8 [375, 500, 3]: smooth noise in five octaves, much the same in all three channels."""
    total = np.full((_HEIGHT, _WIDTH, 3), 128.0)
    contrast = generator.uniform(0.2, 0.8)  # some photos have low contrast, some high
    for rows, amplitude in _OCTAVES:
        columns = max(2, rows * _WIDTH // _HEIGHT)
        grey = generator.standard_normal((rows, columns, 1))
        colour = grey + 0.3 * generator.standard_normal((rows, columns, 3))
        total += amplitude * contrast * _enlarged(colour)
    pixels: NDArray[np.uint8] = np.clip(total, 0, 255).astype(np.uint8)
    return pixels


def _enlarged(coarse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `coarse` at the full size, bilinear."""
    for axis, size in ((0, _HEIGHT), (1, _WIDTH)):
        at = np.linspace(0, coarse.shape[axis] - 1, size)
        low = np.minimum(at.astype(int), coarse.shape[axis] - 2)
        weight = (at - low).reshape([-1 if n == axis else 1 for n in range(3)])
        coarse = np.take(coarse, low, axis) * (1 - weight) + np.take(coarse, low + 1, axis) * weight
    return coarse
