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

_MIN_OVERLAP = 0.4
# Grey levels of noise: contrast below this is not raised to that of a textured surface.
_NOISE = 3.0


@dataclass(frozen=True)
class Resolution:
    """How finely photos are compared.

    Attributes:
        side: The side of the thumbnails in pixels.
        steps: The scales that are tried, in steps of 5 %.
        period: Of the Fourier transforms, at least a side and the longest shift.
        detail: The finest detail kept, in pixels.
        neighbourhood: What the contrast is divided by, in pixels.
        cached: Photos whose spectra are kept in memory.
    """

    side: int
    steps: tuple[int, ...]
    period: int
    detail: float
    neighbourhood: float
    cached: int

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides at all scales."""
        return tuple(round(self.side * 0.95**step) for step in self.steps)

    @property
    def max_shift(self) -> int:
        """The longest shift in pixels: at least 0.4 of the smaller photo is shared, so 0.6 of the larger one."""
        return round(0.6 * self.side)


# Steps of 5 % leave an error of at most 0.8 pixels at the edges. The coarse one takes a tenth of the time.
FINE = Resolution(SIDE, tuple(range(8)), 108, 2.0, 5.0, 384)
COARSE = Resolution(SIDE // 2, (0, 2, 4, 6), 54, 1.5, 3.5, 4096)


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

    def __init__(self, thumbnail: Callable[[int], Grey], resolution: Resolution = FINE) -> None:
        """Take a function that returns a photo's thumbnail, uint8 [SIDE, SIDE]."""
        self._thumbnail = thumbnail
        self._resolution = resolution
        self._known: OrderedDict[int, tuple[_Scaled, ...]] = OrderedDict()

    def correlation(self, first: int, second: int) -> float:
        """Return the largest correlation, at most 1, over all scales and shifts with enough in common."""
        one, other = self._scales(first), self._scales(second)
        pairs = [(one[0], scaled) for scaled in other] + [(scaled, other[0]) for scaled in one[1:]]
        return max(_correlation(a, b, self._resolution) for a, b in pairs)

    def _scales(self, row: int) -> tuple[_Scaled, ...]:
        if row in self._known:
            self._known.move_to_end(row)
            return self._known[row]
        grey = self._thumbnail(row)
        found = tuple(_scaled(grey, side, self._resolution) for side in self._resolution.sides)
        self._known[row] = found
        if len(self._known) > self._resolution.cached:
            self._known.popitem(last=False)
        return found


def _scaled(grey: Grey, side: int, resolution: Resolution) -> _Scaled:
    pixels = resized(grey, side).astype(np.float32)
    detail = pixels - gaussian_filter(pixels, resolution.detail)
    detail /= np.sqrt(gaussian_filter(detail * detail, resolution.neighbourhood)) + _NOISE
    energy = np.zeros((side + 1, side + 1), np.float32)
    energy[1:, 1:] = (detail * detail).cumsum(0).cumsum(1)
    return _Scaled(side, fft.rfft2(detail, (resolution.period, resolution.period)), energy)


@cache
def _shifts(first: int, second: int, resolution: Resolution) -> _Shifts:
    shift = np.arange(-resolution.max_shift, resolution.max_shift + 1)
    low, high = np.maximum(shift, 0), np.minimum(shift + second, first)
    length = np.maximum(high - low, 0)
    high = low + length
    area = np.outer(length, length)
    return _Shifts(
        shift % resolution.period,
        (np.minimum(low, first), np.minimum(high, first)),
        (np.clip(low - shift, 0, second), np.clip(high - shift, 0, second)),
        area >= _MIN_OVERLAP * min(first, second) ** 2,
        (0.01 * area).astype(np.float32),
    )


def _correlation(first: _Scaled, second: _Scaled, resolution: Resolution) -> float:
    shifts, period = _shifts(first.side, second.side, resolution), (resolution.period, resolution.period)
    product = fft.irfft2(first.spectrum * second.spectrum.conj(), period)[np.ix_(shifts.at, shifts.at)]
    energy = _part(first.energy, *shifts.first) * _part(second.energy, *shifts.second)
    found = product / (np.sqrt(np.maximum(energy, 0)) + shifts.noise + 1e-6)
    return float(found[shifts.allowed].max())


def _part(sums: NDArray[np.float32], low: NDArray[np.intp], high: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the sums over the squares from `low` to `high`, in both directions."""
    rows = sums[high] - sums[low]
    return rows[:, high] - rows[:, low]
