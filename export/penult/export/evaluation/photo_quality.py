"""List photos that a learner may not make much of: dark, blurred, small or long ones. Ranks, and drops nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.preprocess import Preprocess
from penult.export.data.photo_measures import Measures

# Grey values of 0 to 255: below the first, or above the second, hardly anything is left to see.
_DARK, _BRIGHT, _FLAT = 40, 235, 8
# Sharpness so many robust deviations below the median, on a log scale, and at most this share of the median.
_DEVIATIONS, _MAX_SHARE = 3.0, 0.4
_LONG = 2.0
_MIN_LOG = 0.1


@dataclass(frozen=True)
class Finding:
    """Photos with one weakness.

    Attributes:
        name: The key in JSON.
        title: The heading.
        rule: When a photo is listed, and what follows for learning.
        rows: The photos, the worst first.
        values: What was measured of each of them, as text.
    """

    name: str
    title: str
    rule: str
    rows: tuple[int, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """How much of the photos a network sees.

    Attributes:
        shown: The share of each photo's area in its input, float [N].
        stretched: How many times more one side is shrunk than the other, float [N].
    """

    shown: NDArray[np.float64]
    stretched: NDArray[np.float64]


def find_weak(measures: Measures, spec: Preprocess) -> list[Finding]:
    """Return the findings on photos that a network with this preprocessing sees; some may list no photo."""
    short = np.minimum(measures.width, measures.height)
    blurred, median = _blur_limit(measures.sharpness), float(np.median(measures.sharpness))
    grey = [f"mean grey {value:.0f} of 255" for value in measures.brightness]
    size = [f"{width:.0f} x {height:.0f} pixels" for width, height in zip(measures.width, measures.height, strict=True)]
    return [
        _finding("dark", "Too dark", f"Mean grey value below {_DARK} of 255.", measures.brightness < _DARK,
                 measures.brightness, grey),
        _finding("bright", "Too bright", f"Mean grey value above {_BRIGHT} of 255.", measures.brightness > _BRIGHT,
                 -measures.brightness, grey),
        _finding("flat", "Almost one colour", f"Grey values deviate by less than {_FLAT} of 255.",
                 measures.contrast < _FLAT, measures.contrast,
                 [f"deviation {value:.1f} of 255" for value in measures.contrast]),
        _finding("blurred", "Blurred", "Much less sharp than the other photos, at 224 pixels.",
                 measures.sharpness < blurred, measures.sharpness,
                 [f"sharpness {value:.1f}, median {median:.1f}" for value in measures.sharpness]),
        _finding("small", "Too small", f"A side below the network's {spec.crop} pixels, so the photo is enlarged.",
                 short < spec.crop, short, size),
        _finding("long", "Odd aspect ratio", f"The longer side is at least {_LONG:g} times the shorter one.",
                 measures.aspect >= _LONG, -measures.aspect, size),
    ]  # fmt: skip


def view(measures: Measures, spec: Preprocess) -> View:
    """Return how much of each photo a network with this preprocessing sees."""
    sizes = [
        spec.resized_size(round(width), round(height))
        for width, height in zip(measures.width.tolist(), measures.height.tolist(), strict=True)
    ]
    shown = np.array([spec.crop**2 / (width * height) for width, height in sizes])
    across, down = (np.array([size[side] for size in sizes]) for side in (0, 1))
    across, down = across / measures.width, down / measures.height
    return View(shown, np.maximum(across, down) / np.minimum(across, down))


def _blur_limit(sharpness: NDArray[np.float32]) -> float:
    logs = np.log(np.maximum(sharpness, _MIN_LOG))
    median = float(np.median(logs))
    deviation = 1.4826 * float(np.median(np.abs(logs - median)))
    return float(np.exp(min(median - _DEVIATIONS * deviation, median + np.log(_MAX_SHARE))))


def _finding(
    name: str, title: str, rule: str, is_listed: NDArray[np.bool_], badness: NDArray[np.float32], values: Sequence[str]
) -> Finding:
    listed = np.flatnonzero(is_listed)
    rows = listed[np.argsort(badness[listed], kind="stable")].tolist()
    return Finding(name, title, rule, tuple(rows), tuple(values[row] for row in rows))
