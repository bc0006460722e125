"""Operating points: thresholds on probability above which answers are wrong at most so often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MAX_POINTS = 100
_TYPES = {
    "scorer": (str,),
    "max_error": (float, int),
    "thresholds": (list,),
    "photos": (int,),
    "answered": (int,),
    "wrong": (int,),
    "is_default": (bool,),
}


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds of one scorer, certified on labelled photos that had chosen nothing before.

    Attributes:
        scorer: The scorer whose probabilities are compared.
        max_error: The share of wrong answers among photos that are answered, which was certified at 95 %.
        thresholds: The smallest probability of an answer, for all classes, or one for each in the manifest's order. A
            class with None is never answered.
        photos: How many photos certified it, of different groups.
        answered: How many of them were at or above the threshold, and not novel.
        wrong: How many of those were wrong.
        is_default: Whether requests use it that do not ask for another one.
    """

    scorer: str
    max_error: float
    thresholds: tuple[float | None, ...]
    photos: int
    answered: int
    wrong: int
    is_default: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the entry of manifest.json."""
        return vars(self) | {"thresholds": list(self.thresholds)}

    @classmethod
    def from_json(cls, value: Any) -> "OperatingPoint":
        """Read an entry of manifest.json; raise TypeError, KeyError or ValueError if it cannot be right."""
        for name, kinds in _TYPES.items():
            if type(value[name]) not in kinds:
                raise TypeError(f"{name} of an operating point must be {kinds[0].__name__}")
        thresholds = tuple(_threshold(each) for each in value["thresholds"])
        given = {name: value[name] for name in _TYPES}
        return cls(**given | {"thresholds": thresholds, "max_error": float(value["max_error"])})


def _threshold(value: Any) -> float | None:
    if value is not None and type(value) not in (float, int):
        raise TypeError("a threshold must be a number or null")
    return None if value is None else float(value)


def check(points: Sequence[OperatingPoint], scorers: Sequence[str], classes: int) -> None:
    """Raise ValueError if operating points do not fit the scorers and classes of a bundle."""
    if len(points) > _MAX_POINTS:
        raise ValueError(f"there may be at most {_MAX_POINTS} operating points")
    if len({(point.scorer, point.max_error) for point in points}) < len(points):
        raise ValueError("two operating points of one scorer have the same max_error")
    for point in points:
        if point.scorer not in scorers:
            raise ValueError(f"an operating point is for {point.scorer!r:.20}, which is no scorer of this bundle")
        if not 0 < point.max_error < 1 or not 0 <= point.wrong <= point.answered <= point.photos:
            raise ValueError("the numbers of an operating point contradict each other")
        if len(point.thresholds) not in (1, classes):
            raise ValueError("an operating point has one threshold, or one for each class")
        if not all(each is None or 0 <= each <= 1 for each in point.thresholds):
            raise ValueError("thresholds are probabilities, or null")
    defaults = [point.scorer for point in points if point.is_default]
    if len(set(defaults)) < len(defaults):
        raise ValueError("a scorer has two default operating points")


def percent(share: float) -> str:
    """Return a share as text, such as 2.5%."""
    return f"{100 * share:.3g}%"


def limits_by_class(point: OperatingPoint, classes: Sequence[str]) -> Mapping[str, float]:
    """Return the smallest probability of an answer by class; infinite for a class that is never answered."""
    given = point.thresholds * (1 if len(point.thresholds) > 1 else len(classes))
    return {name: float("inf") if limit is None else limit for name, limit in zip(classes, given, strict=True)}
