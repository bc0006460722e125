"""How good each model's answers are, for the status page."""

import logging
from typing import Any

from penult.service.observability.answer_window import Estimate
from penult.service.observability.metrics import Exposition
from penult.service.observability.truths import Summary

log = logging.getLogger(__name__)

_MAX_MISTAKES = 5


def accuracies(metrics: Exposition) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the estimate and what feedback says, by model and version, as plain values; None for what is not known."""
    try:
        estimates, summaries = metrics.accuracy()
    except OSError as error:  # the rest of the page is shown all the same
        log.warning("the file of feedback cannot be read: %s", error)
        return {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for estimate in estimates:
        found.setdefault((estimate.model, estimate.version), {})["estimate"] = _estimated(estimate)
    for summary in summaries:
        found.setdefault((summary.model, str(summary.version)), {})["live"] = _live(summary)
    return found


def _estimated(estimate: Estimate) -> dict[str, Any]:
    return {
        "accuracy": estimate.accuracy, "low": estimate.low, "high": estimate.high, "answers": estimate.answers,
        "unreliable": list(estimate.reasons),
    }  # fmt: skip


def _live(summary: Summary) -> dict[str, Any]:
    live = summary.live
    return {
        "accuracy": live and live.accuracy, "low": live and live.low, "high": live and live.high,
        "answers": live.answers if live else 0,
        "counts": dict(summary.counts),
        "mistakes": [list(mistake) for mistake in summary.mistakes(_MAX_MISTAKES)],
    }  # fmt: skip
