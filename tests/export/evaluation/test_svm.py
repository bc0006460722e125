"""The SVM: C searched on the training photos alone, plain pickle out."""

import json
import pickle
import pickletools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.class_weight import compute_sample_weight
from tests.export.splits import splits_of

from penult.bundle import scores as bundle_scores
from penult.bundle.reader import read_bundle
from penult.bundle.scores import as_columns
from penult.export.config.train import TrainSettings
from penult.export.data.loader import Cache, PhotoReader
from penult.export.errors import SettingsError
from penult.export.evaluation import svm, svm_cost
from penult.export.evaluation.svm_search import GRID, RBF_GAMMAS, RBF_GRID, USUAL_C, Folds, Search, beats
from penult.export.onnx.runtime import ExportedModel
from penult.service.models.svm.scorer import load_scorer


def _blobs(classes: int, count: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptors [N, 16] around one random centre per class, and labels."""
    centres = np.random.default_rng(99).normal(size=(classes, 16)) * 3
    labels = np.arange(count) % classes
    noise = np.random.default_rng(seed).normal(size=(count, 16)) * spread
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


def _rings(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptors [N, 3] of unit length and labels: a cap around a pole, the equator, and the other cap."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    height = np.where(labels == 1, rng.uniform(-0.25, 0.25, count), rng.choice([-1, 1], count) * 0.8)
    angle = rng.uniform(0, 2 * np.pi, count)
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    return points.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_it_tells_classes_apart(classes: int, kernel: str, class_weight: str | None):
    """Two, three and twelve classes are learnt; scores have a column for each, and the largest names the class."""
    fitted = svm.fit(*_blobs(classes, 240, 1.0), seed=0, kernel=kernel, class_weight=class_weight)
    unseen, labels = _blobs(classes, 240, 1.0, seed=1)
    scores = fitted.scores(unseen)
    assert (fitted.kernel, scores.shape, scores.dtype) == (kernel, (240, classes), np.float32)
    assert (scores.argmax(1) == labels).mean() > 0.98
    assert np.array_equal(scores.argmax(1), fitted.pipeline.predict(unseen))


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_the_largest_score_is_the_prediction_where_classes_overlap(classes: int, kernel: str):
    """Also on 2,000 photos between the classes, argmax of the scores is scikit-learn's own prediction."""
    fitted = svm.fit(*_blobs(classes, 240, 8.0), seed=0, kernel=kernel)
    between, _ = _blobs(classes, 2000, 12.0, seed=1)
    named = fitted.scores(between).argmax(1)
    assert np.array_equal(named, fitted.pipeline.predict(between))
    assert len(set(named.tolist())) == classes


def test_c_is_the_smallest_of_the_best():
    """Where every photo is named right by the smallest C, it is taken, and nothing else is tried."""
    for kernel, grid in (("linear", GRID), ("rbf", RBF_GRID)):
        fitted = svm.fit(*_blobs(3, 120, 0.01), seed=0, kernel=kernel)
        assert fitted.accuracy_by_c == {grid[0]: 1.0}
        assert fitted.c == fitted.pipeline[-1].C == grid[0]
    assert [search.kernel for search in svm.fit(*_blobs(3, 120, 0.01), seed=0).searches] == ["linear"]


def test_ties_do_not_end_the_search_and_the_smallest_wins():
    """Where no value is better than the smallest, but not all photos are right, the whole grid is tried."""
    labels = (np.arange(100) % 10 == 0).astype(np.int64)
    fitted = svm.fit(np.ones((100, 4), np.float32), labels, seed=0, kernel="linear")
    assert fitted.accuracy_by_c == dict.fromkeys(GRID, 0.9)
    assert fitted.c == min(GRID)


def test_c_is_searched():
    """Where small values of C cannot tell a rare class apart, a larger one is chosen, and used."""
    rng = np.random.default_rng(0)
    labels = (np.arange(200) % 4 == 0).astype(np.int64)
    descriptors = np.ones((200, 8), np.float32)
    descriptors[:, 0] += labels * 0.1 + rng.normal(0, 0.02, 200)
    fitted = svm.fit(descriptors, labels, seed=0, kernel="linear")
    accuracy = fitted.accuracy_by_c
    assert accuracy[GRID[0]] == 0.75
    assert accuracy[fitted.c] == max(accuracy.values()) > 0.95
    assert fitted.c == fitted.pipeline[-1].C > GRID[0]


def _unit(descriptors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return Normalizer().fit_transform(descriptors), labels


def test_after_fine_tuning_the_usual_c_stays_unless_another_is_clearly_better():
    """Photos that the network has pulled apart are right at every C, which is no reason for the smallest one."""
    assert svm.fit(*_blobs(3, 120, 0.01), seed=0, is_fine_tuned=True).accuracy_by_c == {USUAL_C: 1.0}
    (search,) = svm.fit(*_blobs(3, 120, 0.01), seed=0, kernel="rbf", is_fine_tuned=True).searches
    assert list(search.accuracy) == [(USUAL_C, search.gamma)]
    assert search.gamma == pytest.approx(SVC(gamma="scale").fit(*_unit(*_blobs(3, 120, 0.01)))._gamma, rel=1e-3)
    descriptors, labels = _blobs(4, 120, 5.0)
    plain, tuned = (svm.fit(descriptors, labels, 0, "linear", is_fine_tuned=known) for known in (False, True))
    assert plain.c < tuned.c == USUAL_C
    assert tuned.accuracy_by_c[plain.c] - tuned.accuracy_by_c[tuned.c] < 0.1
    rng, labels = np.random.default_rng(0), (np.arange(200) % 4 == 0).astype(np.int64)
    descriptors = np.ones((200, 8), np.float32)
    descriptors[:, 0] += labels * 0.02 + rng.normal(0, 0.004, 200)
    found = svm.fit(descriptors, labels, 0, "linear", is_fine_tuned=True)
    assert found.c > USUAL_C
    assert found.accuracy_by_c[found.c] > found.accuracy_by_c[USUAL_C] + 0.1


def test_the_search_ends_where_c_only_hurts():
    """Once larger values have been worse for a while, still larger and slower ones are not tried."""
    descriptors, labels = _blobs(4, 80, 12.0)
    fitted = svm.fit(descriptors, labels, seed=0, kernel="linear")
    tried = list(fitted.accuracy_by_c)
    assert tried == list(GRID[: len(tried)])
    assert len(tried) < len(GRID)
    best = max(fitted.accuracy_by_c.values())
    assert fitted.accuracy_by_c[fitted.c] == best
    assert fitted.accuracy_by_c[tried[-1]] < best


def test_gamma_is_searched_around_scikit_learns_scale():
    """Every gamma is tried, the best (C, gamma) is used, and "scale" itself is among them."""
    descriptors, labels = _rings(200)
    fitted = svm.fit(descriptors, labels, seed=0, kernel="rbf")
    (search,) = fitted.searches
    gammas = sorted({gamma for _, gamma in search.accuracy})
    assert len(gammas) == len(RBF_GAMMAS)
    assert gammas[2] == pytest.approx(SVC(gamma="scale").fit(descriptors, labels)._gamma, rel=1e-3)
    assert search.accuracy[fitted.c, fitted.gamma] == max(search.accuracy.values())
    assert (fitted.pipeline[-1].C, fitted.pipeline[-1].gamma) == (fitted.c, fitted.gamma)


def test_the_search_on_distances_finds_what_plain_fits_find():
    """Accuracies from precomputed distances are those of Normalizer → SVC fitted fold by fold."""
    descriptors, labels = _blobs(3, 120, 9.0)
    (search,) = svm.fit(descriptors, labels, seed=3, kernel="rbf").searches
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    for c, gamma in list(search.accuracy)[::4]:
        plain = make_pipeline(Normalizer(), SVC(C=c, gamma=gamma, break_ties=True))
        found = cross_val_predict(plain, descriptors, labels, cv=folds)
        assert search.accuracy[c, gamma] == pytest.approx((found == labels).mean(), abs=1e-9)


def test_auto_takes_the_better_kernel():
    """Where no line parts the classes, auto is the RBF kernel; where one does, the linear: it serves quicker."""
    unlike, alike = svm.fit(*_rings(200), seed=0), svm.fit(*_blobs(3, 120, 6.0), seed=0)
    assert unlike.kernel == "rbf"
    assert isinstance(unlike.pipeline[-1], SVC)
    assert alike.kernel == "linear"
    assert isinstance(alike.pipeline[-1], LinearSVC)
    for fitted in (unlike, alike):
        assert {search.kernel for search in fitted.searches} == {"linear", "rbf"}
        assert fitted.searches[0].kernel == fitted.kernel


def test_a_lead_within_two_standard_errors_is_none():
    """RBF replaces the linear kernel only where it names clearly more photos right."""

    def search(kernel: str, right: int, photos: int = 100) -> Search:
        hits = (np.arange(photos) < right)[None]
        return Search(kernel, 1.0, 0.0, {(1.0, 0.0): hits.mean()}, np.arange(photos), hits)

    with ThreadPoolExecutor(1) as threads:
        folds = Folds(np.zeros(100, np.int64), None, 0, None, threads)
    for right, better in ((79, False), (80, False), (83, False), (85, True)):
        assert beats(search("rbf", right), search("linear", 80), folds) is better


def test_balanced_weights_reach_the_estimator():
    """class_weight decides the choice of C and the SVM itself: a rare class is named more often."""
    descriptors, labels = _blobs(2, 400, 14.0)
    rows = np.flatnonzero((labels == 0) | (np.arange(400) % 16 == 1))
    unseen, truth = _blobs(2, 400, 14.0, seed=1)
    for kernel in ("linear", "rbf"):
        plain, balanced = (svm.fit(descriptors[rows], labels[rows], 0, kernel, w) for w in (None, "balanced"))
        assert balanced.pipeline[-1].class_weight == "balanced"
        assert (plain.as_json()["criterion"], balanced.as_json()["criterion"]) == ("accuracy", "balanced accuracy")
        recall = [(f.scores(unseen[truth == 1]).argmax(1) == 1).mean() for f in (plain, balanced)]
        assert recall[1] > recall[0] + 0.1


def test_many_photos_are_searched_on_a_share_of_every_class(monkeypatch: pytest.MonkeyPatch):
    """Above the limit RBF is searched on that many photos, rare classes kept, and auto does not try it."""
    monkeypatch.setattr(svm_cost, "RBF_MAX_SEARCHED", 100)
    descriptors, labels = _blobs(3, 300, 1.0)
    labels[labels == 2] = np.where(np.arange(100) < 6, 2, 0)
    (search,) = svm.fit(descriptors, labels, seed=0, kernel="rbf").searches
    counts = np.bincount(labels[search.rows])
    assert 95 <= len(search.rows) <= 105
    assert counts[2] == 5
    assert counts[0] / counts[1] == pytest.approx((labels == 0).sum() / (labels == 1).sum(), rel=0.05)
    assert [search.kernel for search in svm.fit(descriptors, labels, seed=0).searches] == ["linear"]


def _squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every linear fit be too much for LIBLINEAR."""
    monkeypatch.setattr(svm_cost, "LINEAR_MAX_S", 0.0)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("classes", [2, 5])
def test_leaving_one_out_at_once_is_leaving_each_out(
    classes: int, class_weight: str | None, monkeypatch: pytest.MonkeyPatch
):
    """What least squares say of all photos at once is what as many fits say, each without the photo that it names."""
    _squares(monkeypatch)
    descriptors, labels = _blobs(classes, 60, 9.0)
    labels[: 60 // classes] = 0  # classes of different sizes, so that weights matter
    (search,) = svm.fit(descriptors, labels, 0, "linear", class_weight).searches
    found = [_left_out(row, descriptors, labels, search.c, class_weight) == labels[row] for row in range(60)]
    assert search.hits.tolist() == [found]
    assert 0.3 < search.hits.mean() < 1


def _left_out(row: int, descriptors: np.ndarray, labels: np.ndarray, c: float, class_weight: str | None) -> int:
    """Return the class that ridge regression to -1 and 1 names for a photo, learnt from the others; weights stay."""
    rest = np.arange(len(labels)) != row
    unit, weights = Normalizer().fit_transform(descriptors), compute_sample_weight(class_weight, labels)[rest]
    targets = np.where(labels[rest, None] == np.arange(labels.max() + 1), 1.0, -1.0)
    ridge = Ridge(alpha=1 / (2 * c)).fit(unit[rest].astype(np.float64), targets, weights)
    return int(ridge.predict(unit[[row]].astype(np.float64)).argmax())


@pytest.mark.parametrize("classes", [2, 12])
def test_least_squares_serve_as_linear_svms_do(classes: int, monkeypatch: pytest.MonkeyPatch):
    """The pipeline is one that scikit-learn and the service score alike, about as well as LIBLINEAR's."""
    unseen, truth = _blobs(classes, 600, 6.0, seed=1)
    usual = svm.fit(*_blobs(classes, 240, 6.0), seed=0, kernel="linear")
    _squares(monkeypatch)
    fitted = svm.fit(*_blobs(classes, 240, 6.0), seed=0)
    assert (fitted.kernel, usual.searches[0].solver, fitted.searches[0].solver) == (
        "linear",
        "LIBLINEAR",
        "least squares",
    )
    scores, accuracy = fitted.scores(unseen), [(f.scores(unseen).argmax(1) == truth).mean() for f in (fitted, usual)]
    assert np.array_equal(scores.argmax(1), pickle.loads(fitted.to_bytes()).predict(unseen))
    assert np.allclose(load_scorer(fitted.to_bytes(), 16, classes)(unseen), scores, atol=1e-5)
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.03)
    again = svm.fit_again(fitted, unseen, truth)
    assert (again.c, again.photos) == (fitted.c, 600)


def test_many_classes_are_searched_as_counts_say():
    """200 classes of 3 photos get no RBF, 10,000 least squares; whoever asks for RBF there is refused with the hours."""
    descriptors, labels = _blobs(200, 600, 1.0)
    fitted = svm.fit(descriptors, labels, seed=0)
    assert [search.kernel for search in fitted.searches] == ["linear"]
    assert (
        fitted.as_json()["search"]
        == "linear kernel; RBF is not tried, because there are fewer than 5 training photos per class"
    )
    assert (fitted.scores(descriptors).argmax(1) == labels).mean() > 0.95
    many = svm_cost.Counts(20_000, 10_000, 512, 2)
    assert svm_cost.linear_share(many) == 0
    with pytest.raises(SettingsError, match=r"all 49,995,000 pairs of 10,000 classes: about [\d,]+ hours"):
        svm_cost.check("rbf", many)
    # Those of a usual data set stay as they were: all photos, and both kernels.
    usual = svm_cost.Counts(1768, 6, 1280, 5)
    assert (svm_cost.linear_share(usual), svm_cost.why_no_rbf(usual)) == (1.0, "")


def test_c_is_searched_on_a_share_where_all_would_take_too_long(monkeypatch: pytest.MonkeyPatch):
    """Between what can be searched and what cannot even be fitted, C comes from a share of each class."""
    descriptors, labels = _blobs(3, 300, 9.0)
    counts = svm.counts_of(labels, 16)
    one, whole = svm_cost.linear_fit_s(counts), svm_cost.linear_search_s(counts)
    monkeypatch.setattr(svm_cost, "LINEAR_MAX_S", 2 * one + 0.5 * whole)
    fitted = svm.fit(descriptors, labels, seed=0)
    found = {search.kernel: len(search.rows) for search in fitted.searches}
    assert found == {"linear": 150, "rbf": 300}
    assert (fitted.photos, np.bincount(labels[fitted.searches[-1].rows]).min()) == (
        300,
        50 if fitted.kernel == "rbf" else 100,
    )


def test_scores_of_many_photos_are_those_of_each(monkeypatch: pytest.MonkeyPatch):
    """Scores that are computed piece by piece are those of one go."""
    descriptors, labels = _blobs(5, 200, 6.0)
    for kernel in ("linear", "rbf"):
        fitted = svm.fit(descriptors, labels, seed=0, kernel=kernel)
        whole = fitted.scores(descriptors)
        with monkeypatch.context() as patch:
            patch.setattr(bundle_scores, "_PIECE", 300)
            assert np.allclose(fitted.scores(descriptors), whole, atol=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_length_does_not_matter(kernel: str):
    """Descriptors are normalised inside the pipeline: scaling one changes nothing."""
    descriptors, labels = _blobs(3, 120, 1.0)
    fitted = svm.fit(descriptors, labels, seed=0, kernel=kernel)
    assert np.allclose(fitted.scores(descriptors * 50), fitted.scores(descriptors), atol=1e-5)


@pytest.mark.parametrize("kernel", ["linear", "rbf", "auto"])
def test_the_same_seed_gives_the_same_svm(kernel: str):
    """Fits repeat bit for bit, although folds run on threads."""
    first, again = (svm.fit(*_blobs(3, 120, 6.0), seed=5, kernel=kernel) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert first.as_json() | {"seconds": 0} == again.as_json() | {"seconds": 0}


def test_the_report_learns_every_choice_that_was_tried():
    """as_json() is plain JSON: kernel, C, gamma, folds, seconds, and each kernel's accuracy by C, and by gamma."""
    fitted = svm.fit(*_rings(100), seed=0)
    told = json.loads(json.dumps(fitted.as_json()))
    assert (told["kernel"], told["c"], told["gamma"], told["folds"]) == ("rbf", fitted.c, fitted.gamma, 5)
    assert told["seconds"] > 0
    linear, rbf = told["searches"]["linear"], told["searches"]["rbf"]
    assert linear["accuracy"] == max(linear["accuracy_by_c"].values())
    assert [entry["gamma"] for entry in rbf["by_gamma"]] == sorted({gamma for _, gamma in fitted.searches[0].accuracy})
    chosen = next(entry for entry in rbf["by_gamma"] if entry["gamma"] == fitted.gamma)
    assert chosen["accuracy_by_c"] == told["accuracy_by_c"]
    assert told["accuracy_by_c"][f"{fitted.c:g}"] == rbf["accuracy"]


@pytest.mark.parametrize("kernel", ["linear", "rbf", "auto"])
@pytest.mark.parametrize("counts", [(2, 2), (2, 30), (3, 2, 9)])
def test_few_photos_are_enough(counts: tuple[int, ...], kernel: str):
    """Two photos of a class are enough to search C without a warning."""
    labels = np.repeat(np.arange(len(counts)), counts)
    descriptors = np.eye(len(counts), 16, dtype=np.float32)[labels] + 0.01
    fitted = svm.fit(descriptors, labels, seed=0, kernel=kernel)
    assert np.array_equal(fitted.scores(descriptors).argmax(1), labels)


@pytest.mark.parametrize(("kernel", "kind"), [("linear", LinearSVC), ("rbf", SVC)])
def test_the_pickle_is_plain_and_protocol_5(kernel: str, kind: type):
    """svm.pkl is one pickle of protocol 5 that scikit-learn alone can load, and that scores as before."""
    descriptors, labels = _blobs(3, 120, 1.0)
    fitted = svm.fit(descriptors, labels, seed=0, kernel=kernel)
    data = fitted.to_bytes()
    operations = list(pickletools.genops(data))
    assert (operations[0][0].name, operations[0][1]) == ("PROTO", 5)
    assert operations[-1][2] == len(data) - 1
    again = pickle.loads(data)
    assert isinstance(again, Pipeline)
    assert [type(step) for _, step in again.steps] == [Normalizer, kind]
    assert np.array_equal(as_columns(again.decision_function(descriptors)), fitted.scores(descriptors))


def test_training_photos_choose_it_and_test_photos_never_count(trained: Any, digits: Any):
    """The published SVM is what the training part's descriptors alone choose, fitted on validation photos too."""
    settings = TrainSettings(data=digits, out=trained.folder.parent, arch="tiny5", weights="none", freeze=0)
    bundle, splits = read_bundle(trained.folder.parent), splits_of(settings)
    assert splits.sha256 == bundle.manifest.training["data_sha256"]
    reader = PhotoReader(bundle.manifest.preprocess, Cache(1 << 24), settings.batch_size)
    exported = ExportedModel(bundle.onnx, bundle.manifest)
    parts = [exported.run_all(reader.crops(photos, "test"))[1:] for photos in (splits.train, splits.val)]
    chosen, published = svm.fit(*parts[0], settings.seed, is_fine_tuned=True), pickle.loads(bundle.svm)
    descriptors, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    again = svm.fit_again(chosen, descriptors, labels)
    assert again.as_json() | {"seconds": 0} == trained.metrics["svm"] | {"seconds": 0}
    assert trained.metrics["svm"]["photos"] == len(splits.train) + len(splits.val)
    assert again.c == published[-1].C
    assert np.allclose(as_columns(published.decision_function(descriptors)), again.scores(descriptors), atol=1e-5)
