"""Transparent colours of PNGs, of every depth, against a picture computed from the raw samples."""

import struct
from collections.abc import Callable

import numpy as np
import pytest

from penult.bundle.preprocess import decode

# A plain value, the largest, and bits above the depth, of which the format says that they do not count.
_KEYS = {"grey": (0, 1, 2, 7, 255, 0x0102, 0xABCD, 0xFFFF), "rgb": ((1, 2, 3), (0x0102, 0x0304, 0x0506), (0xFFFF,) * 3)}


def shown(samples: np.ndarray, depth: int, channels: int) -> np.ndarray:
    """What 8-bit RGB the samples [H, W, channels] are, with no colour transparent."""
    if depth == 16:
        scaled = (samples + 128) // 257 if channels == 1 else samples >> 8
    else:
        scaled = samples * (255 // ((1 << depth) - 1))
    return np.broadcast_to(scaled, (*samples.shape[:2], 3)).astype(np.uint8)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("key", _KEYS["grey"])
def test_a_transparent_grey_is_white(make_png: Callable[..., bytes], depth: int, key: int, interlaced: bool):
    """Just the samples that equal the key's lowest bits are white; their neighbours keep their grey."""
    most = (1 << depth) - 1
    near = (key & most) + np.array([0, 1, -1, 256, -256, 257, 16, -16])
    samples = np.concatenate([near.clip(0, most), np.arange(40) % (most + 1)]).reshape(6, 8, 1)
    wanted = shown(samples, depth, 1).copy()
    wanted[samples[..., 0] == key & most] = 255
    found = np.asarray(decode(make_png(samples, depth, interlaced, trns=struct.pack(">H", key))))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("key", _KEYS["rgb"])
def test_a_transparent_colour_is_white(
    make_png: Callable[..., bytes], depth: int, key: tuple[int, int, int], interlaced: bool
):
    """Just the samples that equal the key in all three channels, to the last of 16 bits, are white."""
    most = (1 << depth) - 1
    exact = np.array(key) & most
    one_off = [exact + np.eye(3, dtype=int)[channel] * step for channel in range(3) for step in (-1, 1, -256, 256)]
    samples = np.array([exact, *one_off, exact, exact[::-1], [0, 0, 0]]).clip(0, most).reshape(4, 4, 3)
    wanted = shown(samples, depth, 3).copy()
    wanted[(samples == exact).all(axis=2)] = 255
    found = np.asarray(decode(make_png(samples, depth, interlaced, trns=struct.pack(">3H", *key))))
    assert np.array_equal(found, wanted)


def test_a_large_picture_of_16_bits_is_whitened_as_a_small_one(make_png: Callable[..., bytes]):
    """Also where it is worked on in several strips, and turned on its way."""
    samples = np.random.default_rng(0).integers(0, 65_536, (1100, 1000, 3))
    key = samples[1050, 7]
    found = np.asarray(decode(make_png(samples, 16, trns=struct.pack(">3H", *key))))
    wanted = shown(samples, 16, 3).copy()
    wanted[1050, 7] = 255
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_with_alpha_is_laid_on_white(make_png: Callable[..., bytes], depth: int):
    """Each entry has its own alpha; those that the chunk does not name are opaque."""
    entries = min(1 << depth, 40)
    rng = np.random.default_rng(depth)
    palette, alpha = rng.integers(0, 256, (entries, 3)), rng.integers(0, 256, entries - 1)
    index = (np.arange(48) % entries).reshape(6, 8, 1)
    found = np.asarray(
        decode(make_png(index, depth, palette=bytes(palette.ravel().tolist()), trns=bytes(alpha.tolist())))
    )
    opacity = np.append(alpha, 255)[:, None] / 255
    wanted = (palette * opacity + 255 * (1 - opacity))[index[..., 0]]
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("trns", [b"", bytes(6)])
def test_alpha_is_laid_on_white(make_png: Callable[..., bytes], depth: int, channels: int, trns: bytes):
    """Grey and colour with alpha; a transparent colour beside it counts for nothing."""
    samples = np.random.default_rng(0).integers(0, 1 << depth, (6, 8, channels))
    samples[0] = 0
    samples[1, :, :-1], samples[1, :, -1] = 0, (1 << depth) - 1
    found = np.asarray(decode(make_png(samples, depth, trns=trns)))
    share = samples / ((1 << depth) - 1)
    wanted = 255 * (share[..., :-1] * share[..., -1:] + 1 - share[..., -1:])
    assert np.abs(found - wanted).max() <= 2
