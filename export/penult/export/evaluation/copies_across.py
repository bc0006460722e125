"""Find test and validation photos with near-copies in other splits, and measure the accuracy without them.

After training, descriptors and thumbnails of the crops are at hand, so no photo is read again.
Training pulls the descriptors of a class together. So thumbnails propose pairs too, and the pixels decide.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import Floats, wilson
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.evaluation import accuracy
from penult.export.evaluation.near_copies import find_pairs
from penult.export.evaluation.outputs import SplitOutputs

_MAX_LISTED = 100
# The splits that the photos of each split must not have copies in.
_LEARNT_FROM = {"test": ("train", "val"), "val": ("train",)}


@dataclass(frozen=True)
class Across:
    """A test or validation photo, by row of its split, and its most similar near-copy in a split learnt from."""

    part: str
    row: int
    photo: Photo
    other_part: str
    other: Photo
    similarity: float


def find_across(splits: Splits, outputs: Mapping[str, SplitOutputs]) -> list[Across] | None:
    """Return the test and validation photos with near-copies, most similar first; None if they are not compared."""
    parts = ("train", "val", "test")
    small = [outputs[part].thumbnails for part in parts]
    if any(each is None for each in small):
        return None
    photos = [photo for part in parts for photo in getattr(splits, part)]
    places = [(part, row) for part in parts for row in range(len(getattr(splits, part)))]
    descriptors = np.concatenate([outputs[part].descriptors for part in parts])
    together = np.concatenate([each for each in small if each is not None])
    first: dict[str, int] = {}
    members: dict[int, list[int]] = defaultdict(list)
    for place, photo in enumerate(photos):
        members[first.setdefault(photo.sha256, place)].append(place)
    linked: dict[int, list[tuple[float, int]]] = {row: [(1.0, row)] for row in members}
    for pair in find_pairs(photos, descriptors, together, [part for part, _ in places]):
        if pair.row in members and pair.other in members:
            linked[pair.row].append((pair.similarity, pair.other))
            linked[pair.other].append((pair.similarity, pair.row))
    found = []
    for place, (part, row) in enumerate(places):
        others = [
            (similarity, -parts.index(places[other][0]), other)
            for similarity, content in linked[first[photos[place].sha256]]
            for other in members[content]
            if places[other][0] in _LEARNT_FROM.get(part, ())
        ]
        if others:
            similarity, _, other = max(others)
            found.append(Across(part, row, photos[place], places[other][0], photos[other], similarity))
    return sorted(found, key=lambda each: (each.part, -each.similarity, each.row))


def as_metrics(
    found: list[Across], splits: Splits, scores: Mapping[str, Floats], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Return the entry of metrics.json: counts, the accuracy without such test photos by scorer, and the pairs.

    Args:
        found: What find_across() returned.
        splits: The photos.
        scores: [N, classes] by scorer, of the test photos.
        labels: [N].
    """
    apart = np.ones(len(labels), bool)
    apart[[each.row for each in found if each.part == "test"]] = False
    without = {}
    for name, values in scores.items():
        right = float((values[apart].argmax(axis=1) == labels[apart]).mean()) if apart.any() else 0.0
        low, high = wilson(right, int(apart.sum())) if apart.any() else (0.0, 1.0)
        figures = {"photos": int(apart.sum()), "accuracy": right, "accuracy_95": [low, high]}
        without[name] = figures | {"few_photos": accuracy.is_rough(low, high)}
    counts = {f"{part}_photos": sum(each.part == part for each in found) for part in _LEARNT_FROM}
    pairs = [
        {"image": splits.name(each.photo), "split": each.part, "other": splits.name(each.other),
         "other_split": each.other_part, "similarity": round(each.similarity, 4)}
        for each in found[:_MAX_LISTED]
    ]  # fmt: skip
    return counts | {"test_without": without, "pairs": pairs}


def notes(metrics: Mapping[str, Any], default: str) -> list[str]:
    """Return lines for the user on near-copies across splits; none if there are none.

    Args:
        metrics: The contents of metrics.json, with its entry of near-copies.
        default: The scorer whose accuracy is named.
    """
    found, lines = metrics["near_copies"], []
    keep = "--group-by near-duplicates keeps them in one split"
    if count := found["test_photos"]:
        figures, before = found["test_without"][default], metrics["test"][default]
        without = f"accuracy without them is {accuracy.stated(figures)} ({accuracy.counted(figures)})"
        lines.append(
            f"{count} of {before['photos']} test photos have near-copies among training or validation photos; "
            f"{default} {without if figures['photos'] else 'has no other test photos'}, with them "
            f"{accuracy.stated(before)}; {keep}"
        )
    if count := found["val_photos"]:
        lines.append(f"{count} validation photos have near-copies among training photos; {keep}")
    return lines
