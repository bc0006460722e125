"""The SVM: C searched on the training photos alone, plain pickle out."""

import pickle
import pickletools
from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from penult.bundle.reader import read_bundle
from penult.bundle.scores import as_columns
from penult.export import svm
from penult.export.data import load_splits
from penult.export.photos import Cache, PhotoReader
from penult.export.runtime import ExportedModel
from penult.export.settings import TrainSettings


def _blobs(classes: int, count: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptors [N, 16] around one random centre per class, and labels."""
    centres = np.random.default_rng(99).normal(size=(classes, 16)) * 3
    labels = np.arange(count) % classes
    noise = np.random.default_rng(seed).normal(size=(count, 16)) * spread
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_it_tells_classes_apart(classes: int):
    """Two, three and twelve classes are learnt; scores have a column for each, and the largest names the class."""
    fitted = svm.fit(*_blobs(classes, 240, 1.0), seed=0)
    unseen, labels = _blobs(classes, 240, 1.0, seed=1)
    scores = fitted.scores(unseen)
    assert (scores.shape, scores.dtype) == ((240, classes), np.float32)
    assert (scores.argmax(1) == labels).mean() > 0.98
    assert np.array_equal(scores.argmax(1), fitted.pipeline.predict(unseen))


def test_c_is_the_smallest_of_the_best():
    """Every C of the grid is tried, and of equally good ones the smallest wins."""
    fitted = svm.fit(*_blobs(3, 120, 0.01), seed=0)
    assert set(fitted.accuracy_by_c) == set(svm.GRID)
    assert set(fitted.accuracy_by_c.values()) == {1.0}
    assert fitted.c == min(svm.GRID)


def test_c_is_searched():
    """Where small values of C cannot tell a rare class apart, a larger one is chosen, and used."""
    rng = np.random.default_rng(0)
    labels = (np.arange(200) % 4 == 0).astype(np.int64)
    descriptors = np.ones((200, 8), np.float32)
    descriptors[:, 0] += labels * 0.1 + rng.normal(0, 0.02, 200)
    fitted = svm.fit(descriptors, labels, seed=0)
    accuracy = fitted.accuracy_by_c
    assert accuracy[svm.GRID[0]] == 0.75
    assert accuracy[fitted.c] == max(accuracy.values()) > 0.95
    assert fitted.c == fitted.pipeline[-1].C > svm.GRID[0]


def test_the_search_ends_where_c_only_hurts():
    """Once larger values have been worse for a while, still larger and slower ones are not tried."""
    descriptors, labels = _blobs(4, 80, 12.0)
    fitted = svm.fit(descriptors, labels, seed=0)
    tried = list(fitted.accuracy_by_c)
    assert tried == list(svm.GRID[: len(tried)])
    assert len(tried) < len(svm.GRID)
    best = max(fitted.accuracy_by_c.values())
    assert fitted.accuracy_by_c[fitted.c] == best
    assert fitted.accuracy_by_c[tried[-1]] < best


def test_length_does_not_matter():
    """Descriptors are normalised inside the pipeline: scaling one changes nothing."""
    descriptors, labels = _blobs(3, 120, 1.0)
    fitted = svm.fit(descriptors, labels, seed=0)
    assert np.allclose(fitted.scores(descriptors * 50), fitted.scores(descriptors), atol=1e-5)


def test_the_same_seed_gives_the_same_svm():
    """Fits repeat bit for bit."""
    first, again = (svm.fit(*_blobs(3, 120, 4.0), seed=5) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert first.accuracy_by_c == again.accuracy_by_c


@pytest.mark.parametrize("counts", [(2, 2), (2, 30), (3, 2, 9)])
def test_few_photos_are_enough(counts: tuple[int, ...]):
    """Two photos of a class are enough to search C without a warning."""
    labels = np.repeat(np.arange(len(counts)), counts)
    descriptors = np.eye(len(counts), 16, dtype=np.float32)[labels] + 0.01
    fitted = svm.fit(descriptors, labels, seed=0)
    assert np.array_equal(fitted.scores(descriptors).argmax(1), labels)


def test_the_pickle_is_plain_and_protocol_5():
    """svm.pkl is one pickle of protocol 5 that scikit-learn alone can load, and that scores as before."""
    descriptors, labels = _blobs(3, 120, 1.0)
    fitted = svm.fit(descriptors, labels, seed=0)
    data = fitted.to_bytes()
    operations = list(pickletools.genops(data))
    assert (operations[0][0].name, operations[0][1]) == ("PROTO", 5)
    assert operations[-1][2] == len(data) - 1
    again = pickle.loads(data)
    assert isinstance(again, Pipeline)
    assert isinstance(again[-1], LinearSVC)
    assert np.array_equal(as_columns(again.decision_function(descriptors)), fitted.scores(descriptors))


def test_it_is_fitted_on_training_photos_only(trained: Any, digits: Any):
    """The published SVM and its C are what the training part's descriptors alone give: no other photo was seen."""
    settings = TrainSettings(data=digits, out=trained.folder.parent, arch="tiny5", weights="none", freeze=0)
    bundle, splits = read_bundle(trained.folder.parent), load_splits(settings)
    assert splits.sha256 == bundle.manifest.training["data_sha256"]
    reader = PhotoReader(bundle.manifest.preprocess, Cache(1 << 24), settings.batch_size)
    _, descriptors, labels = ExportedModel(bundle.onnx, bundle.manifest).run_all(reader.crops(splits.train, "test"))
    again, published = svm.fit(descriptors, labels, settings.seed), pickle.loads(bundle.svm)
    assert again.as_json() == trained.metrics["svm"]
    assert again.c == published[-1].C
    assert np.allclose(published[-1].coef_, again.pipeline[-1].coef_, atol=1e-6)
