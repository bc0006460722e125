"""How an accuracy is written: with few photos its interval leads, and a bare "100 %" is not written anywhere.

One rule says what few is: half the 95 % interval is more than HALF_WIDTH. It depends on the photos and on how many of
them were right: 35 photos are enough where all are right, 385 where half of them are.
"""

from collections.abc import Mapping
from typing import Any

from penult.bundle.scores import wilson

HALF_WIDTH = 0.05
RULE = f"few photos: the 95 % interval is wider than ±{100 * HALF_WIDTH:g} points"


def is_rough(low: float, high: float) -> bool:
    """Say whether an interval of shares is so wide that the share itself must not stand alone."""
    return high - low > 2 * HALF_WIDTH


def between(low: float, high: float) -> str:
    """Write an interval of shares: "82–100 %", or "95.1–98.6 %" if it is narrow enough for a decimal."""
    digits = 0 if is_rough(low, high) else 1
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f} %"


def share(right: int, photos: int) -> str:
    """Write a share of photos: in per cent, or as a count ("3 of 3") where there are few; "–" where there are none."""
    if not photos:
        return "–"
    return f"{right} of {photos}" if is_rough(*wilson(right / photos, photos)) else f"{100 * right / photos:.1f} %"


def is_few(figures: Mapping[str, Any]) -> bool:
    """Say whether the photos behind figures of evaluate() are few."""
    return bool(figures.get("few_photos", is_rough(*figures.get("accuracy_95", (0.0, 1.0)))))


def right_of(figures: Mapping[str, Any]) -> int:
    """Return how many photos were named right, from the figures of evaluate()."""
    right: int = round(figures["accuracy"] * figures["photos"])
    return right


def stated(figures: Mapping[str, Any]) -> str:
    """Write the accuracy in figures of evaluate() so that it can stand alone: the interval where photos are few."""
    return between(*figures["accuracy_95"]) if is_few(figures) else f"{100 * figures['accuracy']:.1f} %"


def counted(figures: Mapping[str, Any]) -> str:
    """Write how many photos were named right: "18 of 18"."""
    return f"{right_of(figures)} of {figures['photos']}"


def whole(figures: Mapping[str, Any], what: str) -> str:
    """Write everything that there is to know: "82–100 % (18 of 18 test photos)"; `what` is the kind of photos."""
    more = "" if is_few(figures) else f", {between(*figures['accuracy_95'])}"
    return f"{stated(figures)} ({counted(figures)} {what} photos{more})"


def decimal(value: float, figures: Mapping[str, Any]) -> str:
    """Write a figure from 0 to 1, such as macro-F1, with as many digits as the photos allow."""
    return f"{value:.1f}" if is_few(figures) else f"{value:.3f}"


def caution(figures: Mapping[str, Any]) -> str:
    """Return a sentence on what so few test photos leave open; "" where they are enough."""
    if not is_few(figures):
        return ""
    low, high = figures["accuracy_95"]
    return (
        f"{figures['photos']} test photos leave open whether {100 * low:.0f} or {100 * high:.0f} % of new photos will "
        "be named right. Test on more: --test 0.3, or a folder of test photos."
    )
