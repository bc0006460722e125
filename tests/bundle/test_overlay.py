"""Drawing a class map over its photo."""

import numpy as np
import pytest

from penult.bundle.class_map import ClassMap
from penult.bundle.overlay import blend, draw_map, limit_of


def redness(pixels: np.ndarray) -> np.ndarray:
    """Return how much redder than blue every pixel is, [H, W]."""
    return pixels[:, :, 0].astype(int) - pixels[:, :, 2]


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_places_for_the_class_are_warm_and_those_against_it_cool(grey):
    """Each place has its colour in its own part of the photo, on black and on white; 0 and the outside have none."""
    values = np.zeros((4, 4), np.float32)
    values[0, 0], values[3, 2] = 2.0, -2.0
    photo = np.full((500, 600, 3), grey, np.uint8)
    drawn = blend(photo, ClassMap("a", values, 0.0, (100, 50, 500, 450)), limit=2.0)
    warm = redness(drawn)
    assert drawn.shape == (500, 600, 3)
    assert warm[100, 150] > 80 and warm[400, 350] < -80
    assert abs(warm[250, 300]) <= 1 and abs(warm[100, 450]) <= 1
    outside = np.ones((500, 600), bool)
    outside[50:450, 100:500] = False
    assert (warm[outside] == 0).all() and drawn[outside].max() < drawn[250, 300].max()


def test_the_photo_stays_visible_below_the_fullest_colour():
    """An edge in the photo is an edge in the picture, where the map is largest."""
    photo = np.zeros((400, 400, 3), np.uint8)
    photo[:, 200:] = 255
    drawn = blend(photo, ClassMap("a", np.ones((7, 7), np.float32), 0.0, (0, 0, 400, 400)), limit=1.0).astype(int)
    assert (drawn[200, 210] - drawn[200, 190]).min() > 40


def test_half_a_contribution_has_less_colour_than_a_whole_one():
    """Colour says how much: of two maps on one scale, the smaller contribution is paler."""
    photo = np.full((400, 400, 3), 128, np.uint8)
    half, whole = (
        redness(blend(photo, ClassMap("a", np.full((2, 2), size, np.float32), 0.0, (0, 0, 400, 400)), limit=1.0))
        for size in (0.5, 1.0)
    )
    assert 20 < half[200, 200] < whole[200, 200] - 20


@pytest.mark.parametrize("size", [(9, 2000), (3000, 2000), (8, 8)])
def test_any_photo_gets_a_picture_with_text_below(size):
    """Tiny, narrow and large photos give a picture of bounded size, with text and scale below the photo."""
    height, width = size
    photo = np.full((height, width, 3), 200, np.uint8)
    drawn = draw_map(photo, ClassMap("很长的名字" * 20, np.eye(7, dtype=np.float32), 0.5, (0, 0, width, height)))
    assert drawn.dtype == np.uint8 and 320 <= drawn.shape[1] <= 1024 and drawn.shape[0] <= 1024 + 100
    foot = drawn[-70:].astype(int)
    assert (foot.min(axis=2) < 80).any()
    assert redness(foot).max() > 100 and redness(foot).min() < -80


def test_a_map_of_zeros_has_a_scale():
    """A map without contributions is drawn in grey and not refused."""
    values = np.zeros((2, 2), np.float32)
    assert limit_of(values) == 1.0
    drawn = draw_map(np.full((400, 400, 3), 90, np.uint8), ClassMap("a", values, 0.0, (0, 0, 400, 400)))
    assert (redness(drawn[:400]) == 0).all()
