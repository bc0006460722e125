"""Certify the operating points of a bundle, and say in numbers and sentences what they are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penult.bundle.manifest import Manifest
from penult.bundle.operating_points import OperatingPoint, percent
from penult.bundle.scores import Floats, best_of, wilson
from penult.export.evaluation.abstaining import (
    USUAL_ERRORS,
    Answers,
    Certified,
    certify,
    certify_by_class,
    curve,
    photos_needed,
)

CERTIFYING, TEST = "certifying", "test"


@dataclass(frozen=True)
class Wanted:
    """What is to be certified: the default share of wrong answers, and whether each class has its own threshold."""

    max_error: float
    per_class: bool = False

    @property
    def errors(self) -> list[float]:
        """All shares to certify, the largest first."""
        return sorted({self.max_error, *USUAL_ERRORS}, reverse=True)

    def as_json(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return {"max_error": self.max_error, "per_class": self.per_class}


@dataclass(frozen=True)
class Evidence:
    """Scores [N, classes] by scorer, labels [N] and novelty bool [N] of labelled photos."""

    scores: Mapping[str, Floats]
    labels: np.ndarray
    is_novel: np.ndarray

    def at(self, rows: np.ndarray) -> "Evidence":
        """Return the evidence of some rows."""
        scores = {name: values[rows] for name, values in self.scores.items()}
        return Evidence(scores, self.labels[rows], self.is_novel[rows])

    def answers(self, scorer: str, temperature: float) -> Answers:
        """Return a scorer's answers."""
        named, confidence = best_of(self.scores[scorer], temperature)
        return Answers(confidence, named, named == self.labels, ~self.is_novel)


def certify_bundle(
    wanted: Wanted, manifest: Manifest, choosing: Evidence, certifying: Evidence, test: Evidence | None = None
) -> tuple[tuple[OperatingPoint, ...], dict[str, Any]]:
    """Return the operating points of all scorers, and the entry "abstaining" of metrics.json.

    Args:
        wanted: What is to be certified.
        manifest: The classes, the temperatures and the default scorer.
        choosing: Photos that fix the sequences of thresholds.
        certifying: Photos that decided nothing, of different groups.
        test: Photos that measure the points; None if there are none.
    """
    points: list[OperatingPoint] = []
    missing: list[dict[str, Any]] = []
    curves = {}
    for scorer in certifying.scores:
        chosen, own = (each.answers(scorer, manifest.temperatures[scorer]) for each in (choosing, certifying))
        for max_error in wanted.errors:
            point = _point(wanted, scorer, max_error, chosen, own, len(manifest.classes))
            if point:
                points.append(point)
            else:
                needed = _needed(wanted, _together(chosen, own), max_error)
                missing.append({"scorer": scorer, "max_error": max_error, "photos_needed": needed})
        drawn = test or certifying
        curves[scorer] = curve(drawn.answers(scorer, manifest.temperatures[scorer]))
    entry = {
        **wanted.as_json(),
        "confidence": 0.95,
        "photos": len(certifying.labels),
        "points": [_measured(point, manifest, test) for point in points],
        "not_certified": missing,
        "curve_of": TEST if test else CERTIFYING,
        "curve": curves,
    }
    entry["sentences"] = sentences(entry, manifest.default_scorer)
    return tuple(points), entry


def nothing(wanted: Wanted) -> dict[str, Any]:
    """Return the entry "abstaining" of metrics.json if no photo could be set aside."""
    said = f"No photo is left to certify {percent(wanted.max_error)} wrong answers; give more validation photos."
    return {
        **wanted.as_json(), "confidence": 0.95, "photos": 0, "points": [], "not_certified": [], "curve_of": TEST,
        "curve": {}, "sentences": [said],
    }  # fmt: skip


def _point(
    wanted: Wanted, scorer: str, max_error: float, choosing: Answers, certifying: Answers, classes: int
) -> OperatingPoint | None:
    found: Sequence[Certified | None]
    if wanted.per_class:
        found = certify_by_class(choosing, certifying, max_error, classes)
    else:
        found = [certify(choosing, certifying, max_error)]
    some = [each for each in found if each]
    if not some:
        return None
    return OperatingPoint(
        scorer=scorer,
        max_error=max_error,
        thresholds=tuple(each.threshold if each else None for each in found),
        photos=len(certifying),
        answered=sum(each.answered for each in some),
        wrong=sum(each.wrong for each in some),
        is_default=max_error == wanted.max_error,
    )


def _needed(wanted: Wanted, answers: Answers, max_error: float) -> int | None:
    """Return about how many certifying photos would do; with a threshold per class, for the first class."""
    if not wanted.per_class:
        return photos_needed(answers, max_error)
    found = []
    for label in np.unique(answers.named):
        own = answers.at(answers.named == label)
        if needed := photos_needed(own, max_error):
            found.append(round(needed * len(answers) / len(own)))
    return min(found, default=None)


def _together(first: Answers, second: Answers) -> Answers:
    columns = ((getattr(first, name), getattr(second, name)) for name in ("confidence", "named", "right", "known"))
    return Answers(*(np.concatenate(pair) for pair in columns))


def _measured(point: OperatingPoint, manifest: Manifest, test: Evidence | None) -> dict[str, Any]:
    """Return a point, with what it does on the test photos, for metrics.json."""
    found = point.as_json()
    if len(point.thresholds) > 1:
        found["never_answered"] = [
            name for name, limit in zip(manifest.classes, point.thresholds, strict=True) if limit is None
        ]
    if test:
        answers = test.answers(point.scorer, manifest.temperatures[point.scorer])
        rows = answers.answered(point.thresholds)
        answered, wrong = int(rows.sum()), int((rows & ~answers.right).sum())
        found["test"] = {
            "photos": len(answers),
            "answered": answered,
            "wrong": wrong,
            "novel": int((~answers.known).sum()),
            "coverage_95": list(wilson(answered / len(answers), len(answers))),
            "error_95": list(wilson(wrong / answered, answered)) if answered else None,
        }
    return found


def sentences(entry: Mapping[str, Any], default_scorer: str) -> list[str]:
    """Return what was certified for the default scorer, in words, and what was not for any scorer."""
    said = []
    for point in entry["points"]:
        if point["is_default"] and point["scorer"] == default_scorer:
            counts = f"{point['answered']} of {point['photos']} certifying photos, {point['wrong']} of them wrongly"
            each = ", for each class by itself" if entry["per_class"] else ""
            limit = f"at most {percent(point['max_error'])} of its answers are wrong"
            said.append(f"The {default_scorer} scorer answers {counts}: {limit}, at 95 % confidence{each}.")
            if point.get("never_answered"):
                said.append(f"Never answered, for lack of photos: {', '.join(point['never_answered'][:10])}.")
    missing = [each for each in entry["not_certified"] if each["max_error"] == entry["max_error"]]
    return said + [why_not(each, entry["photos"]) for each in missing]


def why_not(missing: Mapping[str, Any], photos: int) -> str:
    """Return why a share was not certified, and how many photos would do."""
    error, needed = percent(missing["max_error"]), missing["photos_needed"]
    said = f"{photos} photos cannot certify {error} wrong answers of {missing['scorer']}"
    if needed is None:
        return f"{said}: even its surest answers are wrong too often; allow more, or train with more photos."
    if needed <= photos:
        return f"{said}, by chance: about {needed:,} are usually enough; give more photos."
    return f"{said}: about {needed:,} would do, so give more photos."
