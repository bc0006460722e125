"""Descriptors in the plane: neighbours stay neighbours, the same seed gives the same map, and odd sets do no harm."""

import csv
import io

import numpy as np
import pytest

from penult.export.report import descriptor_map as module
from penult.export.report.descriptor_map import descriptor_map, map_csv


def _groups(count: int, length: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptors in three tight groups, and their group."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return (rng.normal(size=(3, length))[labels] + rng.normal(0, 0.02, (count, length))).astype(np.float32), labels


def test_groups_stay_apart():
    """In either map, each photo's nearest neighbour is of its own group."""
    descriptors, labels = _groups(60)
    found = descriptor_map(descriptors, 0)
    for points in (found.pca, found.tsne):
        distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(60) * 1e9
        assert (labels[distances.argmin(1)] == labels).all()
    assert found.explained > 0.9


def test_the_map_is_repeatable():
    """The same photos and seed give the same points."""
    one, other = (descriptor_map(_groups(40)[0], 3) for _ in range(2))
    assert np.array_equal(one.pca, other.pca)
    assert np.array_equal(one.tsne, other.tsne)


def test_length_does_not_matter():
    """Descriptors are compared by direction, as the SVM does: ten times longer ones give the same PCA."""
    descriptors = _groups(30)[0]
    longer = descriptors * np.linspace(1, 10, 30, dtype=np.float32)[:, None]
    assert np.allclose(descriptor_map(descriptors, 0).pca, descriptor_map(longer, 0).pca, atol=1e-5)


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch):
    """Of many photos a seeded sample is shown, without repetition and in order."""
    monkeypatch.setattr(module, "MAX_PHOTOS", 60)
    rows = descriptor_map(_groups(90)[0], 1).rows
    assert len(rows) == 60
    assert (np.diff(rows) > 0).all()
    assert rows.max() >= 60


@pytest.mark.parametrize("count", [2, 5, 9, 10, 31])
def test_few_photos_have_a_map(count: int):
    """A handful of photos has PCA, and t-SNE from ten on."""
    found = descriptor_map(_groups(count)[0], 0)
    assert found.pca.shape == (count, 2)
    assert (found.tsne is not None) == (count >= 10)


@pytest.mark.parametrize(
    "descriptors", [np.ones((1, 8)), np.ones((20, 8)), np.zeros((20, 8)), np.random.default_rng(0).normal(size=(20, 1))]
)
def test_what_cannot_be_laid_out_has_no_map(descriptors: np.ndarray):
    """One photo, equal descriptors, or a single number: no map, and no warning."""
    assert descriptor_map(descriptors.astype(np.float32), 0) is None


def test_the_csv_names_photos_by_their_row():
    """Each point carries its photo's row and class; t-SNE's cells are empty where there is none."""
    descriptors, labels = _groups(6)
    found = descriptor_map(descriptors, 0)
    rows = list(csv.DictReader(io.StringIO(map_csv(found, labels, ("a", "b", "c")).decode())))
    assert [(row["photo"], row["class"]) for row in rows] == [(str(n), "abc"[n % 3]) for n in range(6)]
    assert [float(row["pca_1"]) for row in rows] == pytest.approx(found.pca[:, 0].tolist(), rel=1e-3)
    assert {row["tsne_1"] for row in rows} == {""}
