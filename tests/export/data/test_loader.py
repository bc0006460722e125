"""Photos as arrays: the pixels that serving sees, repeatable crops for learning, memory within its budget."""

import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.attacks.case import encode, picture
from tests.attacks.heifs import heic
from tests.export.splits import splits_of
from tests.fixtures.profiles import profile

from penult.bundle.formats import FORMATS, SERVED, format_of
from penult.bundle.guards import LEARNING_LIMITS
from penult.bundle.preprocess import SRGB, Preprocess, crop_encoded
from penult.export.config.train import TrainSettings
from penult.export.data import transforms
from penult.export.data.loader import Cache, PhotoReader, as_served
from penult.export.data.splitting import Photo
from penult.export.training.distributed import ALONE

SPEC = Preprocess(resize=32, crop=32)


@pytest.fixture
def photos(
    make_photos: Callable[..., Path], settings: Callable[..., TrainSettings], tmp_path: Path
) -> tuple[Photo, ...]:
    """Twenty-odd photos of two classes."""
    make_photos(tmp_path / "photos", {"cat": 17, "dog": 13})
    return splits_of(settings()).train


def _reader(batch_size: int = 4, most_bytes: int = 1 << 24) -> PhotoReader:
    return PhotoReader(SPEC, Cache(most_bytes), batch_size)


def _augmented(photos: tuple[Photo, ...], seed: str, **options: int) -> tuple[np.ndarray, np.ndarray]:
    batches = list(_reader(**options).augmented(photos, transforms.photo, seed, "test", ALONE.bounds))
    return np.concatenate([batch.pixels for batch in batches]), np.concatenate([batch.labels for batch in batches])


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_crops_are_what_serving_sees(photos: tuple[Photo, ...], batch_size: int):
    """Every photo comes once, in order, as the service would crop it, in batches of the size asked for."""
    batches = list(_reader(batch_size).crops(photos, "test"))
    assert [len(labels) for _, labels in batches[:-1]] == [min(batch_size, len(photos))] * (len(batches) - 1)
    assert np.array_equal(np.concatenate([pixels for pixels, _ in batches]),
                          np.stack([crop_encoded(photo.read(), SPEC) for photo in photos]))  # fmt: skip
    assert [label for _, labels in batches for label in labels] == [photo.label for photo in photos]


def test_augmented_photos_repeat_with_the_seed(photos: tuple[Photo, ...]):
    """Order and crops are a function of the seed alone: not of batches, threads, or what is in memory."""
    first = _augmented(photos, "0 1")
    for again in (
        _augmented(photos, "0 1"),
        _augmented(photos, "0 1", batch_size=7),
        _augmented(photos, "0 1", most_bytes=0),
    ):
        assert np.array_equal(first[0], again[0])
        assert np.array_equal(first[1], again[1])
    other = _augmented(photos, "0 2")
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])
    assert sorted(first[1]) == sorted(other[1]) == sorted(photo.label for photo in photos)


def test_each_photo_is_cropped_for_itself(make_photos: Callable[..., Path], photo_bytes: Callable, tmp_path: Path):
    """Two copies of a photo get different crops in the same epoch."""
    (tmp_path / "a.png").write_bytes(photo_bytes(0))
    (tmp_path / "b.png").write_bytes(photo_bytes(0))
    pair = (Photo(tmp_path / "a.png", 0, "same"), Photo(tmp_path / "b.png", 0, "same"))
    pixels, _ = _augmented(pair, "0 1")
    assert not np.array_equal(pixels[0], pixels[1])


def test_the_cache_spares_reading_again(photos: tuple[Photo, ...]):
    """Once in memory, a photo is not read again: its file may be gone."""
    reader = _reader()
    first = [pixels for pixels, _ in reader.crops(photos, "test")]
    for photo in photos:
        photo.path.unlink()
    again = [pixels for pixels, _ in reader.crops(photos, "test")]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_cache_keeps_to_its_budget():
    """Arrays are kept until the budget is used, those that still fit after that too; the others are made again."""
    cache, made = Cache(100), []

    def make(name: str, size: int) -> np.ndarray:
        return cache.get(("x", name), lambda: made.append(name) or np.zeros(size, np.uint8))

    for _ in range(2):
        for name, size in (("a", 60), ("b", 50), ("c", 40)):
            assert make(name, size).nbytes == size
    assert made == ["a", "b", "c", "b"]
    assert cache.used_bytes == 100


def test_small_photos_are_not_enlarged_before_cropping(tmp_path: Path):
    """What augmentation cuts from is the photo itself where that is smaller than the training size."""
    Image.new("RGB", (10, 8)).save(tmp_path / "small.png")
    Image.new("RGB", (100, 80)).save(tmp_path / "large.png")
    seen = []

    def spy(image: Image.Image, spec: Preprocess, rng: random.Random) -> np.ndarray:
        seen.append(image.size)
        return transforms.none(image, spec, rng)

    for name in ("small.png", "large.png"):
        list(_reader().augmented((Photo(tmp_path / name, 0, name),), spy, "0", "test", ALONE.bounds))
    assert seen == [(10, 8), (40, 32)]


