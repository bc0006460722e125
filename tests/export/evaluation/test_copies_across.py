"""Near-copies across splits: which test and validation photos have them, and the accuracy without these."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.data.thumbnails import SIDE
from penult.export.evaluation.copies_across import Across, as_metrics, find_across, notes
from penult.export.evaluation.metrics import evaluate
from penult.export.evaluation.outputs import SplitOutputs


def texture(seed: int) -> NDArray[np.uint8]:
    """Return a thumbnail of blocks at random, unlike any other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)
    return np.kron(coarse, np.ones((SIDE // 16, SIDE // 16), np.uint8))


def split(part: str, seeds: list[int], names: list[str]) -> tuple[tuple[Photo, ...], SplitOutputs]:
    """Return photos whose content is their name and whose pixels are their seed's, with their outputs."""
    photos = tuple(Photo(Path(f"{part}/{place}.jpg"), 0, name) for place, name in enumerate(names))
    vectors = np.stack([np.random.default_rng(seed).normal(size=16) for seed in seeds]).astype(np.float32)
    shown = np.stack([texture(seed) for seed in seeds])
    return photos, SplitOutputs(np.zeros((len(seeds), 2), np.float32), vectors, np.zeros(len(seeds), int), shown)


@pytest.fixture
def case() -> tuple[Splits, dict[str, SplitOutputs]]:
    """Two training photos have copies: one a test photo of other bytes, one a validation and a test photo of its own."""
    train, of_train = split("train", [1, 2, 3, 3], ["a", "b", "c", "d"])
    val, of_val = split("val", [2, 5], ["b", "f"])
    test, of_test = split("test", [6, 1, 2, 7], ["g", "e", "b", "h"])
    return Splits(("x", "y"), train, val, test, ()), {"train": of_train, "val": of_val, "test": of_test}


def test_photos_with_copies_in_other_splits(case: tuple[Splits, dict[str, SplitOutputs]]) -> None:
    """A test photo counts if training or validation photos show the same, a validation photo if training photos do."""
    splits, outputs = case
    found = find_across(splits, outputs)
    assert found is not None
    assert [(each.part, each.row, each.other_part, str(each.other.path)) for each in found] == [
        ("test", 2, "train", "train/1.jpg"),
        ("test", 1, "train", "train/0.jpg"),
        ("val", 0, "train", "train/1.jpg"),
    ]
    assert found[0].similarity == found[2].similarity == 1 > found[1].similarity > 0.59


def test_photos_without_thumbnails_are_not_compared(case: tuple[Splits, dict[str, SplitOutputs]]) -> None:
    """Stored descriptors and small crops have no thumbnails, so nothing is said of copies."""
    splits, outputs = case
    bare = SplitOutputs(outputs["val"].logits, outputs["val"].descriptors, outputs["val"].labels)
    assert find_across(splits, outputs | {"val": bare}) is None


def test_accuracy_without_copies(case: tuple[Splits, dict[str, SplitOutputs]]) -> None:
    """The accuracy leaves out test photos with copies, by scorer; the note names both figures."""
    splits, _ = case
    found = [Across("test", row, splits.test[row], "train", splits.train[0], 0.9) for row in (1, 2)]
    labels = np.zeros(4, int)
    scores = {"dense": np.eye(2, dtype=np.float32)[[0, 0, 0, 1]], "svm": np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]}
    entry = as_metrics(found, splits, scores, labels)
    assert (entry["test_photos"], entry["val_photos"]) == (2, 0)
    assert {name: (m["photos"], m["accuracy"]) for name, m in entry["test_without"].items()} == {
        "dense": (2, 0.5),
        "svm": (2, 1.0),
    }
    assert entry["pairs"][0] == {
        "image": "test/1.jpg", "split": "test", "other": "train/0.jpg", "other_split": "train", "similarity": 0.9,
    }  # fmt: skip
    metrics = {"near_copies": entry, "test": {name: evaluate(s, labels, ("x", "y"), 1.0) for name, s in scores.items()}}
    (line,) = notes(metrics, "dense")
    assert line.startswith("2 of 4 test photos have near-copies among training or validation photos")
    assert "1 of 2" in line
    assert "--group-by near-duplicates" in line
    none = as_metrics([], splits, scores, labels)
    assert none["test_without"]["dense"]["photos"] == 4
    assert notes(metrics | {"near_copies": none}, "dense") == []
    everything = as_metrics([Across("test", row, splits.test[row], "train", splits.train[0], 0.9) for row in range(4)],
                            splits, scores, labels)  # fmt: skip
    assert "has no other test photos" in notes(metrics | {"near_copies": everything}, "svm")[0]
