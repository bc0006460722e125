"""Weak photos: which are listed, in which order, and how much a network sees."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penult.bundle.preprocess import Preprocess
from penult.export.data.photo_measures import Measures, measure, thumbnail
from penult.export.data.splitting import Photo
from penult.export.evaluation.photo_quality import find_weak, view

_SPEC = Preprocess(resize=256, crop=224)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Photo]:
    """Twelve usual photos of 300 x 300 pixels, then a dark, a flat, a blurred, a small and a long one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)

    def noise(width: int = 300, height: int = 300) -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))

    images = [noise() for _ in range(12)]
    images += [noise().point(lambda value: value // 6), Image.new("RGB", (300, 300), (120, 120, 120))]
    images += [noise(10, 10).resize((300, 300)), noise(100, 120), noise(900, 300)]
    found = []
    for number, image in enumerate(images):
        path = tmp_path / f"{number}.png"
        image.save(path)
        found.append(Photo(path, 0, f"{number:064x}"))
    return found


def test_each_weakness_is_found(photos: list[Photo]):
    """Each weak photo is listed under its weakness, and usual photos under none."""
    found = {finding.name: finding.rows for finding in find_weak(measure(photos), _SPEC)}
    assert found["dark"] == (12,)
    assert found["flat"][0] == 13
    assert set(found["blurred"]) >= {13, 14}
    assert set(found["blurred"]).isdisjoint(range(12))
    assert found["small"] == (15,)
    assert found["long"] == (16,)


def test_second_run_reads_no_photo(photos: list[Photo]):
    """Measures are cached by content."""
    first = measure(photos)
    for photo in photos:
        photo.path.unlink()
    assert np.array_equal(measure(photos).sharpness, first.sharpness)


def test_share_that_a_network_sees():
    """A center crop of 224 of 256 pixels sees 77 % of a square, half of that of a photo twice as long; stretch sees all."""

    sizes = np.array([[512, 512], [1024, 512]], np.float32).T
    measures = Measures(*sizes, *np.ones((3, 2), np.float32))
    crop = view(measures, _SPEC)
    assert np.allclose(crop.shown, [0.7656, 0.3828], atol=1e-3)
    assert np.allclose(crop.stretched, 1)
    stretch = view(measures, Preprocess(resize=224, crop=224, fit="stretch"))
    assert np.allclose(stretch.shown, 1)
    assert np.allclose(stretch.stretched, [1, 2])


def test_thumbnail_is_small(photos: list[Photo]):
    """A thumbnail keeps the aspect ratio and never enlarges."""

    assert Image.open(io.BytesIO(thumbnail(photos[16], 90, 60))).size == (90, 30)
    assert Image.open(io.BytesIO(thumbnail(photos[15], 200, 60))).size == (100, 120)
