"""Convert pixels from the colors that an ICC profile names to sRGB.

Phones, cameras and screens have profiles of three primaries and three curves, as Display P3 and Adobe RGB. Those are
converted. Profiles of CMYK, of grey and with lookup tables are ignored, and so is one that is damaged or too large. The
profile is read here and not by littleCMS: it is input from outside, and the few numbers need no second native parser.
"""

import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Display P3 has 548 bytes, three curves of 4,096 entries have 24 KB. Larger ones hold lookup tables.
MAX_PROFILE_BYTES = 1 << 16
_MAX_TAGS, _MAX_CURVE = 100, 4096
_HEADER_BYTES, _ENTRY_BYTES = 128, 12
_PRIMARIES, _CURVES = (b"rXYZ", b"gXYZ", b"bXYZ"), (b"rTRC", b"gTRC", b"bTRC")
_LOOKUP_TABLE = b"A2B0"
# The columns are sRGB's red, green and blue as XYZ, adapted to D50 as in every profile.
_SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
_WHITE = (0.9642, 1.0, 0.8249)
# If the primaries do not add up to white, the profile is damaged. Old ones are a little off.
_WHITE_TOLERANCE = 0.05
# Of gray levels: below that a profile is sRGB, as its makers write it, and no pixel is changed.
_SAME_LEVELS = 2
_PARAMETERS = (1, 3, 4, 5, 7)
_LINEAR_STEPS = 1 << 16
_KEPT = 64

Pixels = NDArray[np.uint8]


class Conversion:
    """From a profile's colors to sRGB; colors that sRGB lacks are clipped."""

    def __init__(self, curves: NDArray[np.float64], primaries: NDArray[np.float64]) -> None:
        """Make the tables.

        Args:
            curves: Linear light of each channel's 256 levels, [3, 256].
            primaries: Linear sRGB of red, green and blue in its columns, [3, 3].
        """
        # What each level of a channel adds to linear sRGB: a pixel takes three rows and two sums.
        self._parts = (curves[:, :, None] * primaries.T[:, None, :] * (_LINEAR_STEPS - 1)).astype(np.float32)

    def __call__(self, pixels: Pixels) -> Pixels:
        """Return uint8 [..., 3] in sRGB."""
        red, green, blue = self._parts
        linear = red.take(pixels[..., 0], axis=0)
        linear += green.take(pixels[..., 1], axis=0)
        linear += blue.take(pixels[..., 2], axis=0)
        linear += 0.5
        np.clip(linear, 0, _LINEAR_STEPS - 1, out=linear)
        converted: Pixels = _encoded().take(linear.astype(np.uint16))
        return converted

    @property
    def changes_nothing(self) -> bool:
        """Whether the profile is sRGB's."""
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        return bool(np.abs(self(grid).astype(int) - grid).max() <= _SAME_LEVELS)


@lru_cache(1)
def _encoded() -> Pixels:
    """Return sRGB's level of linear light in 65,536 steps."""
    light = np.linspace(0, 1, _LINEAR_STEPS)
    level = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * level + 0.5).astype(np.uint8)


@lru_cache(_KEPT)
def conversion(profile: bytes) -> Conversion | None:
    """Return how to convert pixels of this profile; None for sRGB, and for a profile that is ignored."""
    if not _HEADER_BYTES < len(profile) <= MAX_PROFILE_BYTES:
        return None
    try:
        found = _read(profile)
    except (struct.error, ValueError, IndexError, KeyError):  # damaged, or of another kind
        return None
    return None if found is None or found.changes_nothing else found


def _read(profile: bytes) -> Conversion | None:
    """Return the conversion of an RGB profile of primaries and curves; raise ValueError, and errors of reading."""
    if profile[36:40] != b"acsp" or profile[16:24] != b"RGB XYZ ":
        return None
    (count,) = struct.unpack_from(">I", profile, _HEADER_BYTES)
    tags = {}
    for at in range(_HEADER_BYTES + 4, _HEADER_BYTES + 4 + _ENTRY_BYTES * min(count, _MAX_TAGS), _ENTRY_BYTES):
        name, start, size = struct.unpack_from(">4sII", profile, at)
        tags[name] = profile[start : start + size]
    if _LOOKUP_TABLE in tags:
        return None
    primaries = np.array([_xyz(tags[name]) for name in _PRIMARIES]).T
    if np.abs(primaries.sum(axis=1) - _WHITE).max() > _WHITE_TOLERANCE:
        raise ValueError("the primaries do not add up to white")
    curves = np.array([_curve(tags[name]) for name in _CURVES])
    if not (np.isfinite(curves).all() and (np.diff(curves) >= 0).all() and (np.ptp(curves, axis=1) > 0.5).all()):
        raise ValueError("a curve does not rise")
    return Conversion(curves.clip(0, 1), np.linalg.solve(_SRGB, primaries))


def _xyz(tag: bytes) -> list[float]:
    if tag[:4] != b"XYZ ":
        raise ValueError("no XYZ")
    return [number / 65536 for number in struct.unpack_from(">3i", tag, 8)]


def _curve(tag: bytes) -> NDArray[np.float64]:
    """Return linear light of 256 levels."""
    level = np.linspace(0, 1, 256)
    if tag[:4] == b"para":
        return _parametric(level, tag)
    if tag[:4] != b"curv":
        raise ValueError("no curve")
    (count,) = struct.unpack_from(">I", tag, 8)
    if count == 0:
        return level
    if count == 1:
        return np.power(level, int.from_bytes(tag[12:14], "big") / 256)
    if count > _MAX_CURVE or len(tag) < 12 + 2 * count:
        raise ValueError("a curve too long")
    return np.interp(level, np.linspace(0, 1, count), np.frombuffer(tag, ">u2", count, 12) / 65535)


def _parametric(level: NDArray[np.float64], tag: bytes) -> NDArray[np.float64]:
    """Return linear light by one of the five functions of ICC.1, section 10.18."""
    (kind,) = struct.unpack_from(">H", tag, 8)
    g, *rest = (number / 65536 for number in struct.unpack_from(f">{_PARAMETERS[kind]}i", tag, 12))
    a, b, c, d, e, f = rest + [1.0, 0.0, 0.0, 0.0, 0.0, 0.0][len(rest) :]
    if kind in (1, 2):  # below -b / a they are c, which is 0 in the first
        c, d, e, f = 0.0, -b / a if a else 0.0, c, c
    with np.errstate(all="ignore"):
        above = np.power(np.maximum(a * level + b, 0), g) + e
    light: NDArray[np.float64] = np.where(level >= d, above, c * level + f)
    return light
