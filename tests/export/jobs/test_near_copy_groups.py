"""`--group-by near-duplicates`: copies are never parted, and later versions of a model split as its training did."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits, load_splits
from penult.export.data.split_folders import PARTS
from penult.export.data.splitting import Photo
from penult.export.jobs.near_copy_groups import as_recorded, group_names, recorded_groups
from penult.export.jobs.train import splits_of

pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bursts(settings: Callable[..., TrainSettings]) -> Path:
    """A folder of two classes; of each of 14 scenes, three photos that differ in brightness and a few pixels' shift."""
    folder = settings().data
    for scene in range(14):
        of = random.Random(scene)
        image = Image.new("RGB", (140, 140), (128, 128, 128))
        for _ in range(12):
            x, y = of.randint(-10, 130), of.randint(-10, 130)
            box = (x, y, x + of.randint(10, 60), y + of.randint(10, 60))
            ImageDraw.Draw(image).rectangle(box, fill=tuple(of.randrange(256) for _ in range(3)))
        image = image.filter(ImageFilter.GaussianBlur(1))
        for copy in range(3):
            shifted = image.crop((2 * copy, copy, 2 * copy + 132, copy + 132))
            path = folder / f"class{scene % 2}" / f"{of.randrange(10**6):06d}_{scene}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.asarray(shifted) * (1 - 0.1 * copy)).astype(np.uint8)).save(path)
    return folder


def scenes(splits: Splits) -> dict[str, set[str]]:
    """Return the splits that each scene has photos in."""
    found: dict[str, set[str]] = {}
    for part in PARTS:
        for photo in getattr(splits, part):
            found.setdefault(photo.path.stem.split("_")[1], set()).add(part)
    return found


def test_copies_are_in_one_split(bursts: Path, settings: Callable[..., TrainSettings], tiny_weights: Path) -> None:
    """Without groups copies are in several splits, with them in one each, and the groups are recorded."""
    given: dict[str, Any] = {"data": bursts, "weights": str(tiny_weights)}
    assert any(len(parts) > 1 for parts in scenes(splits_of(settings(**given))).values())
    grouped = splits_of(settings(**given, group_by="near-duplicates"))
    assert all(len(parts) == 1 for parts in scenes(grouped).values())
    assert grouped.counts() | {"train": 0} == {"train": 0, "val": 6, "test": 6}
    record = recorded_groups(grouped, "near-duplicates")["near_copy_groups"]
    assert [len(group) for group in record] == [3] * 14
    assert recorded_groups(grouped, "folder") == {}
    source = PhotoSource(bursts, group_by="near-duplicates")
    again = load_splits(source, settings().out, "0.15", "0.15", 0, as_recorded(record))
    assert again.sha256 == grouped.sha256


def test_names_of_groups_come_from_contents() -> None:
    """The name of a group does not depend on the order of photos, and a photo alone has none."""
    photos = [Photo(Path(name), 0, name) for name in "bacd"]
    assert group_names(photos, [0, 0, 2, 3]) == ["a", "a", "", ""]
    assert group_names(photos[::-1], [0, 1, 2, 2]) == ["", "", "a", "a"]