@pytest.mark.parametrize("name", sorted(transforms.BY_NAME))
@pytest.mark.parametrize("size", [(50, 40), (40, 50), (32, 32), (7, 5), (400, 32), (1, 1)])
def test_augmentations_fill_the_crop(name: str, size: tuple[int, int]):
    """Whatever the shape of a photo, every augmentation returns a crop of the right size and type."""
    pixels = np.random.default_rng(0).integers(1, 255, (size[1], size[0], 3), dtype=np.uint8)
    for seed in range(20):
        crop = transforms.BY_NAME[name](Image.fromarray(pixels), SPEC, random.Random(seed))
        assert (crop.shape, crop.dtype) == ((32, 32, 3), np.uint8)


def test_photo_mirrors_half_and_gentle_none():
    """`photo` mirrors every second crop; `gentle` never does, because a mirrored digit is no digit."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 255  # bright on the right
    brighter = {
        name: [
            int(crop[:, 16:].mean() > crop[:, :16].mean())
            for seed in range(200)
            for crop in [transforms.BY_NAME[name](Image.fromarray(pixels), SPEC, random.Random(seed))]
        ]
        for name in ("photo", "gentle")
    }
    assert sum(brighter["gentle"]) == 200
    assert 60 < sum(brighter["photo"]) < 150


def test_topdown_lays_a_photo_all_eight_ways():
    """`topdown` turns and mirrors: an L lies in each of its eight ways, none of them rarely, and is never bent."""
    letter = np.zeros((32, 32, 3), np.uint8)
    letter[:16, :16], letter[16:, :16], letter[:16, 16:] = 255, 170, 85
    ways = {_quarters(way) for turned in (letter, letter[:, ::-1]) for way in (np.rot90(turned, n) for n in range(4))}
    assert len(ways) == 8
    crops = [transforms.topdown(Image.fromarray(letter), SPEC, random.Random(seed)) for seed in range(400)]
    counts = Counter(_quarters(crop) for crop in crops)
    assert set(counts) == ways
    assert min(counts.values()) > 25
    upright = {_quarters(transforms.photo(Image.fromarray(letter), SPEC, random.Random(seed))) for seed in range(40)}
    assert upright == {_quarters(letter), _quarters(letter[:, ::-1])}


def _quarters(crop: np.ndarray) -> tuple[int, ...]:
    """Return the order of brightness of the four quarters, in reading order; they differ, however a crop is cut."""
    corners = [crop[0, 0], crop[0, -1], crop[-1, 0], crop[-1, -1]]
    return tuple(int(place) for place in np.argsort([int(corner.mean()) for corner in corners]))


def test_gentle_moves_a_little():
    """`gentle` changes the picture every time, but keeps its middle where it was."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[12:20, 12:20] = 255
    crops = [transforms.gentle(Image.fromarray(pixels), SPEC, random.Random(seed)) for seed in range(30)]
    assert len({crop.tobytes() for crop in crops}) == 30
    assert all(crop[15:17, 15:17].min() == 255 for crop in crops)


def test_none_is_the_serving_crop():
    """Without augmentation, training sees what serving sees."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    from penult.bundle.preprocess import crop_image

    assert np.array_equal(transforms.none(image, SPEC, random.Random(0)), crop_image(image, SPEC))


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_bundle_stores_every_service_can_read(kind: str):
    """A photo of another format than the service's three becomes a PNG of the same pixels, in the same colors."""
    spec = Preprocess(resize=40, crop=32, colors=SRGB)
    options = {} if kind in ("BMP", "GIF") else {"icc_profile": profile()}
    data = heic() if kind == "HEIC" else encode(picture(), kind, **options)
    stored = as_served(data, spec)
    assert np.array_equal(crop_encoded(stored, spec), crop_encoded(data, spec, LEARNING_LIMITS))
    assert (stored == data) == (kind in SERVED)
    assert format_of(stored) == (kind if kind in SERVED else "PNG")


def test_colors_are_converted_in_learning_as_in_serving(tmp_path: Path):
    """Center crops and augmented crops of a photo with a Display P3 profile are in sRGB, if the bundle says so."""
    spec = Preprocess(resize=32, crop=32, colors=SRGB)
    file = tmp_path / "1.png"
    red, data = Image.new("RGB", (32, 32), (200, 30, 30)), io.BytesIO()
    red.save(data, "PNG", icc_profile=profile())
    file.write_bytes(data.getvalue())
    photo, reader = Photo(file, 0, "a" * 64), PhotoReader(spec, Cache(0), 1)
    served = crop_encoded(data.getvalue(), spec)
    assert served[0, 0].tolist() != [200, 30, 30]
    assert np.array_equal(reader.stack([photo])[0], served)
    assert np.array_equal(np.asarray(reader._shrunk(photo)), served)
