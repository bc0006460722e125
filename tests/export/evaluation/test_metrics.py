"""How good a scorer is: intervals, calibration, and the figures of the report against known values."""

import json
import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from penult.bundle.scores import softmax, wilson
from penult.export.evaluation.accuracy import caution, counted, share, stated
from penult.export.evaluation.metrics import against_validation, calibration, compare, evaluate, fit_temperature


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662),
     (15, 148, 0.0624, 0.1605), (1, 1, 0.2065, 1.0)],
)  # fmt: skip
def test_wilson_gives_published_intervals(hits: int, count: int, low: float, high: float):
    """The intervals are Wilson's: 81/263 and 15/148 are Newcombe's examples (1998, table I)."""
    assert wilson(hits / count, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_holds_the_share_itself():
    """However a perfect share rounds, it lies within its interval: error bars of a negative length cannot be drawn."""
    for count in range(1, 500):
        for hits in {0, 1, count // 2, count - 1, count}:
            low, high = wilson(hits / count, count)
            assert 0 <= low <= hits / count <= high <= 1


def _sampled(temperature: float, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels that were drawn from the scores' own probabilities at this temperature."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, (count, classes)).astype(np.float32)
    noise = rng.gumbel(size=(count, classes))
    return scores, (scores / temperature + noise).argmax(1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("classes", [2, 6])
def test_a_known_temperature_is_found(temperature: float, classes: int):
    """Labels drawn at a temperature give that temperature back, within a tenth."""
    assert fit_temperature(*_sampled(temperature, 8000, classes)) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("count", [10, 100, 1000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_perfect_answers_do_not_give_certainty(count: int, scale: float):
    """Where all held-out photos are right, the probability grows with their number, and is never 1."""
    labels = np.arange(count) % 4
    scores = (np.eye(4, dtype=np.float32)[labels] * 2 - 1) * np.float32(scale)
    surest = float(softmax(scores, fit_temperature(scores, labels)).max())
    assert surest == pytest.approx((count + 1) / (count + 2), abs=0.02)
    assert surest < 1


def test_useless_scores_become_an_even_guess():
    """Scores that have nothing to do with the labels end near equal probabilities."""
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(0, 5, (2000, 4)).astype(np.float32), rng.integers(0, 4, 2000)
    assert softmax(scores, fit_temperature(scores, labels)).max() < 0.4


def test_figures_of_a_known_case():
    """Five photos of three classes, worked out by hand."""
    predicted, labels = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 2, 2])
    scores = np.eye(3, dtype=np.float32)[predicted] * 3
    found = evaluate(scores, labels, ("cat", "dog", "eel"), temperature=1.5)
    assert found["photos"] == 5
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["accuracy_95"] == pytest.approx(list(wilson(0.8, 5)))
    assert found["recall"] == pytest.approx({"cat": 1.0, "dog": 1.0, "eel": 0.5})
    assert found["precision"] == pytest.approx({"cat": 1.0, "dog": 0.5, "eel": 1.0})
    assert found["photos_by_class"] == {"cat": 2, "dog": 1, "eel": 2}
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert found["confusion"] == [[2, 0, 0], [0, 1, 0], [0, 1, 1]]
    hit, miss = (math.exp(value) / (math.exp(2) + 2) for value in (2, 0))
    assert found["log_loss"] == pytest.approx(-(4 * math.log(hit) + math.log(miss)) / 5, rel=1e-5)


def test_a_class_without_photos_has_figures_too():
    """A class that the split lacks has no recall and costs the others nothing; the result is plain JSON."""
    scores = np.eye(3, dtype=np.float32)[[0, 1, 1]]
    found = evaluate(scores, np.array([0, 1, 1]), ("cat", "dog", "eel"), 1.0)
    assert found["recall"] == found["precision"] == {"cat": 1.0, "dog": 1.0, "eel": None}
    assert found["photos_by_class"]["eel"] == 0
    assert found["macro_f1"] == 1.0
    assert json.loads(json.dumps(found)) == found


def test_an_absent_class_that_is_answered_counts():
    """Answers with a class that no photo has are wrong: its F1 of 0 goes into the mean, its precision is 0."""
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2]]
    found = evaluate(scores, np.array([0, 1, 1]), ("cat", "dog", "eel"), 1.0)
    assert (found["recall"]["eel"], found["precision"]["eel"]) == (None, 0.0)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_certain_answers_have_a_finite_loss():
    """A photo that is surely wrong costs much, but not infinitely much."""
    found = evaluate(np.array([[1e6, 0.0]], np.float32), np.array([1]), ("cat", "dog"), 1.0)
    assert math.isfinite(found["log_loss"])
    assert found["log_loss"] > 10


def test_the_calibration_error_of_a_known_case():
    """Forty photos in two bins of twenty, worked out by hand: (0.5 - 0.4 and 0.9 - 1.0) give 0.1."""
    probabilities = np.array([[0.5, 0.5]] * 20 + [[0.1, 0.9]] * 20)
    labels = np.array([0] * 8 + [1] * 12 + [1] * 20)
    found = calibration(probabilities, labels)
    assert found["reliability"] == [
        {"confidence": pytest.approx(0.5), "accuracy": pytest.approx(0.4), "photos": 20},
        {"confidence": pytest.approx(0.9), "accuracy": 1.0, "photos": 20},
    ]
    assert found["ece"] == pytest.approx(0.1)
    assert found["mean_confidence"] == pytest.approx(0.7)


@pytest.mark.parametrize(("count", "bins"), [(1, 1), (39, 1), (40, 2), (205, 10), (5000, 10)])
def test_the_bins_hold_equally_many_photos(count: int, bins: int):
    """One bin per twenty photos, ten at most; they hold all photos, and sizes differ by one at most."""
    rng = np.random.default_rng(0)
    parts = calibration(rng.dirichlet([1, 1, 1], count), rng.integers(0, 3, count))["reliability"]
    sizes = [part["photos"] for part in parts]
    assert len(parts) == bins
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    confidences = [part["confidence"] for part in parts]
    assert confidences == sorted(confidences)


def test_the_right_temperature_has_the_smallest_calibration_error():
    """Labels drawn from the scores' own probabilities: hardly any error there, and much at other temperatures."""
    scores, labels = _sampled(2.0, 8000, 6)
    right, sharp, flat = (calibration(softmax(scores, t), labels)["ece"] for t in (2.0, 0.5, 8.0))
    assert right < 0.02
    assert min(sharp, flat) > 0.1


def _one_hot(right: list[bool]) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[[0 if value else 1 for value in right]]


@pytest.mark.parametrize(
    ("only_dense", "only_svm", "p_value"),
    # Twice the binomial tail at one half: 2 * sum(C(13, k) for k <= 4) / 2**13, and so on.
    [(4, 9, 2 * (1 + 13 + 78 + 286 + 715) / 2**13), (0, 6, 2 / 2**6), (5, 5, 1.0), (1, 0, 1.0), (0, 0, 1.0)],
)
def test_mcnemars_test_of_known_counts(only_dense: int, only_svm: int, p_value: float):
    """Discordant photos alone decide, and their exact p value is the binomial one."""
    dense = [True] * 30 + [True] * only_dense + [False] * only_svm + [False] * 3
    svm = [True] * 30 + [False] * only_dense + [True] * only_svm + [False] * 3
    found = compare(_one_hot(dense), _one_hot(svm), np.zeros(len(dense), int))
    assert [found[name] for name in ("both_right", "only_dense", "only_svm", "neither")] == [
        30,
        only_dense,
        only_svm,
        3,
    ]
    assert found["p_value"] == pytest.approx(p_value)


@pytest.mark.parametrize(
    ("test", "val", "p_value", "words"),
    # One-sided tails by hand: C(18,18) * C(33,20) / C(51,38) = 0.0036 and its like, as in Fisher's 2 x 2 table.
    [((18, 18), (20, 33), math.comb(33, 20) / math.comb(51, 38), "Rely on the lower figure"),
     ((60, 100), (90, 100), 0.0, "Rely on the test photos"), ((18, 18), (18, 18), 1.0, ""),
     ((85, 100), (90, 100), 0.39, "")],
)  # fmt: skip
def test_test_and_validation_are_held_against_each_other(
    test: tuple[int, int], val: tuple[int, int], p_value: float, words: str
):
    """What chance explains is no finding; beyond it the sentence has both counts and says which to count on."""
    told = [
        {"accuracy": right / of, "photos": of, "accuracy_95": list(wilson(right / of, of))} for right, of in (test, val)
    ]
    found = against_validation(*told)
    assert [found[name] for name in ("test_right", "test_photos", "val_right", "val_photos")] == [*test, *val]
    assert found["p_value"] == pytest.approx(p_value, abs=5e-3)
    assert bool(found["sentence"]) == bool(words)
    assert words in found["sentence"]
    assert not words or f"{val[0]} of {val[1]} validation photos" in found["sentence"]


@pytest.mark.parametrize("count", [18, 200, 2000])
def test_chance_alone_is_seldom_called_a_disagreement(count: int):
    """With equal chances, at most one run in twenty is told of a disagreement, however many photos there are."""
    rng = np.random.default_rng(0)
    said = 0
    for chance in (0.7, 0.9, 0.98):
        for test, val in rng.binomial((count, 2 * count), chance, size=(100, 2)):
            told = [
                {"accuracy": right / of, "photos": of, "accuracy_95": list(wilson(right / of, of))}
                for right, of in ((test, count), (val, 2 * count))
            ]
            said += bool(against_validation(*told)["sentence"])
    assert said / 300 <= 0.06


@pytest.mark.parametrize(
    ("right", "of", "few", "words"),
    [(18, 18, True, "82–100 %"), (3, 3, True, "44–100 %"), (34, 34, True, "90–100 %"), (35, 35, False, "100.0 %"),
     (190, 385, False, "49.4 %"), (190, 380, True, "45–55 %"), (975, 1000, False, "97.5 %")],
)  # fmt: skip
def test_few_is_what_the_interval_says(right: int, of: int, few: bool, words: str):
    """Photos are few where their interval is wider than ten points: then it stands in the accuracy's place."""
    scores = np.eye(2, dtype=np.float32)[(np.arange(of) >= right).astype(int)]
    figures = evaluate(scores, np.zeros(of, int), ("cat", "dog"), 1.0)
    assert figures["few_photos"] == few
    assert stated(figures) == words
    assert share(right, of) == (f"{right} of {of}" if few else words)
    assert counted(figures) == f"{right} of {of}"
    assert bool(caution(figures)) == few


def test_the_comparison_is_one_plain_sentence():
    """The sentence names both counts, calls chance chance, and names the better scorer only beyond it."""
    labels = np.zeros(13, int)
    even = compare(_one_hot([True] * 4 + [False] * 9), _one_hot([False] * 4 + [True] * 9), labels)["sentence"]
    assert even == (
        "Only the SVM is correct on 9 photos, only the dense head on 4: no significant difference (McNemar's exact "
        "test, p = 0.27)."
    )
    one, other = _one_hot([False] * 13), _one_hot([True] * 13)
    assert "the SVM is better (McNemar's exact test, p < 0.001)" in compare(one, other, labels)["sentence"]
    assert "the dense head is better" in compare(other, one, labels)["sentence"]
    assert compare(one, one, labels)["sentence"] == (
        "The SVM and the dense head are correct on exactly the same photos; 13 photos cannot show a difference of less "
        "than 23 points."
    )
    many = np.zeros(500, int)
    same = compare(_one_hot([True] * 500), _one_hot([True] * 500), many)["sentence"]
    assert same == "The SVM and the dense head are correct on exactly the same photos."
    # Of five photos, not even five to none would be significant.
    few = compare(_one_hot([True] * 8 + [False] * 5), other, labels)["sentence"]
    assert "only the dense head on 0: too few photos to say which is better (McNemar's exact test, p = 0.062)" in few


def test_digits_are_named_as_well_as_promised(trained: Any):
    """On scikit-learn's digits, half split, dense head and SVM each name 97.5 % of the unseen half."""
    for scorer in ("dense", "svm"):
        assert trained.metrics["test"][scorer]["photos"] == 899
        assert trained.metrics["test"][scorer]["accuracy"] >= 0.975, scorer
        assert trained.metrics["test"][scorer]["macro_f1"] >= 0.975, scorer


def test_metrics_are_published(trained: Any):
    """metrics.json holds what the run returned: both scorers on every part, with intervals that hold the accuracy."""
    stored = json.loads((trained.folder / "metrics.json").read_bytes())
    assert stored == trained.metrics
    for part in ("test", "val", "train"):
        assert set(stored[part]) == {"dense", "svm"}
        for values in stored[part].values():
            low, high = values["accuracy_95"]
            assert 0 < low <= values["accuracy"] <= high <= 1
            assert sum(map(sum, values["confusion"])) == values["photos"]


def test_the_comparison_is_published(trained: Any):
    """metrics.json compares the scorers on test and validation photos, consistently with their accuracies."""
    for part in ("test", "val"):
        found, values = trained.metrics["comparison"][part], trained.metrics[part]
        for scorer in ("dense", "svm"):
            right = found["both_right"] + found[f"only_{scorer}"]
            assert right == round(values[scorer]["accuracy"] * values[scorer]["photos"])
        assert sum(found[n] for n in ("both_right", "only_dense", "only_svm", "neither")) == values["svm"]["photos"]


def test_the_calibration_error_is_published(trained: Any):
    """On 899 unseen digits, confidence and accuracy are within three hundredths of each other, in ten bins."""
    for values in trained.metrics["test"].values():
        assert len(values["reliability"]) == 10
        assert values["ece"] < 0.03
        assert values["mean_confidence"] == pytest.approx(values["accuracy"], abs=0.03)


def test_probabilities_are_calibrated(trained: Any):
    """On unseen photos, the stored temperatures give either scorer a log loss below a tenth of guessing."""
    for values in trained.metrics["test"].values():
        assert values["log_loss"] < 0.1 * math.log(10)


def test_many_classes_have_no_matrix_but_the_pairs_that_are_mistaken():
    """Above the limit the confusion matrix is left out; every figure is what it was, computed piece by piece."""
    labels = np.concatenate([np.arange(400), np.arange(3)])
    scores = np.random.default_rng(0).normal(size=(403, 400)).astype(np.float32)
    scores[np.arange(403), labels] += 4
    scores[labels < 3, 7] += 20  # classes 0, 1 and 2 are named 7
    classes = tuple(f"c{place}" for place in range(400))
    found = evaluate(scores, labels, classes, 1.3)
    probabilities = softmax(scores, 1.3)
    assert found["confusion"] is None
    assert found["confused"][:3] == [["c0", "c7", 2], ["c1", "c7", 2], ["c2", "c7", 2]]
    assert found["accuracy"] == (scores.argmax(1) == labels).mean()
    assert found["log_loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(400)), rel=1e-6)
    assert found["mean_confidence"] == pytest.approx(probabilities.max(1).mean(), rel=1e-6)
    assert found["ece"] == pytest.approx(calibration(probabilities, labels)["ece"])
