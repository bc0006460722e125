"""What decides a bundle's numbers after the network: who learns from which photos, and goldens for every device."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess
from penult.bundle.scores import as_columns
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.evaluation import svm
from penult.export.evaluation.choice import Plan, fit_and_choose
from penult.export.evaluation.dense_head import HeadRecipe
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.packaging import measure, refit_on_all, score, stable_rows


def _overlapping(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptors [N, 16] of six classes that overlap, and labels."""
    centres = np.random.default_rng(99).normal(size=(6, 16))
    labels = np.arange(count) % 6
    noise = np.random.default_rng(seed).normal(size=(count, 16))
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


def test_goldens_do_not_hang_on_rounding():
    """Photos on which two classes nearly tie are left out: their votes jump when a descriptor moves by a thousandth."""
    fitted = svm.fit(*_overlapping(240, 0), seed=0, kernel="rbf")
    descriptors, _ = _overlapping(600, 1)
    pairs = fitted.pipeline.set_params(svc__decision_function_shape="ovo").decision_function(descriptors)
    fitted.pipeline.set_params(svc__decision_function_shape="ovr")
    steady = stable_rows(descriptors, fitted)
    tied = np.flatnonzero((np.abs(pairs) < 1e-5).any(axis=1))
    assert 300 < len(steady) < 600
    assert set(tied).isdisjoint(steady)
    moved = descriptors[steady] * (1 + 2e-4 * np.random.default_rng(5).normal(size=(len(steady), 16)))
    scores = fitted.scores(descriptors[steady])
    assert np.abs(fitted.scores(moved.astype(np.float32)) - scores).max() < 0.1 * np.abs(scores).max()


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_where_no_photo_is_steady_all_may_be_goldens(kernel: str, monkeypatch: pytest.MonkeyPatch):
    """A bundle always has goldens; a linear SVM, which moves no further than its descriptors, keeps every photo."""
    fitted = svm.fit(*_overlapping(240, 0), seed=0, kernel=kernel)
    descriptors, _ = _overlapping(60, 1)
    if kernel == "rbf":
        monkeypatch.setattr("penult.export.jobs.packaging._MAX_MOVED", -1.0)
    assert stable_rows(descriptors, fitted).tolist() == list(range(60))


@pytest.mark.parametrize(("kernel", "weight"), [("linear", None), ("rbf", "balanced")])
def test_the_svm_learns_from_validation_photos_once_they_have_decided(kernel: str, weight: str | None):
    """The bundle's SVM is what was chosen, fitted on both parts; the validation photos' scores are from before."""
    parts = {"train": (120, 0), "val": (60, 1), "test": (60, 2)}
    measured = {part: _measured(*_overlapping(*counts)) for part, counts in parts.items()}
    train, val, test = (measured[part].descriptors for part in parts)
    chosen = svm.fit(train, measured["train"].labels, 3, kernel, weight)
    before = chosen.scores(test)
    final = refit_on_all(chosen, measured)
    both = np.concatenate([train, val]), np.concatenate([measured[part].labels for part in ("train", "val")])
    assert (final.kernel, final.c, final.gamma, final.photos) == (kernel, chosen.c, chosen.gamma, 180)
    assert np.array_equal(final.scores(test), as_columns(clone(chosen.pipeline).fit(*both).decision_function(test)))
    assert np.array_equal(chosen.scores(test), before)
    scores = score(measured, ("dense", "svm"), chosen, final)
    expected = {"train": chosen.scores(train), "val": chosen.scores(val), "test": final.scores(test)}
    assert all(np.array_equal(scores[part]["svm"], values) for part, values in expected.items())
    assert all(np.array_equal(scores[part]["dense"], m.logits) for part, m in measured.items())
    assert not np.allclose(final.scores(val), scores["val"]["svm"], atol=1e-2)
    assert list(score(measured, ("svm",), chosen, final)["test"]) == ["svm"]


def test_test_photos_decide_nothing():
    """With the labels of the test photos shuffled, default scorer, C and temperatures are the same; figures are not."""
    parts = {"train": (60, 0), "val": (24, 1), "test": (60, 2)}
    measured = {part: _measured(*_overlapping(*counts)) for part, counts in parts.items()}
    photos = {part: tuple(Photo(Path(str(n)), n % 6) for n in range(count)) for part, (count, _) in parts.items()}
    splits = Splits(tuple("abcdef"), **photos, notes=())
    draft = Manifest("tiny5", splits.classes, Preprocess(32, 32), 16, "dense", {})
    found = []
    for shuffled in (False, True):
        test = measured["test"].labels
        labels = np.random.default_rng(0).permutation(test) if shuffled else test
        given = measured | {"test": replace(measured["test"], labels=labels)}
        plan = Plan("linear", None, 0, is_frozen=True, head=HeadRecipe(0.2, head_epochs=2))
        chosen, choice = fit_and_choose(plan, given, np.arange(84), has_dense=True)
        final = refit_on_all(chosen, given)
        scores = score(given, ("dense", "svm"), chosen, final)
        manifest, metrics = measure(draft, splits, scores, {part: m.labels for part, m in given.items()}, choice)
        assert (manifest.default_scorer, metrics["choice"]) == (choice.scorer, choice.as_json())
        found.append((manifest, metrics["choice"], final.to_bytes(), metrics["test"]["svm"]["accuracy"]))
    assert found[0][:3] == found[1][:3]
    assert found[0][3] > found[1][3]


def _measured(descriptors: np.ndarray, labels: np.ndarray) -> SplitOutputs:
    return SplitOutputs(np.zeros((len(labels), 6), np.float32), descriptors, labels)
