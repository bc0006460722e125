"""Withhold answers by an operating point of the model's manifest: those that are unsure, and those to novel images."""

from collections.abc import Mapping
from dataclasses import dataclass

from penult.bundle.manifest import NOVELTY
from penult.bundle.operating_points import limits_by_class, percent
from penult.service.errors import InvalidRequest
from penult.service.inference.results import NEIGHBOURS, NOVEL, UNSURE, Scored
from penult.service.models.loader import ServedModel

# Of a share that crossed the wire in single precision.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class AnswerLimits:
    """The smallest probability of an answer, by class, and the share of wrong answers that it was certified for."""

    max_error: float
    by_class: Mapping[str, float]

    def reason(self, best: Scored, is_novel: bool) -> str:
        """Return why the answer to an image is withheld, "" if it is given."""
        if is_novel:
            return NOVEL
        return UNSURE if best.probability < self.by_class[best.label] else ""


def answer_limits(model: ServedModel, scorer: str | None, max_error: float = 0.0) -> AnswerLimits | None:
    """Return the limits of a request's answers.

    Args:
        model: The model.
        scorer: What scores, None for the model's default.
        max_error: The share of wrong answers asked for; 0 for the default operating point.

    Returns:
        None if nothing is withheld.

    Raises:
        InvalidRequest: No operating point is certified for `max_error`.
    """
    manifest = model.manifest
    chosen = scorer or manifest.default_scorer
    points = [point for point in manifest.operating_points if point.scorer == chosen]
    for point in points:
        is_it = abs(point.max_error - max_error) <= _ROUNDING * point.max_error if max_error else point.is_default
        if is_it:
            return AnswerLimits(point.max_error, limits_by_class(point, manifest.classes))
    if not max_error:
        return None
    if not points:
        why = "penult calibrate certifies some"
        if chosen in (NEIGHBOURS, NOVELTY):
            why = "its probabilities are not calibrated for that; leave max_error out"
        raise InvalidRequest(
            "MAX_ERROR", f"{model.name} version {model.version} has no operating points for {chosen}; {why}"
        )
    known = ", ".join(percent(point.max_error) for point in points)
    raise InvalidRequest(
        "MAX_ERROR",
        f"{model.name} version {model.version} is not certified for {percent(max_error)} by {chosen}; ask for {known}",
    )
