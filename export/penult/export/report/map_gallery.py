"""Choose test photos for maps and draw them: the surest errors, and right answers by class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.class_map import ClassMap
from penult.bundle.overlay import blend, limit_of
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import best_of
from penult.export.report.gallery import data_uri
from penult.export.report.report_data import ReportData

# Errors have two maps each, right answers one.
_MAX_WRONG, _MAX_RIGHT, _MAX_OF_CLASS = 6, 12, 2
_SIDE_PIXELS = 192


@dataclass(frozen=True)
class ShownMap:
    """One map over its photo as a data URI: its class, the score, and the contribution with the fullest colour."""

    uri: str
    label: str
    score: float
    limit: float


@dataclass(frozen=True)
class MappedPhoto:
    """A test photo's true class, its answer with confidence, and its maps: of the answer, and of the true class."""

    true: str
    answer: str
    confidence: float
    maps: tuple[ShownMap, ...]


@dataclass(frozen=True)
class MapGallery:
    """The photos of the section.

    Attributes:
        wrong: The surest errors.
        right: Right answers, class by class.
        scorer: The scorer whose answers they are.
        is_exact: True if places and offset add up to the score.
        why_not: Why those of the default scorer do not; empty if they do.
    """

    wrong: tuple[MappedPhoto, ...]
    right: tuple[MappedPhoto, ...]
    scorer: str
    is_exact: bool
    why_not: str


def map_gallery(report_data: ReportData) -> MapGallery | None:
    """Return the photos with their maps; None if the report must not show photos, or nothing makes maps."""
    made, crops = report_data.maps, report_data.crops
    if made is None or crops is None or not len(report_data.labels):
        return None
    scores, labels = report_data.scores[made.scorer], report_data.labels
    answers, confidence = best_of(scores, report_data.manifest.temperatures[made.scorer])
    wrong, right = _chosen(answers, labels, confidence, made.most)
    rows = [*wrong, *right]
    if not rows:
        return None
    pixels = crops([report_data.splits.test[row] for row in rows])
    columns = [[int(answers[row]), *([int(labels[row])] if row in wrong else [])] for row in rows]
    classes = report_data.splits.classes
    shown = [
        MappedPhoto(classes[labels[row]], classes[answers[row]], float(confidence[row]), _drawn(crop, maps))
        for row, crop, maps in zip(rows, pixels, made.of(pixels, columns), strict=True)
    ]
    return MapGallery(tuple(shown[: len(wrong)]), tuple(shown[len(wrong) :]), made.scorer, made.is_exact, made.why_not)


def _chosen(
    answers: NDArray[np.int64], labels: NDArray[np.int64], confidence: NDArray[np.floating], most: int
) -> tuple[list[int], list[int]]:
    """Return the rows of errors and of right answers; of `most` photos, half may be errors."""
    order = np.argsort(-confidence, kind="stable")
    wrong = [int(row) for row in order if answers[row] != labels[row]][: min(_MAX_WRONG, most // 2)]
    left = min(_MAX_RIGHT, most - len(wrong))
    classes = np.unique(labels)
    each = int(np.clip(left // max(len(classes), 1), 1, _MAX_OF_CLASS))
    sure = [row for row in order if answers[row] == labels[row]]
    right = [int(row) for label in classes for row in [row for row in sure if labels[row] == label][:each]]
    return wrong, right[:left]


def _drawn(crop: Pixels, maps: list[ClassMap]) -> tuple[ShownMap, ...]:
    """Draw maps of one photo on one scale."""
    limit = max(limit_of(each.values) for each in maps)
    return tuple(
        ShownMap(data_uri(blend(crop, each, limit, _SIDE_PIXELS, _SIDE_PIXELS)), each.label, each.score, limit)
        for each in maps
    )
