"""`penult inspect`: what is in the photos, before anything is learnt from them. No photo is changed or left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penult.bundle.naming import last_part
from penult.bundle.scores import Floats
from penult.console import say
from penult.export.config.inspect import InspectSettings
from penult.export.config.photos import PhotoSource, named_by
from penult.export.data.dataset import Splits, load_splits
from penult.export.data.photo_measures import measure
from penult.export.data.splitting import Photo, units_of
from penult.export.disk import replace_file
from penult.export.evaluation import suspects
from penult.export.evaluation.near_copies import find_pairs
from penult.export.jobs.frozen_descriptors import FrozenNetwork, of_model, of_weights
from penult.export.jobs.near_copy_groups import near_copies
from penult.export.report import inspect_page
from penult.export.report.inspect_page import Inspection

_WORST = 5


@dataclass(frozen=True)
class Inspected:
    """What was found, and the folder with the results."""

    folder: Path
    found: Inspection

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / inspect_page.PAGE_NAME

    @property
    def suspects(self) -> Path:
        """The ranked labels."""
        return self.folder / inspect_page.SUSPECTS_NAME

    @property
    def duplicates(self) -> Path:
        """The pairs of copies."""
        return self.folder / inspect_page.DUPLICATES_NAME

    @property
    def worst(self) -> list[list[str]]:
        """The most suspect photos: image, label, suggested, score."""
        return [list(row) for row in inspect_page.suspect_rows(self.found, _WORST)]

    @property
    def sentence(self) -> str:
        """The counts in one line."""
        ranking, pairs = self.found.ranking, len(self.found.pairs)
        labels = f"{ranking.contradicted} have a label that is not the most probable one, and " if ranking else ""
        copies = f"{pairs} pair of copies was" if pairs == 1 else f"{pairs} pairs of copies were"
        return f"{len(self.found.photos)} photos: {labels}{copies} found"

    def as_json(self) -> dict[str, Any]:
        """Return the result of --json."""
        found, ranking = self.found, self.found.ranking
        return {
            "data": found.name,
            "network": found.network,
            "classes": len(found.splits.classes),
            "photos": found.splits.counts(),
            "contradicted": ranking.contradicted if ranking else None,
            "suspects": len(ranking.listed) if ranking else None,
            "duplicates": len(found.pairs),
            "weak": {finding.name: len(finding.rows) for finding in found.findings},
            "notes": list(found.splits.notes),
            "page": str(self.page),
            "suspects_csv": str(self.suspects),
            "duplicates_csv": str(self.duplicates),
        }


def inspect(settings: InspectSettings) -> Inspected:
    """Inspect the photos, and write the results to settings.out.

    Raises:
        PenultError: The photos cannot be used, the network cannot be loaded, or the results cannot be written.
    """
    network = (
        of_model(settings.model, settings.version) if settings.model else of_weights(settings.arch, settings.weights)
    )
    grouped = near_copies(settings.group_by, lambda: network)
    splits = load_splits(PhotoSource.of(settings), settings.out, settings.val, settings.test, settings.seed, grouped)
    photos = inspect_page.all_photos(splits)
    classes = "1 class" if len(splits.classes) == 1 else f"{len(splits.classes)} classes"
    say(f"{len(photos)} photos of {classes}; described by {network.name}")
    for note in splits.notes:
        say(f"note: {note}")
    found = _inspection(settings, network, splits, photos)
    for name, content in inspect_page.inspection_files(found).items():
        replace_file(settings.out / name, content)
    return Inspected(settings.out, found)


def _inspection(
    settings: InspectSettings, network: FrozenNetwork, splits: Splits, photos: Sequence[Photo]
) -> Inspection:
    descriptors = network.describe(photos)
    pairs = list(find_pairs(photos, descriptors))
    ranking: suspects.Ranking | None = None
    beside: dict[int, tuple[int, int]] = {}
    if len(splits.classes) > 1:
        ranking, beside = _rank(descriptors, photos, len(splits.classes), settings.seed)
    name = last_part(named_by(settings.data))
    return Inspection(name, network.name, network.preprocess, splits, measure(photos), ranking, beside, pairs)


def _rank(
    descriptors: Floats, photos: Sequence[Photo], classes: int, seed: int
) -> tuple[suspects.Ranking, dict[int, tuple[int, int]]]:
    """Rank the labels; also return, for each suspect on the page, the nearest photos of both labels."""
    inputs, labels = suspects.prepared(descriptors), np.array([photo.label for photo in photos])
    units = units_of(photos)
    ranking = suspects.rank(suspects.leave_out_probabilities(inputs, labels, classes, units, seed), labels)
    shown = inspect_page.shown_suspects(ranking)
    sides = [
        suspects.nearest(inputs, shown, wanted[shown], labels, units).tolist() for wanted in (labels, ranking.suggested)
    ]
    return ranking, dict(zip(shown.tolist(), zip(*sides, strict=True), strict=True))
