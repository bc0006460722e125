"""The decisions of --budget are functions of numbers: the same numbers, the same decision, on a clock that is a value."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from penult.export.config.known_networks import get
from penult.export.config.train import CROP, STRETCH, TrainSettings
from penult.export.jobs import budget_plan
from penult.export.jobs.budget_plan import Costs, Look
from penult.export.training.pace import Round

STEPS = 50
COSTS = Costs(step_s=0.1, measure_s=1.0, around_s=4.0)


def _train(left_s: float, wanted: float = 12, slower: float = 1.0, then: float = 1.0) -> tuple[list[Round], float]:
    """Play a training on a machine that is `slower` than expected, and `then` slower still from the third round on."""
    done: list[Round] = []
    took: list[float] = []
    spent = 0.0
    while found := budget_plan.next_round(done, took, COSTS, STEPS, wanted, left_s - spent):
        factor = slower * (then if len(done) >= 2 else 1.0)
        took.append(factor * (found.taken * COSTS.step_s + COSTS.measure_s))
        done.append(found)
        spent += took[-1]
    return done, spent


def test_a_training_with_time_enough_has_the_epochs_that_it_wants():
    """The schedule goes from 0 to 1 in equal parts, and the rest of the time is left."""
    done, spent = _train(left_s=1000)
    assert [each.taken for each in done] == [STEPS] * 12
    assert [each.end for each in done] == pytest.approx([n / 12 for n in range(1, 13)])
    assert spent == pytest.approx(72)


@pytest.mark.parametrize(("slower", "then"), [(1, 1), (0.5, 1), (2, 1), (1, 3), (0.7, 1.5)])
def test_the_rate_ends_when_the_time_ends(slower: float, then: float):
    """On a machine of another speed, or of one that changes, the last round still ends the schedule, and in time.

    Only the round in which the machine became slower may be longer than it was expected to be.
    """
    done, spent = _train(left_s=40, slower=slower, then=then)
    assert done[-1].end == 1
    assert all(one.end == other.start for one, other in pairwise(done))
    late = (then - 1) * slower * 6 if then > 1 else 0
    assert spent <= 40 * 1.05 + late


def test_an_epoch_that_does_not_fit_is_cut_into_rounds():
    """With time for half an epoch there are several rounds of equal size, and the schedule still ends."""
    costs = Costs(step_s=1.0, measure_s=0.5)
    first = budget_plan.next_round([], [], costs, 1000, 12, left_s=400)
    assert first == Round(99, 0, 0.25, 99)


def test_a_round_that_was_cut_is_the_last():
    """The clock ended it, so nothing follows, whatever time there seems to be."""
    assert budget_plan.next_round([Round(50, 0, 0.5, 20)], [6.0], COSTS, STEPS, 12, left_s=1000) is None


def test_too_little_time_trains_nothing():
    """Not even a tenth of a round fits."""
    assert budget_plan.next_round([Round(50, 0, 0.5, 50)], [6.0], COSTS, STEPS, 12, left_s=1.2) is None


def test_few_photos_rank_many_networks():
    """Half of the networks go in each round of halving, and photos double; one network is not ranked."""
    assert budget_plan.rungs(1, 1000) == ()
    assert budget_plan.rungs(2, 1000) == ((600, 2),)
    assert budget_plan.rungs(9, 1000) == ((150, 5), (300, 3), (600, 2), (600, 2))
    assert budget_plan.rungs(9, 100)[0] == (100, 5)


def test_questions_are_asked_on_as_many_photos_as_fit():
    """Fewer on a slow machine, none if they are too few to answer; few photos are all asked."""
    assert budget_plan.photos_that_fit(5000, 0.01, 100) == 600
    assert budget_plan.photos_that_fit(5000, 0.2, 100) == 500
    assert budget_plan.photos_that_fit(5000, 2.0, 100) == 0
    assert budget_plan.photos_that_fit(40, 0.2, 100) == 40
    assert budget_plan.photos_that_fit(5000, 0.2, math.inf) == 600
    assert budget_plan.photos_that_fit(5000, 0.2, -1) == 0


def test_sizes_are_those_of_the_network():
    """An eighth more for those that take any size; given options are kept."""
    assert budget_plan.looks(get("mobilenet_v2")) == (
        Look(224, CROP), Look(256, CROP), Look(224, STRETCH), Look(256, STRETCH),
    )  # fmt: skip
    assert budget_plan.looks(get("alexnet")) == (Look(224, CROP), Look(224, STRETCH))
    assert budget_plan.looks(get("tiny5")) == (Look(32, CROP), Look(32, STRETCH))
    assert budget_plan.looks(get("mobilenet_v2"), crop=192, fit=CROP) == (Look(192, CROP),)


def test_training_crops_are_smaller():
    """As in the recipe for photos from above; those of small networks are not."""
    assert [budget_plan.train_crop(side) for side in (32, 224, 256)] == [32, 160, 176]


def test_epochs_follow_from_the_steps():
    """Few photos have few steps an epoch, so there are more epochs, within bounds."""
    assert [budget_plan.wanted_epochs(steps) for steps in (1, 7, 33, 55, 1000)] == [30, 30, 20, 12, 12]


def test_the_usual_recipe_is_valid_with_every_augmentation():
    """`penult train` takes the options that the plan makes."""
    for augment, views in (("photo", 2), ("topdown", 4), ("gentle", 1)):
        options = budget_plan.recipe(Look(256, STRETCH), augment, views)
        usual = TrainSettings(Path("photos"), Path("models/x"), arch="mobilenet_v2", weights="w.pt", **options)
        for _, differs in budget_plan.variations(usual):
            assert replace(usual, **differs) != usual


def test_more_views_keep_turned_copies():
    """A network that is served turned views must learn from them."""
    options = budget_plan.recipe(Look(224, CROP), "topdown", 4)
    usual = TrainSettings(Path("photos"), Path("models/x"), **options)
    assert not any("augment" in differs for _, differs in budget_plan.variations(usual))


def test_copies_answer_whether_photos_have_an_upright_direction():
    """Turned copies and views that help together: topdown. Mirrored copies that clearly hurt: gentle. Else as usual."""
    better, same, much_worse = ({"lead": lead, "lead_error": 0.01} for lead in (0.012, 0.0, -0.05))
    assert budget_plan.augmentation(same, better, better) == "topdown"
    assert budget_plan.augmentation(same, better, same) == "photo"  # 1.2 points, and 1.4 of error in all
    assert budget_plan.augmentation(much_worse, better, better) == "gentle"
    assert budget_plan.augmentation(None, None, None) == "photo"


def test_copies_are_asked_about_on_more_photos():
    """The answer needs more photos than a ranking, as far as they fit into the time."""
    assert budget_plan.copied_photos(5000, 0.05, math.inf) > budget_plan.compared_photos(5000)
    assert budget_plan.copied_photos(5000, 0.05, 10.0) == 200
    assert budget_plan.copied_photos(5000, 0.05, 1.0) == 0


def test_views_are_those_that_the_network_knows():
    """As many as the augmentation has, unless they are worse than one view; one if nothing was asked."""
    same, worse = ({"lead": lead, "lead_error": 0.01} for lead in (-0.005, -0.02))
    assert budget_plan.views_of("topdown", {2: same, 4: same}) == 4
    assert budget_plan.views_of("topdown", {2: same, 4: worse}) == 2
    assert budget_plan.views_of("photo", {2: same, 4: same}) == 2
    assert budget_plan.views_of("photo", {2: worse, 4: same}) == 1
    assert budget_plan.views_of("gentle", {2: same, 4: same}) == 1
    assert budget_plan.views_of("photo", {}) == 1


def test_of_near_networks_the_one_that_is_better_on_imagenet_is_tuned_first():
    """A network that is far behind comes last; with unknown ones frozen accuracy decides."""
    assert budget_plan.order_for_tuning([0.85, 0.82], [0.58, 0.72], [0.015, 0.015]) == [1, 0]
    assert budget_plan.order_for_tuning([0.85, 0.60], [0.58, 0.72], [0.015, 0.015]) == [0, 1]
    assert budget_plan.order_for_tuning([0.82, 0.85], [0.0, 0.72], [0.015, 0.015]) == [1, 0]


def test_time_is_kept_for_the_end():
    """Training ends before what publishing took; trials leave the final training most of its epochs, or half the time."""
    assert budget_plan.deadline_s(1000, 100) == pytest.approx(835)
    assert budget_plan.can_fine_tune(COSTS, STEPS, 10)
    assert not budget_plan.can_fine_tune(COSTS, STEPS, 6)
    assert budget_plan.trials_s(COSTS, STEPS, 12, 100) == pytest.approx(42)
    assert budget_plan.trials_s(COSTS, STEPS, 12, 50) == 0
    assert budget_plan.trials_s(COSTS, STEPS, 12, 1000) == 500
    assert budget_plan.exploring_ends_s(1000, 10, 100) == 260
    assert budget_plan.exploring_ends_s(200, 10, 150) == pytest.approx(-3)


def test_the_reserve_follows_the_network_that_is_fine_tuned():
    """Describing by a network of three times the cost takes three times as long, and the rest as long as before."""
    assert budget_plan.reserve_s(100, frozen_s=40, tuned_s=120) == pytest.approx(180)
    assert budget_plan.reserve_s(100, frozen_s=400, tuned_s=400) == pytest.approx(100)
    assert budget_plan.reserve_s(100, frozen_s=0, tuned_s=0) == 100


def test_views_are_fewer_if_they_take_too_long():
    """Half as many until they can be paid for; one always is."""
    assert budget_plan.affordable_views(4, lambda views: 10.0 * views, 100) == 4
    assert budget_plan.affordable_views(4, lambda views: 10.0 * views, 25) == 2
    assert budget_plan.affordable_views(4, lambda views: 10.0 * views, 5) == 1


def test_the_least_budget_is_written_as_the_option_takes_it():
    """Rounded up, in seconds or minutes."""
    assert [budget_plan.least_budget(seconds) for seconds in (20, 95, 240)] == ["30s", "120s", "5m"]
