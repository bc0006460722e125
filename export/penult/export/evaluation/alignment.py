"""Compare photos pixel by pixel: the correlation of the parts that both show, at the best shift and scale.

Thumbnails are compared by their local contrast, so brightness, contrast and slow shading do not count. That is the
band-pass image divided by its local deviation. The normalised correlation at every shift comes from Fourier transforms
and running sums (Lewis, Fast normalized cross-correlation, 1995). It is that of the part which both photos show, as
with masks (Padfield, Masked object registration in the Fourier domain, IEEE TIP 21, 2012). Each photo is tried at
several scales.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

from penult.export.data.thumbnails import SIDE, Grey, resized

# Relative to the other photo: steps of 5 % leave an error of at most 0.8 pixels at the edges.
_SIDES = tuple(round(SIDE * 0.95**step) for step in range(8))
_MIN_OVERLAP = 0.4
# With at least 0.4 of the smaller photo shared, no shift is longer than 0.6 of the larger one.
_MAX_SHIFT = round(0.6 * SIDE)
_PERIOD = 108
# Pixels of a thumbnail: the finest detail kept, and the neighbourhood that its contrast is divided by.
_DETAIL, _NEIGHBOURHOOD = 2.0, 5.0
# Grey levels of noise: contrast below this is not raised to that of a textured surface.
_NOISE = 3.0
_CACHED = 384


@dataclass(frozen=True)
class _Scaled:
    """One photo at one scale: its spectrum, and the running sums of its squares [side + 1, side + 1]."""

    side: int
    spectrum: NDArray[np.complex64]
    energy: NDArray[np.float32]


@dataclass(frozen=True)
class _Shifts:
    """The shifts of one photo against another: the parts that both show, and how many pixels these have."""

    at: NDArray[np.intp]
    first: tuple[NDArray[np.intp], NDArray[np.intp]]
    second: tuple[NDArray[np.intp], NDArray[np.intp]]
    allowed: NDArray[np.bool_]
    noise: NDArray[np.float32]


class Aligner:
    """Aligns photos by row; keeps what it computed for the last few hundred of them."""

    def __init__(self, thumbnail: Callable[[int], Grey]) -> None:
        """Take a function that returns a photo's thumbnail, uint8 [SIDE, SIDE]."""
        self._thumbnail = thumbnail
        self._known: OrderedDict[int, tuple[_Scaled, ...]] = OrderedDict()

    def correlation(self, first: int, second: int) -> float:
        """Return the largest correlation, at most 1, over all scales and shifts with enough in common."""
        one, other = self._scales(first), self._scales(second)
        pairs = [(one[0], scaled) for scaled in other] + [(scaled, other[0]) for scaled in one[1:]]
        return max(_correlation(a, b) for a, b in pairs)

    def _scales(self, row: int) -> tuple[_Scaled, ...]:
        if row in self._known:
            self._known.move_to_end(row)
            return self._known[row]
        grey = self._thumbnail(row)
        found = tuple(_scaled(grey, side) for side in _SIDES)
        self._known[row] = found
        if len(self._known) > _CACHED:
            self._known.popitem(last=False)
        return found


def _scaled(grey: Grey, side: int) -> _Scaled:
    pixels = resized(grey, side).astype(np.float32)
    detail = pixels - gaussian_filter(pixels, _DETAIL)
    detail /= np.sqrt(gaussian_filter(detail * detail, _NEIGHBOURHOOD)) + _NOISE
    energy = np.zeros((side + 1, side + 1), np.float32)
    energy[1:, 1:] = (detail * detail).cumsum(0).cumsum(1)
    return _Scaled(side, fft.rfft2(detail, (_PERIOD, _PERIOD)), energy)


@cache
def _shifts(first: int, second: int) -> _Shifts:
    shift = np.arange(-_MAX_SHIFT, _MAX_SHIFT + 1)
    low, high = np.maximum(shift, 0), np.minimum(shift + second, first)
    length = np.maximum(high - low, 0)
    high = low + length
    area = np.outer(length, length)
    return _Shifts(
        shift % _PERIOD,
        (np.minimum(low, first), np.minimum(high, first)),
        (np.clip(low - shift, 0, second), np.clip(high - shift, 0, second)),
        area >= _MIN_OVERLAP * min(first, second) ** 2,
        (0.01 * area).astype(np.float32),
    )


def _correlation(first: _Scaled, second: _Scaled) -> float:
    shifts = _shifts(first.side, second.side)
    product = fft.irfft2(first.spectrum * second.spectrum.conj(), (_PERIOD, _PERIOD))[np.ix_(shifts.at, shifts.at)]
    energy = _part(first.energy, *shifts.first) * _part(second.energy, *shifts.second)
    found = product / (np.sqrt(np.maximum(energy, 0)) + shifts.noise + 1e-6)
    return float(found[shifts.allowed].max())


def _part(sums: NDArray[np.float32], low: NDArray[np.intp], high: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the sums over the squares from `low` to `high`, in both directions."""
    rows = sums[high] - sums[low]
    return rows[:, high] - rows[:, low]
