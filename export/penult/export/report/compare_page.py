"""Write the files of `penult compare`: index.html, and photos.csv with both answers to every photo.

The page is one file of bounded size, with the photos that changed as thumbnails. If there are more than it can show,
photos.csv has all.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.drawing import inline
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.evaluation.accuracy import RULE, share
from penult.export.evaluation.cpu_time import CpuTimes
from penult.export.evaluation.paired import SIGNIFICANCE, Hits, p_text
from penult.export.evaluation.versions import (
    BECAME_RIGHT,
    BECAME_WRONG,
    BETTER,
    CHANGES,
    STAYED_WRONG,
    WORSE,
    Answers,
    Comparison,
)
from penult.export.report import plot_versions
from penult.export.report.report import TEMPLATES
from penult.export.report.thumbnails import thumbnail_uris

PAGE_NAME, TABLE_NAME = "index.html", "photos.csv"
# What the page shows at most; with 12 KB for each photo it stays below 4 MiB.
_MAX_SHOWN = {BECAME_WRONG: 96, BECAME_RIGHT: 96, STAYED_WRONG: 48}
_MAX_CLASSES = 200
_TITLES = {
    BECAME_WRONG: "Right before, wrong now",
    BECAME_RIGHT: "Wrong before, right now",
    STAYED_WRONG: "Wrong before, another wrong class now",
}
_UNCHANGED = "same"


@dataclass(frozen=True)
class SideBySide:
    """Two versions of a model on the same photos.

    Attributes:
        name: The model's name.
        split: The photos that were measured on, one of config.compare.SPLITS.
        splits: All photos of the data.
        photos: Those that are compared, in the order of the comparison.
        comparison: The answers.
        alone: By version, photos and correct answers of the classes that it alone knows.
        unknown: Photos of classes that neither version knows, by class.
        times: The CPU time of one photo.
        network_bytes: The size of each network's file.
        seen: Which photos have copies among those that were learnt from, bool [N].
        notes: Lines for the user.
        shows_photos: Whether the page shows photos.
    """

    name: str
    split: str
    splits: Splits
    photos: Sequence[Photo]
    comparison: Comparison
    alone: tuple[Mapping[str, Any], Mapping[str, Any]]
    unknown: Mapping[str, int]
    times: CpuTimes
    network_bytes: tuple[int, int]
    seen: Hits
    notes: tuple[str, ...]
    shows_photos: bool

    @property
    def versions(self) -> tuple[Answers, Answers]:
        """The former and the latter version."""
        return self.comparison.before, self.comparison.after

    @cached_property
    def without_seen(self) -> dict[str, Any] | None:
        """What is measured without photos that have copies; None if there are none."""
        return self.comparison.without(self.seen) if self.seen.any() else None

    @property
    def speed(self) -> str:
        """The CPU time in words."""
        first, second = (each.version for each in self.versions)
        low, high = self.times.ratio_range
        middle = f"{self.times.ratio:.2f} (middle 80 % of {len(self.times.ms)} rounds: {low:.2f} to {high:.2f})"
        if low <= 1 <= high:
            return f"No difference in CPU time was seen: version {second} by version {first} is {middle}."
        word = "less" if high < 1 else "more"
        return f"Version {second} needs {word} CPU time: version {second} by version {first} is {middle}."

    @property
    def copies(self) -> str:
        """The photos with copies in words; "" if there are none."""
        if self.without_seen is None:
            return ""
        count = int(self.seen.sum())
        have = "1 photo has a copy" if count == 1 else f"{count} photos have copies"
        line = f"{have} or near-copies among the photos that are learnt from"
        if not self.without_seen["photos"]:
            return f"{line}; there are no others."
        first, second = (self.without_seen[name]["accuracy"] for name in ("before", "after"))
        return f"{line}. Without them: {100 * first:.1f} % and {100 * second:.1f} %. {self.without_seen['sentence']}"

    def as_json(self) -> dict[str, Any]:
        """Return plain values for --json."""
        found, classes = self.comparison, self.comparison.classes
        times = self.times.as_json()
        versions = {
            side: _facts(answers, size) | {"cpu_ms_per_image": times[f"cpu_ms_{side}"], "only_knows": dict(alone)}
            for side, answers, size, alone in zip(
                ("before", "after"), self.versions, self.network_bytes, self.alone, strict=True
            )
        }
        return {
            "model": self.name,
            "split": self.split,
            "photos": len(self.photos),
            "classes": list(classes.names[: classes.common]),
            "only_before": classes.only(0),
            "only_after": classes.only(1),
            "unknown": dict(self.unknown),
            **versions,
            "comparison": found.outcome,
            "changes": {name: self._names(rows) for name, rows in found.changes.items()},
            "by_class": found.by_class,
            "copies": int(self.seen.sum()),
            "without_copies": self.without_seen,
            "cpu_time": times | {"sentence": self.speed},
            "notes": list(self.notes),
        }

    def _names(self, rows: NDArray[np.intp]) -> list[str]:
        return [self.splits.name(self.photos[row]) for row in rows.tolist()]


def _facts(answers: Answers, network_bytes: int) -> dict[str, Any]:
    manifest = answers.manifest
    return {
        "version": answers.version,
        "scorer": answers.scorer,
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "fingerprint": manifest.fingerprint,
        "network_bytes": network_bytes,
        **answers.figures,
    }


def comparison_files(found: SideBySide) -> dict[str, bytes]:
    """Return the files by name."""
    return {TABLE_NAME: _table(found), PAGE_NAME: _page(found)}


def _table(found: SideBySide) -> bytes:
    """Return a CSV with the true class, both answers with probabilities, and the change of every photo."""
    text, names = io.StringIO(), found.comparison.classes.names
    writer = csv.writer(text, lineterminator="\n")
    numbers = [each.version for each in found.versions]
    answered = (f"{what}_{number}" for number in numbers for what in ("version", "probability"))
    writer.writerow(["image", "class", *answered, "change", "has_copy"])
    changes = {int(row): name for name, rows in found.comparison.changes.items() for row in rows}
    for row, photo in enumerate(found.photos):
        cells = (cell for each in found.versions for cell in (names[each.named[row]], f"{each.confidence[row]:.6f}"))
        shown = found.splits.name(photo), names[found.comparison.labels[row]]
        writer.writerow([*shown, *cells, changes.get(row, _UNCHANGED), "yes" if found.seen[row] else "no"])
    return text.getvalue().encode()


@dataclass(frozen=True)
class _Card:
    """A photo that changed: data URI ("" for none), name, true class, and both answers with confidence."""

    uri: str
    name: str
    true: str
    answers: tuple[tuple[str, float], ...]


def _page(found: SideBySide) -> bytes:
    comparison = found.comparison
    plots = {"versions.svg": plot_versions.accuracies(comparison)}
    if drawn := plot_versions.calibration(comparison):
        plots["reliability.svg"] = drawn
    values = {
        "found": found,
        "first": found.versions[0],
        "second": found.versions[1],
        "outcome": comparison.outcome,
        "tone": {BETTER: "good", WORSE: "over-fit"}.get(comparison.outcome["verdict"], ""),
        "times": found.times,
        "sheets": [(_TITLES[name], len(comparison.changes[name]), _cards(found, name)) for name in CHANGES],
        "rows": _class_rows(comparison)[:_MAX_CLASSES],
        "significance": SIGNIFICANCE,
        "few_rule": RULE,
        "share": share,
        "p_text": p_text,
        "plots": plots,
        "drawn": lambda file, text: inline(plots[file], file.removesuffix(".svg"), text),
    }
    return TEMPLATES.get_template("compare.html").render(values).encode()


def _cards(found: SideBySide, change: str) -> list[_Card]:
    """Return the photos of one change that the page shows, with the most confident new answers first."""
    comparison, names = found.comparison, found.comparison.classes.names
    rows = comparison.changes[change][: _MAX_SHOWN[change]].tolist()
    photos = [found.photos[row] for row in rows]
    uris = thumbnail_uris(photos) if found.shows_photos else [""] * len(rows)
    return [
        _Card(
            uri,
            found.splits.name(photo),
            names[comparison.labels[row]],
            tuple((names[each.named[row]], float(each.confidence[row])) for each in found.versions),
        )
        for uri, photo, row in zip(uris, photos, rows, strict=True)
    ]


def _class_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row per class with photos, those with the largest change first."""
    rows = [{"name": name, **row} for name, row in comparison.by_class.items()]
    return sorted(rows, key=lambda row: (-abs(row["only_after"] - row["only_before"]), row["name"]))
