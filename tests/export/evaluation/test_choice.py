"""The default scorer, C and gamma: what decides them, how sure that is, and what never has a say."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from penult.bundle.manifest import DENSE, SVM
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.evaluation import svm, svm_cost
from penult.export.evaluation.choice import (
    CROSS_VALIDATION,
    NO_DIFFERENCE,
    VALIDATION,
    Choice,
    Plan,
    by_cross_validation,
    by_validation,
    fit_and_choose,
)
from penult.export.evaluation.dense_head import HeadRecipe
from penult.export.evaluation.folds import repeated
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.evaluation.svm_search import Search

HEAD = HeadRecipe(0.2)
FROZEN = {"freeze": "all", "dropout": 0.2}


def _hits(photos: int, only: int, shared: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return correct answers of two scorers, of which the first has `only` more, spread over the photos."""
    both = np.arange(photos) < shared * photos
    more = both.copy()
    more[np.flatnonzero(~both)[:: max(1, (~both).sum() // max(only, 1))][:only]] = True
    order = np.random.default_rng(0).permutation(photos)
    return more[order], both[order]


@pytest.mark.parametrize("photos", [36, 300])
@pytest.mark.parametrize(
    ("only", "swap", "verdict", "scorer"),
    [(0.2, False, SVM, SVM), (0.2, True, DENSE, DENSE), (0.0, False, NO_DIFFERENCE, SVM),
     (0.01, True, NO_DIFFERENCE, SVM), (0.01, False, NO_DIFFERENCE, SVM)],
)  # fmt: skip
def test_the_dense_head_must_be_clearly_better(photos: int, only: float, swap: bool, verdict: str, scorer: str):
    """A clear lead decides; a tie or a lead within chance is no difference, and the SVM is the default."""
    svm_hits, dense_hits = _hits(photos, round(only * photos))[:: -1 if swap else 1]
    labels = np.arange(photos) % 2
    splits = repeated(labels, np.arange(photos), 0, 5)
    repeats = [np.repeat(hits[None], 5, axis=0) for hits in (svm_hits, dense_hits)]
    for choice in (by_validation(svm_hits, dense_hits), by_cross_validation(*repeats, splits)):
        assert (choice.verdict, choice.scorer, choice.photos) == (verdict, scorer, photos)
        low, high = choice.interval
        assert -1 <= low < choice.difference < high <= 1 or choice.difference in (low, high)
        assert choice.difference == pytest.approx(svm_hits.mean() - dense_hits.mean())
        assert choice.sentence.lower().startswith(NO_DIFFERENCE) == (verdict == NO_DIFFERENCE)


def test_equal_answers_of_few_photos_leave_the_difference_open():
    """If both scorers answer all photos alike, the interval is as wide as the photos are few."""
    widths = []
    for photos in (12, 120, 1200):
        hits = np.ones((3, photos), dtype=bool)
        splits = repeated(np.arange(photos) % 2, np.arange(photos), 0, 3)
        choices = by_cross_validation(hits, hits, splits), by_validation(hits[0], hits[0])
        widths.append([choice.interval[1] - choice.interval[0] for choice in choices])
    assert np.all(np.diff(widths, axis=0) < 0)
    assert min(widths[0]) > 0.2
    assert max(widths[2]) < 0.01


def test_validation_photos_of_a_group_count_as_one():
    """Ten photos of one burst that only one scorer gets right are one observation, not ten."""
    svm_hits, dense_hits = np.ones(60, dtype=bool), np.arange(60) >= 10
    burst = np.maximum(np.arange(60), 9)
    assert by_validation(svm_hits, dense_hits).verdict == SVM
    assert by_validation(svm_hits, dense_hits, burst).verdict == NO_DIFFERENCE


@pytest.mark.parametrize(
    ("trained", "more", "is_frozen", "has_head"),
    [(FROZEN, {}, True, True), (FROZEN, {"is_same": False}, True, False), (FROZEN, {"reads_descriptor": False}, True, False),
     ({"freeze": 5}, {}, False, False), ({"freeze": 6}, {}, False, False), ({}, {}, False, False),
     (FROZEN, {"architecture": "one of tomorrow"}, True, False)],
)  # fmt: skip
def test_what_is_known_of_a_network_decides_the_rule(
    trained: Mapping[str, Any], more: dict[str, Any], is_frozen: bool, has_head: bool
):
    """Only a record of frozen layers allows folds, and only the head's own photos allow a head for each fold."""
    known = {"architecture": "tiny5", "kernel": "auto", "class_weight": None, "seed": 0, "is_same": True}
    plan = Plan.of(trained, **(known | {"reads_descriptor": True} | more))
    assert (plan.is_frozen, plan.head is not None) == (is_frozen, has_head)
    assert not has_head or plan.head == HEAD


def test_the_record_of_a_run_says_all():
    """What `penult train --freeze all` records is read as frozen, with the dropout of its network."""
    settings = TrainSettings(data="d", out="m", arch="alexnet", freeze=FREEZE_ALL)
    plan = Plan.of(settings.as_json(), "alexnet", "auto", None, 0, is_same=True, reads_descriptor=True)
    assert (plan.is_frozen, plan.head) == (True, HeadRecipe(0.5))


def _few(count: int, seed: int, classes: int = 4) -> SplitOutputs:
    """Return the outputs of photos whose classes a head of 40 epochs cannot tell apart yet; logits are of chance."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(9).normal(size=(classes, 64))
    descriptors = np.abs(centres[labels] + rng.normal(size=(count, 64)) * 2.0) * 0.2
    return SplitOutputs(rng.normal(size=(count, classes)).astype(np.float32), descriptors.astype(np.float32), labels)


def _chosen(
    plan: Plan, has_dense: bool = True, groups: np.ndarray | None = None
) -> tuple[svm.FittedSvm, Choice | None]:
    """Choose for 48 training and 12 validation photos; there is no test part to look at."""
    parts = {"train": _few(48, 0), "val": _few(12, 1)}
    return fit_and_choose(plan, parts, np.arange(60) if groups is None else groups, has_dense)


def test_a_frozen_network_is_cross_validated_on_both_parts():
    """C and scorer come from five repeats on training and validation photos; the SVM returned knows training ones."""
    found, choice = _chosen(Plan("linear", None, 3, is_frozen=True, head=HEAD))
    assert choice is not None
    assert (choice.rule, choice.photos, choice.folds, len(choice.by_repeat)) == (CROSS_VALIDATION, 60, 5, 5)
    assert (choice.scorer, choice.verdict) == (SVM, SVM)
    assert (found.photos, found.repeats, found.parts) == (48, 5, "training and validation")
    assert found.as_json()["photos_searched"] == 60
    again = _chosen(Plan("linear", None, 3, is_frozen=True, head=HEAD))
    assert json.dumps(again[1].as_json()) == json.dumps(choice.as_json())
    assert again[0].to_bytes() == found.to_bytes()


def test_a_frozen_network_whose_head_cannot_be_trained_anew_still_searches_c_on_both_parts():
    """For other photos than the head's own, validation photos decide the scorer."""
    found, choice = _chosen(Plan("linear", None, 3, is_frozen=True))
    assert choice is not None
    assert (choice.rule, choice.photos, found.parts, found.repeats) == (VALIDATION, 12, "training and validation", 5)


def test_a_fine_tuned_network_is_not_cross_validated():
    """Its validation photos decide the scorer, and its training photos alone whether C is not the usual one."""
    found, choice = _chosen(Plan("linear", None, 3))
    train = _few(48, 0)
    alone = svm.fit(train.descriptors, train.labels, 3, "linear", is_fine_tuned=True)
    assert choice is not None
    assert (choice.rule, choice.photos) == (VALIDATION, 12)
    assert found.to_bytes() == alone.to_bytes()
    assert found.as_json() | {"seconds": 0} == alone.as_json() | {"seconds": 0}


@pytest.mark.parametrize("plan", [Plan("linear", None, 0), Plan("linear", None, 0, is_frozen=True, head=HEAD)])
def test_an_svm_alone_is_not_chosen(plan: Plan):
    """Without a dense head there is nothing to compare."""
    assert _chosen(plan, has_dense=False)[1] is None


def test_too_many_photos_are_not_repeated(monkeypatch: pytest.MonkeyPatch):
    """Repeats fall with the time of one, and where folds of all photos take too long, validation photos decide."""
    plan = Plan("linear", None, 0, is_frozen=True, head=HEAD)
    for budget_s, repeats in ((0.09, 3), (0.02, 0)):
        monkeypatch.setattr(svm_cost, "REPEATS_MAX_S", budget_s)
        counts = svm.counts_of(np.arange(60) % 4, 64)
        assert svm_cost.repeats("linear", counts, HEAD.head_epochs) == repeats
        choice = _chosen(plan)[1]
        assert choice is not None
        assert (choice.rule, len(choice.by_repeat)) == ((CROSS_VALIDATION, repeats) if repeats else (VALIDATION, 0))


def test_the_time_of_repeats_is_bounded():
    """Hundreds of photos are divided five times, thousands less often, and a hundred thousand not at all."""
    sets = [(244, 2, 1280), (2096, 6, 512), (2096, 6, 1280), (3000, 20, 2048), (100_000, 100, 2048)]
    found = [svm_cost.repeats("auto", svm_cost.Counts(*counts, 5), 40) for counts in sets]
    assert found[0] == 5
    assert found == sorted(found, reverse=True)
    assert found[2] >= 1
    assert found[-1] == 0


def test_copies_of_a_group_do_not_answer_for_each_other():
    """Where photos are noise in pairs, folds that part pairs promise everything, and folds by group nothing."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 2)
    descriptors = rng.normal(size=(60, 32)).astype(np.float32)[groups]
    labels = rng.integers(0, 2, 60)[groups]
    parted, whole = (svm.fit(descriptors, labels, 0, "linear", groups=given) for given in (None, groups))
    assert parted.searches[0].best > 0.8
    assert whole.searches[0].best < 0.7
    choice = _chosen(Plan("linear", None, 0, is_frozen=True, head=HEAD), groups=np.arange(60) // 2)[1]
    assert choice is not None
    assert choice.rule == CROSS_VALIDATION


def test_the_luck_of_the_best_of_many_tries_is_left_out():
    """If every C is a guess, the best one looks better than a guess, and the accuracy that is compared does not."""
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    splits = repeated(labels, np.arange(100), 0, 2)
    lucky, fair = [], []
    for _ in range(40):
        tried = {(float(c), 0.0): rng.random((2, 100)) < 0.5 for c in range(1, 30)}
        accuracy = {key: float(hits.mean()) for key, hits in tried.items()}
        best = max(accuracy, key=lambda key: accuracy[key])
        search = Search("linear", *best, accuracy, np.arange(100), tried[best], tried=tried)
        lucky.append(search.hits.mean())
        fair.append(search.unbiased_hits(splits).mean())
    assert np.mean(lucky) > 0.56
    assert np.mean(fair) == pytest.approx(0.5, abs=0.02)
