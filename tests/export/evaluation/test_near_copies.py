"""Near-copies: crops and brightness changes are found, other photos are not, and groups do not chain."""

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from penult.export.data.dataset import Photo
from penult.export.data.thumbnails import SIDE, thumbnails
from penult.export.evaluation import near_copies
from penult.export.evaluation.alignment import Aligner
from penult.export.evaluation.near_copies import Pair, find_pairs, group_ids

_SOURCES, _COPIES = 12, 3


def scene(seed: int) -> Image.Image:
    """Draw a photo of its own: a slope of light, and shapes at random."""
    of = random.Random(seed)
    slope = np.linspace(of.randint(60, 120), of.randint(130, 200), 240)
    image = Image.fromarray(np.tile(slope, (240, 1)).astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, side = of.randint(-20, 230), of.randint(-20, 230), of.randint(15, 70)
        shape = draw.ellipse if of.random() < 0.5 else draw.rectangle
        shape((x, y, x + side, y + of.randint(15, 70)), fill=tuple(of.randrange(256) for _ in range(3)))
    return image.filter(ImageFilter.GaussianBlur(1))


def copy_of(image: Image.Image, seed: str) -> Image.Image:
    """Return a crop of at least four fifths of each side, with another brightness and size."""
    of = random.Random(seed)
    side = round(240 * of.uniform(0.8, 1))
    x, y = of.randint(0, 240 - side), of.randint(0, 240 - side)
    return ImageEnhance.Brightness(image.crop((x, y, x + side, y + side))).enhance(of.uniform(0.7, 1.3))


def grey(image: Image.Image) -> NDArray[np.uint8]:
    """Return the thumbnail of an image."""
    return thumbnails(np.asarray(image.resize((112, 112), Image.Resampling.BILINEAR))[None])[0]


@pytest.fixture(scope="module")
def bursts() -> NDArray[np.uint8]:
    """Thumbnails of every scene in several copies, scene by scene."""
    return np.stack([grey(copy_of(scene(n), f"{n} {k}")) for n in range(_SOURCES) for k in range(_COPIES)])


def photos(count: int) -> list[Photo]:
    """Return photos that no test reads; each has its row as its name."""
    return [Photo(Path(str(row)), 0, f"{row:064x}") for row in range(count)]


def descriptors(clusters: NDArray[np.intp], noise: float = 0.1) -> NDArray[np.float32]:
    """Return a descriptor per photo, close to those of the same cluster."""
    of = np.random.default_rng(0)
    centers = of.normal(size=(int(clusters.max()) + 1, 64))
    return (centers[clusters] + noise * of.normal(size=(len(clusters), 64))).astype(np.float32)


def test_copies_are_found_and_grouped(bursts: NDArray[np.uint8]) -> None:
    """Crops and brightness changes of one photo are one group."""
    sources = np.repeat(np.arange(_SOURCES), _COPIES)
    pairs = find_pairs(photos(len(sources)), descriptors(sources), bursts)
    assert all(sources[pair.row] == sources[pair.other] and 0.6 < pair.similarity <= 1 for pair in pairs)
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)
    assert group_ids(len(sources), pairs).tolist() == (sources * _COPIES).tolist()


