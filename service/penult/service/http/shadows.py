"""Versions that are only compared, for the status page."""

from dataclasses import asdict
from typing import Any

from penult.service.inference.shadow import OUTCOMES
from penult.service.observability.comparisons import Compared
from penult.service.observability.metric_window import MetricSnapshot
from penult.service.observability.metrics import Exposition


def shadows(metrics: Exposition, now: MetricSnapshot) -> list[dict[str, Any]]:
    """Return each shadow beside each version that clients got, as plain values; pairs are of primary and shadow."""
    found = [_told(compared, now) for compared in metrics.compared()]
    known = {(each["model"], str(each["version"])) for each in found}
    versions = {(dict(key)["model"], dict(key)["version"]) for key in now.of("penult_shadow_images_total")}
    # A shadow that has seen nothing yet.
    return found + [
        {"model": model, "version": int(version), "primary": None, "images": _images(now, model, version)}
        for model, version in sorted(versions - known)
    ]


def _told(compared: Compared, now: MetricSnapshot) -> dict[str, Any]:
    told = asdict(compared)
    seconds = told.pop("seconds")
    return told | {
        "images": _images(now, compared.model, str(compared.version)),
        "ms": seconds and [1000 * each for each in seconds],
    }


def _images(now: MetricSnapshot, model: str, version: str) -> dict[str, float]:
    return {
        outcome: now.sum("penult_shadow_images_total", model=model, version=version, outcome=outcome)
        for outcome in OUTCOMES
    }
