"""Write the files of `penult inspect`: index.html, suspects.csv and duplicates.csv.

The page is one file of bounded size, with its photos as thumbnails. If there is more than it can show, the CSV files
have all.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from penult.bundle.preprocess import CROP, STRETCH, Preprocess
from penult.export.data.dataset import Splits
from penult.export.data.photo_measures import Measures
from penult.export.data.split_folders import PARTS
from penult.export.data.splitting import Photo
from penult.export.evaluation.photo_quality import Finding, find_weak, view
from penult.export.evaluation.suspects import LISTED_BELOW, Ranking
from penult.export.report.thumbnails import thumbnail_uris

PAGE_NAME, SUSPECTS_NAME, DUPLICATES_NAME = "index.html", "suspects.csv", "duplicates.csv"

# What the page shows at most; with thumbnails of this size it stays below MAX_PAGE_BYTES.
_MAX_SUSPECTS, _MAX_COPIES, _MAX_WEAK, _MAX_CLASSES, _MAX_CONFUSIONS, _VIEWS = 100, 24, 12, 200, 12, 4
MAX_PAGE_BYTES = 8 << 20

# Not the report's own templates: those bring matplotlib along, and memory is short while PyTorch exports the network.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("penult.export.report"),
    autoescape=jinja2.select_autoescape(["html"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["percent"] = lambda share: f"{100 * share:.1f} %"


@dataclass(frozen=True)
class Inspection:
    """What was found in the photos.

    Attributes:
        name: The name of the data.
        network: The name of the network that described the photos.
        spec: How photos become its input.
        splits: The photos; `photos` has those of all splits in a row, which all rows below refer to.
        measures: Brightness, sharpness and size.
        ranking: The labels; None if there is one class only.
        beside: The nearest photo with the label given, and the nearest with the label suggested, by suspect; -1 if
            there is none.
        pairs: Copies and near-copies: row, other row, similarity.
    """

    name: str
    network: str
    spec: Preprocess
    splits: Splits
    measures: Measures
    ranking: Ranking | None
    beside: Mapping[int, tuple[int, int]]
    pairs: Sequence[tuple[int, int, float]]

    @cached_property
    def photos(self) -> tuple[Photo, ...]:
        """The photos of all splits, in the order of PARTS."""
        return all_photos(self.splits)

    @cached_property
    def parts(self) -> list[str]:
        """The split of each photo."""
        return [part for part in PARTS for _ in getattr(self.splits, part)]

    @cached_property
    def findings(self) -> list[Finding]:
        """The photos with a weakness."""
        return find_weak(self.measures, self.spec)

    def label(self, row: int) -> str:
        """Return the label given to a photo."""
        return self.splits.classes[self.photos[row].label]

    def image(self, row: int) -> str:
        """Return the name of a photo, as --exclude takes it."""
        return self.splits.name(self.photos[row])


def all_photos(splits: Splits) -> tuple[Photo, ...]:
    """Return the photos of all splits in a row."""
    return tuple(photo for part in PARTS for photo in getattr(splits, part))


def shown_suspects(ranking: Ranking) -> NDArray[np.intp]:
    """Return the suspects that the page shows."""
    return ranking.listed[:_MAX_SUSPECTS]


def inspection_files(found: Inspection) -> dict[str, bytes]:
    """Return the files by name."""
    return {
        SUSPECTS_NAME: _csv(["image", "label", "suggested", "score"], suspect_rows(found)),
        DUPLICATES_NAME: _csv(
            ["image", "other", "similarity"],
            ([found.image(row), found.image(other), f"{similarity:.4f}"] for row, other, similarity in found.pairs),
        ),
        PAGE_NAME: _page(found),
    }


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def suspect_rows(found: Inspection, most: int | None = None) -> Iterable[list[str]]:
    """Yield image, label, suggested label and score of the suspects, at most `most`."""
    if found.ranking is None:
        return
    for row in found.ranking.listed[:most].tolist():
        suggested = found.splits.classes[found.ranking.suggested[row]]
        yield [found.image(row), found.label(row), suggested, f"{found.ranking.scores[row]:.4f}"]


def _page(found: Inspection) -> bytes:
    suspects = shown_suspects(found.ranking).tolist() if found.ranking else []
    pairs = sorted(found.pairs, key=lambda pair: (found.label(pair[0]) == found.label(pair[1]), -pair[2]))
    views = _examples(found.measures)
    rows = {*suspects, *views, *(row for row in _flat(found.beside[each] for each in suspects) if row >= 0)}
    rows |= {*_flat(pair[:2] for pair in pairs[:_MAX_COPIES])}
    rows |= {*_flat(finding.rows[:_MAX_WEAK] for finding in found.findings)}
    chosen = sorted(rows)
    pictures = dict(zip(chosen, thumbnail_uris([found.photos[row] for row in chosen]), strict=True))
    values = {
        "found": found,
        "pictures": pictures,
        "suspects": suspects,
        "listed": len(found.ranking.listed) if found.ranking else 0,
        "contradicted": found.ranking.contradicted if found.ranking else 0,
        "listed_below": LISTED_BELOW,
        "pairs": pairs[:_MAX_COPIES],
        "two_labels": sum(found.label(row) != found.label(other) for row, other, _ in found.pairs),
        "two_splits": sum(found.parts[row] != found.parts[other] for row, other, _ in found.pairs),
        "max_weak": _MAX_WEAK,
        "classes": _class_rows(found),
        "max_classes": _MAX_CLASSES,
        "confusions": _confusions(found.ranking),
        "network_view": _network_view(found, views),
        "parts": PARTS,
    }
    return _TEMPLATES.get_template("inspect.html").render(values).encode()


def _flat(groups: Iterable[Iterable[int]]) -> Iterable[int]:
    return (row for group in groups for row in group)


def _class_rows(found: Inspection) -> list[dict[str, Any]]:
    """Return the counts of every class, the class with the most suspects first if there are many classes."""
    counts = {part: Counter(photo.label for photo in getattr(found.splits, part)) for part in PARTS}
    suspects = Counter(found.photos[row].label for row in found.ranking.listed.tolist()) if found.ranking else Counter()
    rows = [
        {
            "name": name,
            "counts": [counts[part][label] for part in PARTS],
            "all": sum(counts[part][label] for part in PARTS),
            "suspects": suspects[label],
        }
        for label, name in enumerate(found.splits.classes)
    ]
    return sorted(rows, key=lambda row: -row["suspects"]) if len(rows) > _MAX_CLASSES else rows


def _confusions(ranking: Ranking | None) -> list[tuple[int, int, int]]:
    """Return the most frequent pairs of labels among suspects: label given, label suggested, photos."""
    if ranking is None:
        return []
    listed = ranking.listed
    pairs = Counter(zip(ranking.labels[listed].tolist(), ranking.suggested[listed].tolist(), strict=True))
    return [(*pair, count) for pair, count in pairs.most_common(_MAX_CONFUSIONS)]


def _examples(measures: Measures) -> list[int]:
    """Return a few photos from the squarest to the longest."""
    order = np.argsort(measures.aspect, kind="stable")
    return list(dict.fromkeys(order[np.linspace(0, len(order) - 1, _VIEWS).round().astype(int)].tolist()))


def _network_view(found: Inspection, rows: Sequence[int]) -> dict[str, Any]:
    """Return what a network sees of the photos, cropped and stretched, with examples."""
    crop = replace(found.spec, fit=CROP)
    seen = view(found.measures, crop)
    stretched = view(found.measures, replace(found.spec, fit=STRETCH, resize=found.spec.crop))
    boxes = []
    for row in rows:
        width, height = crop.resized_size(
            round(float(found.measures.width[row])), round(float(found.measures.height[row]))
        )
        across, down = 100 * crop.crop / width, 100 * crop.crop / height
        boxes.append((row, f"left: {50 - across / 2:.1f}%; top: {50 - down / 2:.1f}%; width: {across:.1f}%; "
                      f"height: {down:.1f}%", float(seen.shown[row])))  # fmt: skip
    return {
        "shown": float(np.median(seen.shown)),
        "least": float(seen.shown.min()),
        "below_half": int((seen.shown < 0.5).sum()),
        "stretched": float(np.median(stretched.stretched)),
        "most_stretched": float(stretched.stretched.max()),
        "examples": boxes,
    }
