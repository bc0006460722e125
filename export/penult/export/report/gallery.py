"""Choose the photos of a report: the most confident errors, or correct answers of every class if there are none."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penult.bundle.scores import Floats, best_of
from penult.export.data.splitting import Photo
from penult.export.report.report_data import ReportData

_MAX_PHOTOS, _MAX_PAIRS = 12, 6
# Twice the width on the page, so that photos are sharp on phones.
_SIDE_PIXELS, _QUALITY = 240, 80


@dataclass(frozen=True)
class GalleryPhoto:
    """One photo as a data URI, its true class, the answer, and its confidence from 0 to 1."""

    uri: str
    true: str
    answer: str
    confidence: float


@dataclass(frozen=True)
class ShownPair:
    """A photo and its near-copy in another split, as data URIs, with their splits, names and similarity."""

    uris: tuple[str, str]
    splits: tuple[str, str]
    names: tuple[str, str]
    similarity: float


@dataclass(frozen=True)
class Gallery:
    """Errors on the test photos, or, if there are none, errors on validation photos and correct test photos."""

    test_errors: tuple[GalleryPhoto, ...] = ()
    val_errors: tuple[GalleryPhoto, ...] = ()
    right: tuple[GalleryPhoto, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if no photo is shown."""
        return not (self.test_errors or self.val_errors or self.right)


@dataclass(frozen=True)
class _Predictions:
    """The default scorer's answers [N] on `photos`, and their confidence [N]."""

    photos: Sequence[Photo]
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]
    confidence: Floats

    def confident_errors(self) -> NDArray[np.int64]:
        """Return the rows of wrong answers, the most confident first."""
        wrong = np.flatnonzero(self.answers != self.labels)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:_MAX_PHOTOS]

    def uncertain(self, classes: int) -> list[int]:
        """Return the rows of correct answers with the lowest confidence of every class, class by class."""
        right = np.flatnonzero(self.answers == self.labels)
        right = right[np.argsort(self.confidence[right], kind="stable")]
        if classes > _MAX_PHOTOS:
            return [int(row) for row in right[:_MAX_PHOTOS]]
        each = _MAX_PHOTOS // classes
        return [int(row) for label in range(classes) for row in right[self.labels[right] == label][:each]]


def gallery(report_data: ReportData) -> Gallery:
    """Return the photos to show, by the default scorer's answers; none if the report must not show photos."""
    if report_data.crops is None:
        return Gallery()
    scorer = report_data.manifest.default_scorer
    test = _predictions(report_data, report_data.splits.test, report_data.scores[scorer], report_data.labels)
    if len(rows := test.confident_errors()):
        return Gallery(test_errors=_show(report_data, test, rows))
    right = _show(report_data, test, test.uncertain(len(report_data.splits.classes)))
    if report_data.validation is None:
        return Gallery(right=right)
    held = report_data.validation
    val = _predictions(report_data, report_data.splits.val, held.scores[scorer], held.labels)
    return Gallery(val_errors=_show(report_data, val, val.confident_errors()), right=right)


def near_copies(report_data: ReportData) -> list[ShownPair]:
    """Return a few pairs of near-copies across splits; none if the report must not show photos."""
    few = report_data.near_copies[:_MAX_PAIRS]
    if report_data.crops is None or not few:
        return []
    crops = report_data.crops([photo for pair in few for photo in (pair.photo, pair.other)])
    name = report_data.splits.name
    return [
        ShownPair(
            (data_uri(crops[2 * place]), data_uri(crops[2 * place + 1])),
            (pair.part, pair.other_part),
            (name(pair.photo), name(pair.other)),
            pair.similarity,
        )
        for place, pair in enumerate(few)
    ]


def _predictions(
    report_data: ReportData, photos: Sequence[Photo], scores: Floats, labels: NDArray[np.int64]
) -> _Predictions:
    answers, confidence = best_of(scores, report_data.manifest.temperatures[report_data.manifest.default_scorer])
    return _Predictions(photos, labels, answers, confidence)


def _show(
    report_data: ReportData, found: _Predictions, rows: Sequence[int] | NDArray[np.int64]
) -> tuple[GalleryPhoto, ...]:
    if report_data.crops is None or not len(rows):
        return ()
    classes, crops = report_data.splits.classes, report_data.crops([found.photos[row] for row in rows])
    return tuple(
        GalleryPhoto(
            data_uri(crop), classes[found.labels[row]], classes[found.answers[row]], float(found.confidence[row])
        )
        for row, crop in zip(rows, crops, strict=True)
    )


def data_uri(crop: NDArray[np.uint8]) -> str:
    """Return a crop, uint8 [size, size, 3], as a JPEG of at most _SIDE_PIXELS."""
    image, buffer = Image.fromarray(crop), io.BytesIO()
    image.thumbnail((_SIDE_PIXELS, _SIDE_PIXELS))
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
