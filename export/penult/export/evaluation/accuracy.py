"""Write accuracies as text: with few photos the interval replaces the share, so a bare "100 %" is never written.

Photos are few if half of the 95 % interval is more than HALF_WIDTH. If all answers are correct, 35 photos are enough.
If half of them are, 385 are needed.
"""

from collections.abc import Mapping
from typing import Any

from penult.bundle.scores import wilson

HALF_WIDTH = 0.05
RULE = f"few photos (a 95 % interval wider than ±{100 * HALF_WIDTH:g} points)"


def is_rough(low: float, high: float) -> bool:
    """Return True if an interval of shares is too wide to write the share alone."""
    return high - low > 2 * HALF_WIDTH


def between(low: float, high: float) -> str:
    """Return an interval of shares as text: "82–100 %", or "95.1–98.6 %" if it is narrow."""
    digits = 0 if is_rough(low, high) else 1
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f} %"


def share(right: int, photos: int) -> str:
    """Return a share of photos as text: per cent, "3 of 3" if there are few, "–" if there are none."""
    if not photos:
        return "–"
    return f"{right} of {photos}" if is_rough(*wilson(right / photos, photos)) else f"{100 * right / photos:.1f} %"


def is_few(figures: Mapping[str, Any]) -> bool:
    """Return True if the figures of evaluate() are of few photos."""
    return bool(figures.get("few_photos", is_rough(*figures.get("accuracy_95", (0.0, 1.0)))))


def right_of(figures: Mapping[str, Any]) -> int:
    """Return the number of correct answers in the figures of evaluate()."""
    right: int = round(figures["accuracy"] * figures["photos"])
    return right


def stated(figures: Mapping[str, Any]) -> str:
    """Return the accuracy in figures of evaluate() as text: per cent, or the interval if there are few photos."""
    return between(*figures["accuracy_95"]) if is_few(figures) else f"{100 * figures['accuracy']:.1f} %"


def counted(figures: Mapping[str, Any]) -> str:
    """Return the number of correct answers as text: "18 of 18"."""
    return f"{right_of(figures)} of {figures['photos']}"


def whole(figures: Mapping[str, Any], what: str) -> str:
    """Return accuracy, count and interval as text, such as "82–100 % (18 of 18 test photos)"."""
    more = "" if is_few(figures) else f", {between(*figures['accuracy_95'])}"
    return f"{stated(figures)} ({counted(figures)} {what} photos{more})"


def decimal(value: float, figures: Mapping[str, Any]) -> str:
    """Return a figure from 0 to 1, such as macro-F1, as text; with few photos it has one decimal."""
    return f"{value:.1f}" if is_few(figures) else f"{value:.3f}"


def caution(figures: Mapping[str, Any]) -> str:
    """Return a sentence on how uncertain the accuracy is with few test photos; "" if they are enough."""
    if not is_few(figures):
        return ""
    low, high = figures["accuracy_95"]
    return (
        f"With {figures['photos']} test photos, the accuracy on new photos may be between {100 * low:.0f} and "
        f"{100 * high:.0f} %. Use more test photos: --test 0.3, or a folder of test photos."
    )
