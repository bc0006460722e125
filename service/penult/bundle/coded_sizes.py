"""Sizes that the headers of coded images name: AV1's sequence headers, HEVC's parameter sets. No pixel is decoded."""

from collections.abc import Iterator
from dataclasses import dataclass

# AV1: types of its units. A frame is one unit, or a header and groups of tiles.
_AV1_SEQUENCE, _AV1_HEADER, _AV1_FRAME = 1, 3, 6
_AV1_CONFIG_BYTES = 4
# HEVC: types of its units below 32 are slices.
_HEVC_SLICES, _HEVC_PARAMETERS = 32, 33
_HEVC_CONFIG_BYTES, _HEVC_LENGTH_AT = 23, 21
_MAX_UNITS = 1 << 16


@dataclass(frozen=True)
class Coded:
    """The largest image that a header permits, and how many images follow."""

    width: int
    height: int
    images: int


class _Bits:
    """Reads bits from the left; raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def exponential(self) -> int:
        """Return a number in Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise IndexError
        return (1 << zeros) - 1 + self.take(zeros)


def av1_images(data: bytes, configurations: list[bytes]) -> list[Coded]:
    """Return the sizes of an AV1 image's sequence headers, in its data and configuration; raise IndexError."""
    sizes, images = [], 0
    for units in (data, *(each for each in configurations)):
        for kind, body in _av1_units(units):
            if kind == _AV1_SEQUENCE:
                sizes.append(_av1_size(body))
            images += kind in (_AV1_HEADER, _AV1_FRAME)
    return [Coded(*size, images if place == 0 else 0) for place, size in enumerate(sizes)]


def _av1_units(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data):
            return
        header = data[at]
        at += 2 if header & 4 else 1
        length = len(data) - at
        if header & 2:
            length, at = _leb128(data, at)
        if at + length > len(data):
            raise IndexError
        kind = header >> 3 & 15
        yield kind, data[at : at + length] if kind == _AV1_SEQUENCE else b""
        at += length
    raise IndexError


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, and where it ends."""
    number = 0
    for place in range(8):
        byte = data[at + place]
        number |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            return number, at + place + 1
    raise IndexError


def _av1_size(body: bytes) -> tuple[int, int]:
    """Return the largest width and height of a sequence header (AV1, section 5.5)."""
    bits = _Bits(body[:256])
    bits.take(4)
    is_reduced = bits.take(1)
    if is_reduced:
        bits.take(5)
    else:
        _skip_av1_timing(bits)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(across) + 1, bits.take(down) + 1
    # A frame of a full header may name a size of its own, of as many bits.
    return (width, height) if is_reduced else (1 << across, 1 << down)


def _skip_av1_timing(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):
        bits.take(64)
        if bits.take(1):
            bits.exponential()
        if bits.take(1):
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take(1):
            bits.take(4)


def hevc_images(data: bytes, configurations: list[bytes]) -> list[Coded]:
    """Return the sizes of an HEVC image's parameter sets, in its data and configuration; raise IndexError."""
    units: list[bytes] = []
    length_bytes = 4
    for body in configurations:
        length_bytes = (body[_HEVC_LENGTH_AT] & 3) + 1
        units += _hevc_configured(body)
    sizes, images = [], 0
    for unit in (*units, *_hevc_units(data, length_bytes)):
        kind = unit[0] >> 1 & 63
        if kind == _HEVC_PARAMETERS:
            sizes.append(_hevc_size(unit))
        elif kind < _HEVC_SLICES:
            images += unit[2] >> 7  # an image's first slice
    return [Coded(*size, images if place == 0 else 0) for place, size in enumerate(sizes)]


def _hevc_configured(body: bytes) -> Iterator[bytes]:
    """Yield the units in a decoder's configuration."""
    at = _HEVC_CONFIG_BYTES
    for _ in range(body[_HEVC_CONFIG_BYTES - 1]):
        count, at = int.from_bytes(body[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            length = int.from_bytes(body[at : at + 2], "big")
            if at + 2 + length > len(body) or length < 2:
                raise IndexError
            yield body[at + 2 : at + 2 + length]
            at += 2 + length


def _hevc_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """Yield the beginnings of the units in an item's data, each behind its length."""
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data):
            return
        length = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if at + length > len(data) or length < 3:
            raise IndexError
        yield data[at : at + min(length, 512)]
        at += length
    raise IndexError


def _hevc_size(unit: bytes) -> tuple[int, int]:
    """Return width and height of a sequence parameter set (HEVC, section 7.3.2.2)."""
    bits = _Bits(unit[2:512].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 96)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for has_profile, has_level in present:
        bits.take(88 * has_profile + 8 * has_level)
    bits.exponential()
    if bits.exponential() == 3:
        bits.take(1)
    return bits.exponential(), bits.exponential()