def test_pixels_decide(bursts: NDArray[np.uint8]) -> None:
    """Photos with nearly the same descriptor but other pixels are no copies."""
    first = bursts[::_COPIES]
    alike = descriptors(np.arange(_SOURCES) // 2, noise=0.01)
    assert find_pairs(photos(_SOURCES), alike, first) == []


def test_identical_files_are_not_compared(bursts: NDArray[np.uint8]) -> None:
    """Copies byte for byte have similarity 1, however many there are, whatever their descriptors and pixels are."""
    several = [Photo(Path(str(row)), 0, f"{row % 2:064x}") for row in range(30)]
    pairs = find_pairs(several, descriptors(np.arange(30)), bursts[:30])
    assert {(pair.row, pair.similarity) for pair in pairs} == {(0, 1.0), (1, 1.0)} | {(0, p.similarity) for p in pairs}
    assert group_ids(30, [pair for pair in pairs if pair.similarity == 1]).tolist() == [row % 2 for row in range(30)]


def test_pairs_of_one_split_are_left_out(bursts: NDArray[np.uint8]) -> None:
    """With splits given, pairs across them are found, and no others."""
    sources = np.repeat(np.arange(_SOURCES), _COPIES)
    parts = [("train", "train", "test")[row % _COPIES] for row in range(len(sources))]
    pairs = find_pairs(photos(len(sources)), descriptors(sources), bursts, parts)
    assert {pair[:2] for pair in pairs} == {
        (row + n, row + 2) for row in range(0, len(sources), _COPIES) for n in (0, 1)
    }


def test_thumbnails_propose_pairs(bursts: NDArray[np.uint8]) -> None:
    """Photos of nearly the same pixels are found if their descriptors are nothing alike."""
    of = np.random.default_rng(3)
    some = bursts[:18]
    twice = np.concatenate([some, np.clip(some * 0.9, 0, 255).astype(np.uint8)])
    pairs = find_pairs(photos(len(twice)), of.normal(size=(len(twice), 64)).astype(np.float32), twice)
    assert {(row, row + 18) for row in range(18)} <= {pair[:2] for pair in pairs}


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest rows come from all rows, not only from those of the same block."""
    unit = np.random.default_rng(4).normal(size=(50, 16)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(50)
    expected = {(min(row, int(other)), max(row, int(other))) for row in range(50)
                for other in np.argsort(-cosines[row])[:3] if cosines[row, other] > 0.3}  # fmt: skip
    monkeypatch.setattr(near_copies, "_BLOCK_ROWS", 8)
    assert near_copies._nearest(unit, 3, 0.3) == expected


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_photos(count: int, bursts: NDArray[np.uint8]) -> None:
    """No photo and one have no copies, and two can be copies of each other."""
    found = find_pairs(photos(count), descriptors(np.zeros(count, int)) if count else np.zeros((0, 64), np.float32),
                       bursts[:count])  # fmt: skip
    assert group_ids(count, found).tolist() == [0] * count


def test_one_doubtful_pair_does_not_chain_groups() -> None:
    """Two groups join by a sure pair or by two doubtful ones, and a photo alone joins its most similar group."""
    groups = [Pair(0, 1, 0.9), Pair(2, 3, 0.9)]
    assert group_ids(4, [*groups, Pair(1, 2, 0.65)]).tolist() == [0, 0, 2, 2]
    assert group_ids(4, [*groups, Pair(1, 2, 0.8)]).tolist() == [0] * 4
    assert group_ids(4, [*groups, Pair(1, 2, 0.65), Pair(0, 3, 0.65)]).tolist() == [0] * 4
    assert group_ids(5, [*groups, Pair(1, 4, 0.63), Pair(2, 4, 0.65)]).tolist() == [0, 0, 2, 2, 2]
    assert group_ids(3, [Pair(0, 2, 0.65)]).tolist() == [0, 1, 0]


def test_brightness_and_contrast_do_not_count() -> None:
    """A photo correlates with its dark and flat copy, and a blank photo with none."""
    image = scene(5)
    dark = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(0.5)).enhance(0.7)
    blank = np.full((SIDE, SIDE), 255, np.uint8)
    rows = np.stack([grey(image), grey(dark), grey(scene(6)), blank, blank])
    aligner = Aligner(lambda row: rows[row])
    assert aligner.correlation(0, 1) > 0.8
    assert aligner.correlation(0, 1) == aligner.correlation(0, 1)
    assert aligner.correlation(0, 2) < 0.5
    assert aligner.correlation(0, 3) == aligner.correlation(3, 4) == 0
