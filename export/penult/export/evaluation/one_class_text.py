"""Sentences on models with one class. The command line imports this module, so it must stay light."""

from collections.abc import Mapping
from typing import Any


def few_photos(novelty: Mapping[str, Any]) -> str:
    """Return a sentence on how uncertain the share of false alarms is; "" if there are enough held-out photos."""
    photos, enough, (low, high) = (
        novelty[key] for key in ("photos_held_out", "photos_enough", "share_above_interval_95")
    )
    if photos >= enough:
        return ""
    return (
        f"{photos} held-out photos are few for a threshold at {100 * novelty['false_alarms']:g} % false alarms: the "
        f"share of new photos above it may be {100 * low:.1f} to {100 * high:.1f} %; {enough} would do"
    )


def classes_text(classes: tuple[str, ...]) -> str:
    """Return the number of classes as text, and the name of a single one."""
    if len(classes) > 1:
        return f"{len(classes)} classes"
    return f"one class, {classes[0]!r}, so novelty is all that the model scores"
