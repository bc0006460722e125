"""Choose the photos that two versions are compared on, and find what the versions may have seen of them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.manifest import FP16, SVM, Manifest
from penult.bundle.reader import Bundle, read_file
from penult.export.config.compare import ALL, TEST
from penult.export.data.dataset import Splits
from penult.export.data.split_folders import PARTS
from penult.export.data.splitting import Photo
from penult.export.errors import DataError
from penult.export.evaluation.folds import Labels, groups_of
from penult.export.evaluation.paired import Hits
from penult.export.evaluation.versions import Classes
from penult.folders.names import normalised
from penult.folders.walk import some

_METRICS = "metrics.json"


@dataclass(frozen=True)
class ChosenPhotos:
    """The photos that both versions answer.

    Attributes:
        split: One of config.compare.SPLITS.
        photos: Those of a class that a version knows.
        labels: Their classes, places in classes.names, int64 [N].
        unknown: How many photos of a class that neither version knows are left out, by class.
    """

    splits: Splits
    split: str
    classes: Classes
    photos: tuple[Photo, ...]
    labels: Labels
    unknown: dict[str, int]

    @classmethod
    def of(cls, splits: Splits, split: str, classes: Classes) -> "ChosenPhotos":
        """Choose the photos of a split; raise DataError if none is of a class that both versions know."""
        parts = PARTS if split == ALL else (split,)
        at = {name: place for place, name in enumerate(classes.names)}
        photos, labels, unknown = [], [], Counter[str]()
        for photo in (photo for part in parts for photo in getattr(splits, part)):
            name = normalised(splits.classes[photo.label])
            if name in at:
                photos.append(photo)
                labels.append(at[name])
            else:
                unknown[name] += 1
        found = cls(splits, split, classes, tuple(photos), np.array(labels, dtype=np.int64), dict(unknown))
        if not found.are_common.any():
            known = some(list(classes.names[: classes.common])) if classes.common else "none"
            raise DataError(
                "NO_COMMON_CLASS",
                f"none of the {len(photos) + unknown.total()} photos is of a class that both versions know ({known}); "
                "the names of the folders must be those of the classes",
            )
        return found

    @property
    def are_common(self) -> Hits:
        """Whether both versions know the class of each photo, bool [N]."""
        return np.asarray(self.labels < self.classes.common)

    @property
    def compared(self) -> tuple[Photo, ...]:
        """The photos of the classes that both know."""
        return tuple(photo for photo, is_common in zip(self.photos, self.are_common, strict=True) if is_common)

    def seen(self, model: Path, bundles: Sequence[Bundle]) -> Hits:
        """Return which of `compared` have copies among the photos that the split was parted from, bool [N].

        Identical files are found among all photos. Near-copies are those that a version has recorded, if it was
        trained on these very photos.
        """
        if self.split == ALL:
            return np.zeros(len(self.compared), bool)
        learnt = ("train", "val") if self.split == TEST else ("train",)
        contents = {photo.sha256 for part in learnt for photo in getattr(self.splits, part)}
        names = {name for bundle in bundles for name in self._recorded(model, bundle)}
        return np.array([p.sha256 in contents or self.splits.name(p) in names for p in self.compared], dtype=bool)

    def _recorded(self, model: Path, bundle: Bundle) -> set[str]:
        """Return the names of the photos whose near-copies a version has recorded."""
        if self.splits.sha256 not in _trained_on(bundle.manifest) or _METRICS not in bundle.manifest.files:
            return set()
        found = json.loads(read_file(model / str(bundle.version), bundle.manifest, _METRICS)).get("near_copies")
        pairs = found.get("pairs", []) if isinstance(found, dict) else []
        return {str(pair["image"]) for pair in pairs if pair.get("split") == self.split}

    def notes(self, bundles: Sequence[Bundle], scorers: Sequence[str], right: Sequence[dict[str, Any]]) -> list[str]:
        """Return lines on what else decides the result.

        Args:
            bundles: The former and the latter version.
            scorers: Their scorers.
            right: By version, photos and correct answers of the classes that it alone knows.
        """
        numbers, manifests = [bundle.version for bundle in bundles], [bundle.manifest for bundle in bundles]
        lines = [*self._what_was_seen(bundles)]
        if scorers[0] != scorers[1]:
            lines.append(
                f"version {numbers[0]} answers with {scorers[0]}, version {numbers[1]} with {scorers[1]}, its default "
                "scorer; --scorer compares one"
            )
        for number, alone in zip(numbers, right, strict=True):
            if alone:
                named = [f"{name} ({row['right']} of {row['photos']} photos correct)" for name, row in alone.items()]
                lines.append(f"version {number} alone knows {some(named)}; these photos are not compared")
        if self.unknown:
            named = [f"{name} ({count})" for name, count in sorted(self.unknown.items())]
            lines.append(f"photos of classes that neither version knows are left out: {some(named)}")
        if manifests[0].fingerprint == manifests[1].fingerprint:
            lines.append("both versions have the same network, so only the SVM can differ")
        for number, manifest in zip(numbers, manifests, strict=True):
            if manifest.precision == FP16:
                lines.append(f"version {number} is fp16, which is for GPUs; its time on a CPU says nothing about them")
        groups = groups_of(self.compared)
        if len(np.unique(groups)) < len(groups):
            lines.append("photos of one group, and copies of a photo, count as one in the test and in its interval")
        return lines

    def _what_was_seen(self, bundles: Sequence[Bundle]) -> list[str]:
        """Return what the versions may have learnt from these photos."""
        known = [bundle.version for bundle in bundles if self.splits.sha256 in _trained_on(bundle.manifest)]
        others = [bundle.version for bundle in bundles if bundle.version not in known]
        if self.split == ALL:
            return [
                f"version {number} was trained on some of these photos; its accuracy is too high" for number in known
            ]
        lines = []
        if self.split != TEST:
            lines.append("validation photos chose epoch, temperature and scorer, so all figures are too good")
        if others:
            who = " and ".join(f"version {version}" for version in others)
            lines.append(
                f"{who} had other photos or another split in training; if a version has learnt from some of these "
                "photos, its accuracy here is too high"
            )
        return lines


def _trained_on(manifest: Manifest) -> set[str]:
    """Return the SHA-256 of the photos that the network, and those that the SVM was fitted on, as in Splits."""
    svm = manifest.training.get(SVM)
    records = (manifest.training, svm if isinstance(svm, dict) else {})
    return {str(record["data_sha256"]) for record in records if "data_sha256" in record}


def alone(classes: Classes, which: int, labels: Labels, named: NDArray[np.int64]) -> dict[str, Any]:
    """Return photos and correct answers of the classes that one version (0 or 1) alone knows and that have photos."""
    found = {}
    for name in classes.only(which):
        own = labels == classes.names.index(name)
        if own.any():
            found[name] = {"photos": int(own.sum()), "right": int((named[own] == labels[own]).sum())}
    return found
