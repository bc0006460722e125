"""Photos held sideways: learning, measuring and serving all see them upright."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.export.data import transforms
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.training.distributed import ALONE

SPEC = Preprocess(resize=48, crop=40)
_ORIENTATION = 0x0112
# What a camera would store for each EXIF orientation (Exif 2.3, 4.6.4A): the turn that the viewer has to undo.
_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


@pytest.fixture(scope="module")
def upright() -> np.ndarray:
    """A smooth picture without any symmetry, uint8 [60, 80, 3]: as it should be seen."""
    rows, columns = np.mgrid[0:60, 0:80]
    return np.stack([rows * 4, columns * 3, (rows * 2 + columns) % 256], axis=2).astype(np.uint8)


def _photo(folder: Path, upright: np.ndarray, orientation: int, kind: str) -> Photo:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    path = folder / f"{orientation}.{kind}"
    quality = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    Image.fromarray(np.ascontiguousarray(_STORED[orientation](upright))).save(path, exif=exif, **quality)
    return Photo(path, 0, f"{kind} {orientation}")


def _augmented(photos: tuple[Photo, ...], augmentation: transforms.Augmentation) -> np.ndarray:
    """What learning sees of each photo alone, so that each gets the same random crop."""
    reader = PhotoReader(SPEC, Cache(1 << 24), 1)
    batches = (reader.augmented((photo,), augmentation, "0", "test", ALONE.bounds) for photo in photos)
    return np.concatenate([next(batch).pixels for batch in batches])


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_all_paths_see_all_eight_orientations_upright(tmp_path: Path, upright: np.ndarray, kind: str):
    """The eight files give the pixels of the upright one, to the bit where the format is lossless, on all paths.

    JPEG's blocks fall differently on a turned picture: there a few grey levels are allowed, where another turn would
    differ by tens.
    """
    photos = tuple(_photo(tmp_path, upright, orientation, kind) for orientation in _STORED)
    measured = np.concatenate([pixels for pixels, _ in PhotoReader(SPEC, Cache(1 << 24), 3).crops(photos, "test")])
    paths = {
        "serving": np.stack([crop_encoded(photo.read(), SPEC) for photo in photos]),
        "measuring": measured,
        "learning, middle": _augmented(photos, transforms.none),
        "learning, random": _augmented(photos, transforms.photo),
    }
    for name, pixels in paths.items():
        worst = np.abs(pixels.astype(int) - pixels[0].astype(int)).max()
        assert worst <= (8 if kind == "jpg" else 0), name
    assert np.array_equal(paths["serving"], paths["measuring"])
    assert np.abs(paths["learning, middle"].astype(int) - paths["serving"].astype(int)).max() <= 4


def test_the_test_would_notice_a_photo_that_is_not_upright(upright: np.ndarray):
    """No two of the eight ways to hold the picture look alike within what is allowed above."""
    crops = []
    for turn in _STORED.values():
        image = Image.fromarray(np.ascontiguousarray(turn(upright)))
        crops.append(transforms.none(image, SPEC, random.Random(0)).astype(int))
    assert min(np.abs(a - b).max() for n, a in enumerate(crops) for b in crops[:n]) > 30


def test_a_turned_photo_shrunk_while_decoding_is_upright(tmp_path: Path, upright: np.ndarray):
    """A large JPEG that is decoded at a fraction of its size is turned all the same."""
    large = np.asarray(Image.fromarray(upright).resize((1600, 1200), Image.Resampling.BICUBIC))
    straight, turned = (_photo(tmp_path, large, orientation, "jpg").read() for orientation in (1, 6))
    assert Image.open(io.BytesIO(turned)).size == (1200, 1600)
    difference = crop_encoded(straight, SPEC).astype(int) - crop_encoded(turned, SPEC).astype(int)
    assert np.abs(difference).max() <= 8
