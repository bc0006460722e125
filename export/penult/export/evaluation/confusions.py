"""Count one scorer's answers by class, with memory that stays small for ten thousand classes."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import wilson
from penult.export.evaluation.accuracy import share

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Confusions:
    """True classes and answers [N] as indices of `classes`; counts are [classes]."""

    classes: tuple[str, ...]
    labels: Counts
    answers: Counts

    @property
    def photos(self) -> Counts:
        """The photos of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def answered(self) -> Counts:
        """How many photos got each class as answer."""
        return np.bincount(self.answers, minlength=len(self.classes))

    @property
    def right(self) -> Counts:
        """How many photos of each class were answered correctly."""
        return np.bincount(self.labels[self.labels == self.answers], minlength=len(self.classes))

    def matrix(self, blocks: int) -> Counts:
        """Return photos by true class and answer, [blocks, blocks]; a block has neighbouring classes."""
        side = min(blocks, len(self.classes))
        cells = [values * side // len(self.classes) for values in (self.labels, self.answers)]
        return np.bincount(cells[0] * side + cells[1], minlength=side * side).reshape(side, side)

    def worst(self, count: int) -> list[tuple[str, str, str]]:
        """Return the most frequent mistakes: true class, answer, share of the class's photos (a count if few)."""
        pairs = self.labels * len(self.classes) + self.answers
        found, counts = np.unique(pairs[self.labels != self.answers], return_counts=True)
        rows, photos = [], self.photos
        for at in np.argsort(-counts, kind="stable")[:count]:
            true, answer = divmod(int(found[at]), len(self.classes))
            rows.append((self.classes[true], self.classes[answer], share(int(counts[at]), int(photos[true]))))
        return rows


@dataclass(frozen=True)
class ClassRow:
    """One class in a report: photos of every split, and recall and precision by scorer, as text."""

    number: int
    name: str
    counts: tuple[int, int, int]
    recall: tuple[str, ...]
    precision: tuple[str, ...]


def class_rows(
    by_scorer: Mapping[str, Confusions], counts: Sequence[tuple[int, int, int]], default: str
) -> list[ClassRow]:
    """Return a row per class, sorted by the upper end of the recall interval of the scorer `default`.

    So a class with one wrong photo comes after one with 25 wrong photos of 50. Classes without test photos come last.
    `counts` has the training, validation and test photos of each class.
    """
    first = by_scorer[default]
    tables = [(c.right.tolist(), c.photos.tolist(), c.answered.tolist()) for c in by_scorer.values()]
    right, photos = first.right.tolist(), first.photos.tolist()
    upper = [wilson(r / n, n)[1] if n else 2.0 for r, n in zip(right, photos, strict=True)]
    return [
        ClassRow(
            number=at + 1,
            name=first.classes[at],
            counts=counts[at],
            recall=tuple(share(right[at], photos[at]) for right, photos, _ in tables),
            precision=tuple(share(right[at], answered[at]) for right, _, answered in tables),
        )
        for at in sorted(range(len(first.classes)), key=lambda at: (upper[at], at))
    ]


def classes_csv(by_scorer: Mapping[str, Confusions], counts: Sequence[tuple[int, int, int]]) -> bytes:
    """Return a CSV with a row per class: photos by split, then correct photos and answers by scorer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["class", "training", "validation", "test", *(f"{s}_{n}" for s in by_scorer for n in ("right", "answered"))]
    )
    found = [column.tolist() for c in by_scorer.values() for column in (c.right, c.answered)]
    names = next(iter(by_scorer.values())).classes
    writer.writerows([name, *counts[at], *(column[at] for column in found)] for at, name in enumerate(names))
    return text.getvalue().encode()
