"""Parts that the bundle's tests share: a PNG writer of our own, a real photo, copies of a real bundle."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penult.bundle.manifest import GOLDEN_NAME, MODEL_NAME, SVM_NAME, FileEntry, Manifest
from penult.bundle.preprocess import Preprocess

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_COLOUR_BY_CHANNELS = {1: 0, 2: 4, 3: 2, 4: 6}


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _row(samples: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return b"\0" + samples.astype(">u2").tobytes()
    bits = np.unpackbits(samples.reshape(-1, 1).astype(np.uint8), axis=1)[:, 8 - depth :]
    return b"\0" + np.packbits(bits).tobytes()


def _png(
    pixels: np.ndarray, depth: int = 8, interlaced: bool = False, palette: bytes = b"", trns: bytes = b"",
    pack: Callable[[bytes], bytes] = zlib.compress,
) -> bytes:  # fmt: skip
    """Write a PNG from samples [H, W, channels]; `pack` makes the IDAT out of the raw rows."""
    height, width, channels = pixels.shape
    colour = 3 if palette else _COLOUR_BY_CHANNELS[channels]
    raw = b""
    for x0, y0, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = pixels[y0::dy, x0::dx]
        raw += b"".join(_row(row.reshape(-1), depth) for row in part) if part.size else b""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = [_chunk(b"IHDR", header)]
    chunks += [_chunk(b"PLTE", palette)] if palette else []
    chunks += [_chunk(b"tRNS", trns)] if trns else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, _chunk(b"IDAT", pack(raw)), _chunk(b"IEND", b"")])


@pytest.fixture(scope="session")
def make_png() -> Callable[..., bytes]:
    """Write PNGs that Pillow cannot write: interlaced, 16-bit RGB, or with pixel data that end early."""
    return _png


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(image, format, **options): the bytes that Pillow writes."""

    def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A real photo, 640 x 427, that ships with scikit-learn."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture(scope="session")
def small_photo(photo: Image.Image) -> Image.Image:
    """The same at 64 x 43."""
    return photo.resize((64, 43))


@pytest.fixture
def manifest() -> Manifest:
    """A manifest of two classes and both scorers."""
    return Manifest(
        architecture="tiny5",
        classes=("cat", "dog"),
        preprocess=Preprocess(resize=32, crop=32),
        descriptor_length=128,
        default_scorer="dense",
        temperatures={"dense": 1.5, "svm": 0.25},
        libraries={"torch": "2.15.0"},
        training={"settings": {"seed": 0}},
        files={name: FileEntry.of(name.encode()) for name in (MODEL_NAME, SVM_NAME, GOLDEN_NAME)},
    )


@pytest.fixture
def model_folder(copy_model: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of the trained bundle, models/digits with version 1, to be damaged."""
    return copy_model(tmp_path / "models")


@pytest.fixture
def bundle_folder(model_folder: Path) -> Path:
    """Version 1 of that copy."""
    return model_folder / "1"


@pytest.fixture
def edit_manifest(bundle_folder: Path) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    """edit_manifest(change): rewrite the copy's manifest.json after `change` was applied to its values."""

    def edit(change: Callable[[dict[str, Any]], None]) -> None:
        path = bundle_folder / "manifest.json"
        values = json.loads(path.read_bytes())
        change(values)
        path.write_text(json.dumps(values))

    return edit
