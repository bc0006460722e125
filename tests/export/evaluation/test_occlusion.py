"""Occlusion: by how much the scores fall if a place of a photo is hidden."""

import numpy as np
import pytest

from penult.export.evaluation.class_maps import OcclusionMaps
from penult.export.evaluation.occlusion import PLACES, RUNS, falls


@pytest.mark.parametrize("size", [7, 32, 225])
def test_the_place_that_counts_is_found(size: int):
    """A scorer that reads the brightness of one place, for one class and against another, is seen through."""
    crop = np.full((size, size, 3), 40, np.uint8)
    at = int(1.5 / PLACES * size)
    crop[at, -1] = 240
    calls = []

    def scores_of(crops: np.ndarray) -> np.ndarray:
        calls.append(len(crops))
        bright = crops[:, at, -1].mean(axis=1, keepdims=True).astype(np.float32)
        return np.hstack([bright, -bright, 0 * bright])

    found = falls(scores_of, crop)
    assert calls == [RUNS] and found.shape == (3, PLACES, PLACES)
    row, column = np.unravel_index(found[0].argmax(), found[0].shape)
    assert column in (PLACES - 2, PLACES - 1) and abs(row - 1) <= 1
    assert found[0].max() > 100 and (found[1] == -found[0]).all() and not found[2].any()
    assert np.count_nonzero(found[0]) <= 6  # the place and its neighbours


def test_the_maps_are_of_the_classes_asked_for():
    """Each photo's maps are those of its own classes, cover the crop, and make no claim to add up to the score."""
    maps = OcclusionMaps("svm", "the kernel is rbf", ("a", "b"), lambda crops: crops.mean(axis=(1, 2))[:, :2])
    photos = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = maps.of(photos, [[1], [0, 1]])
    assert [[each.label for each in photo] for photo in found] == [["b"], ["a", "b"]]
    assert {each.area for photo in found for each in photo} == {(0, 0, 32, 32)}
    assert (maps.is_exact, maps.scorer, maps.why_not) == (False, "svm", "the kernel is rbf")
