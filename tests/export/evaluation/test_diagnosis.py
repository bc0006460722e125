"""What curves are called: every diagnosis on curves made for it, and the edges where nothing can be said."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from penult.export.evaluation.diagnosis import (
    GOOD,
    OVER_FIT,
    RULE,
    TOO_FEW,
    TOO_SHORT,
    UNDER_FIT,
    UNREPRESENTATIVE,
    UNSTABLE,
    diagnose,
    zones_of,
)
from penult.export.training.history import Epoch, History


@dataclass(frozen=True)
class _WithError(Epoch):
    """An epoch that knows the standard error of its validation loss."""

    val_loss_error: float = 0.0


def _epochs(train: Sequence[float], val: Sequence[float], error: float = 0.0, phase: str = "all") -> list[Epoch]:
    return [
        _WithError(phase, number, 1e-3, t, float(t), float(v), 0.9, 0.9, 1.0, val_loss_error=error)
        for number, (t, v) in enumerate(zip(train, val, strict=True), 1)
    ]


def _diagnosis(train: Sequence[float], val: Sequence[float], error: float = 0.0, classes: int = 10):
    return diagnose(History(_epochs(train, val, error)), classes)


_X = np.arange(30)
_FALLING = np.exp(-_X / 5) + 0.1
_LEVEL = np.maximum(1.2 * np.exp(-_X / 4), 0.2)


def test_curves_that_level_off_are_good():
    """Both losses fall, then the validation loss stays: under-fit zone first, then good to the end."""
    diagnosis = _diagnosis(np.maximum(np.exp(-_X / 4), 0.15), _LEVEL, error=0.02)
    assert diagnosis.conclusion == GOOD
    zones = diagnosis.zones["all"]
    assert zones[0] == UNDER_FIT
    assert set(zones[8:]) == {GOOD}
    assert "0.200" in diagnosis.sentence


@pytest.mark.parametrize(("photos", "conclusion"), [(16, TOO_FEW), (30, TOO_FEW), (200, GOOD), (None, GOOD)])
def test_few_validation_photos_say_nothing_of_the_fit(photos: int | None, conclusion: str):
    """The same curves are good where enough photos are behind them; of few, the sentence says that they are too few."""
    history = History(_epochs(np.maximum(np.exp(-_X / 4), 0.15), _LEVEL, error=0.02))
    diagnosis = diagnose(history, 10, val_photos=photos)
    assert diagnosis.conclusion == conclusion
    assert ("Too few validation photos for a diagnosis" in diagnosis.sentence) == (conclusion == TOO_FEW)
    assert ("not the accuracy of the model" in diagnosis.sentence) == (conclusion == GOOD)


def test_few_photos_do_not_hide_what_is_seen():
    """Over-fitting beyond the noise is said, however few the validation photos."""
    val = np.where(_X < 10, 1 - 0.08 * _X, 0.2 + 0.02 * (_X - 10))
    history = History(_epochs(np.exp(-_X / 6), val, error=0.03))
    assert diagnose(history, 10, val_photos=16).conclusion == OVER_FIT


def test_a_rising_validation_loss_is_over_fit():
    """The validation loss turns up while the training loss goes on falling; the kept epoch lies before."""
    val = np.where(_X < 10, 1 - 0.08 * _X, 0.2 + 0.02 * (_X - 10))
    diagnosis = _diagnosis(np.exp(-_X / 6), val, error=0.03)
    assert diagnosis.conclusion == OVER_FIT
    assert diagnosis.kept_epoch == 11
    zones = diagnosis.zones["all"]
    first = zones.index(OVER_FIT)
    assert zones[first:] == (OVER_FIT,) * (30 - first)
    at_best = val[11]  # the running median of three cuts the tip off
    assert val[first] - at_best > 0.03 >= val[first - 1] - at_best
    assert f"from epoch {first + 1} on" in diagnosis.sentence


def test_a_rise_within_the_noise_is_not_over_fit():
    """The same rise is good where so few photos validate that their standard error is larger."""
    val = np.where(_X < 10, 1 - 0.08 * _X, 0.2 + 0.02 * (_X - 10))
    assert _diagnosis(np.exp(-_X / 6), val, error=0.5).conclusion == GOOD


def test_both_losses_rising_is_not_over_fit():
    """Where the training loss rises too, the cause is another: no epoch is called over-fit."""
    both = np.where(_X < 10, 1 - 0.08 * _X, 0.2 + 0.02 * (_X - 10))
    assert OVER_FIT not in _diagnosis(both, both + 0.1, error=0.01).zones["all"]


def test_a_single_spike_is_not_over_fit():
    """One bad epoch after the best one is smoothed away."""
    val = _LEVEL.copy()
    val[20] = 1.0
    zones = zones_of(_epochs(np.exp(-_X / 6), val - 0.0001 * (_X == 12), 0.02))
    assert OVER_FIT not in zones


@pytest.mark.parametrize(("phase", "option"), [("all", "--epochs"), ("head", "--head-epochs")])
def test_losses_that_still_fall_at_the_end_ask_for_more_epochs(phase: str, option: str):
    """The last epoch is the best by more than the noise: under-fit, with the option that gives the phase more."""
    epochs = _epochs(1 - 0.03 * _X, 1.1 - 0.03 * _X, 0.02, phase)
    diagnosis = diagnose(History(epochs), 10)
    assert diagnosis.conclusion == UNDER_FIT
    assert f"Raise {option}." in diagnosis.sentence
    assert set(diagnosis.zones[phase][:-2]) == {UNDER_FIT}


def _cycle(train: np.ndarray, val: np.ndarray, error: float) -> History:
    """Return a run whose rate rises to epoch 8 and falls to nothing, as under one-cycle."""
    rates = np.interp(_X, [0, 7, 29], [1e-4, 1e-3, 1e-6])
    return History(
        [
            replace(epoch, learning_rate=float(rate))
            for epoch, rate in zip(_epochs(train, val, error), rates, strict=True)
        ]
    )


def test_losses_that_fall_with_the_rate_to_the_end_of_a_cycle_are_good():
    """Under one-cycle every run ends on its way down: that asks for no more epochs, under plateau it does."""
    history = _cycle(1 - 0.03 * _X, 1.1 - 0.03 * _X, 0.02)
    assert diagnose(history, 10, "onecycle").conclusion == GOOD
    assert diagnose(history, 10).conclusion == UNDER_FIT


@pytest.mark.parametrize(("until", "diagnosis"), [(12, GOOD), (30, UNSTABLE)])
def test_jumps_at_a_cycles_height_are_none(until: int, diagnosis: str):
    """Losses jump while one-cycle's rate is high; where they go on jumping once it is low, the run is unstable."""
    jumps = 0.4 * (-1.0) ** _X * (until > _X)
    history = _cycle(_FALLING + jumps + 0.5, _LEVEL + jumps + 0.8, 0.02)
    assert diagnose(history, 10, "onecycle").conclusion == diagnosis


def test_the_head_alone_is_no_cycle():
    """With --schedule onecycle the head alone still learns by plateau, and is judged by it."""
    history = History(_epochs(1 - 0.03 * _X, 1.1 - 0.03 * _X, 0.02, "head"))
    assert diagnose(history, 10, "onecycle").conclusion == UNDER_FIT


def test_a_last_epoch_that_is_best_by_chance_does_not():
    """A best last epoch within the noise of the ones before it is a good end."""
    val = _LEVEL - 0.0005 * (_X == 29)
    assert _diagnosis(_LEVEL * 0.9, val, error=0.01).conclusion == GOOD


def test_a_net_that_learns_nothing_is_under_fit():
    """A training loss at the level of guessing is under-fit, though the curves are flat."""
    flat = np.full(30, math.log(10))
    diagnosis = _diagnosis(flat, flat + 0.01, error=0.05)
    assert diagnosis.conclusion == UNDER_FIT
    assert "guessing (2.30)" in diagnosis.sentence


def test_validation_photos_that_are_too_easy_are_called_so():
    """Validation loss below training loss: unrepresentative beyond two standard errors of the difference, not within."""
    train, val = _FALLING + 0.3, _FALLING
    assert _diagnosis(train, val, error=0.05).conclusion == UNREPRESENTATIVE
    assert _diagnosis(train, val, error=0.3 / 2 / math.sqrt(2) + 0.001).conclusion != UNREPRESENTATIVE
    assert _diagnosis(train, val, error=0.0).conclusion != UNREPRESENTATIVE, "nothing is known of the error"


def test_a_jumping_validation_loss_is_called_so():
    """Jumps beyond the standard error: unrepresentative where the training loss is calm, unstable where it jumps too."""
    jumps = 0.2 * (-1.0) ** _X
    calm = np.maximum(_FALLING, 0.15)
    assert _diagnosis(calm, calm + 0.4 + jumps, error=0.02).conclusion == UNREPRESENTATIVE
    assert _diagnosis(calm + 0.3 + jumps, calm + 0.4 + jumps, error=0.02).conclusion == UNSTABLE
    assert _diagnosis(calm, calm + 0.4 + jumps, error=0.5).conclusion not in (UNREPRESENTATIVE, UNSTABLE)


def test_a_short_run_is_not_judged():
    """One or two epochs that show nothing are called too short, whatever their losses."""
    assert _diagnosis([0.5], [0.6]).conclusion == TOO_SHORT
    assert "only 1 epoch" in _diagnosis([0.5], [0.6]).sentence
    assert _diagnosis([0.5, 0.5], [0.6, 0.6]).conclusion == TOO_SHORT
    assert _diagnosis([0.5, 0.3], [0.6, 0.4]).conclusion == UNDER_FIT


def test_two_phases_are_judged_by_the_last_and_kept_by_the_best():
    """Where the layers below never beat the head alone, the head's weights are named as the kept ones."""
    head = _epochs(np.maximum(_FALLING, 0.15), np.maximum(_FALLING, 0.2), 0.02, "head")
    worse = _epochs(np.full(12, 0.15), np.full(12, 0.3), 0.02, "all")
    diagnosis = diagnose(History(head + worse), 10)
    assert (diagnosis.conclusion, diagnosis.kept_phase) == (GOOD, "head")
    assert "of the head alone" in diagnosis.sentence
    assert "did not improve on that" in diagnosis.sentence
    assert [len(diagnosis.zones[phase]) for phase in ("head", "all")] == [30, 12]


def test_a_history_without_errors_can_be_judged():
    """A plain Epoch has no standard error: two per cent of the lowest loss is the noise then."""
    losses = [(0.9, 1.0), (0.6, 0.5), (0.4, 0.505), (0.3, 0.52), (0.2, 0.53)]
    epochs = [Epoch("all", n, 1e-3, t, t, v, 1, 1, 1) for n, (t, v) in enumerate(losses, 1)]
    assert zones_of(epochs) == (UNDER_FIT, GOOD, GOOD, OVER_FIT, OVER_FIT)
    assert zones_of(epochs[:2]) == (UNDER_FIT, GOOD)


def test_a_perfect_run_has_a_verdict():
    """Losses of exactly 0 divide by nothing."""
    assert _diagnosis(np.zeros(5), np.zeros(5)).conclusion == GOOD


@pytest.mark.parametrize("seed", range(20))
def test_any_curves_have_a_verdict_that_is_json(seed: int):
    """Random curves of any length: a known word, a zone per epoch, finite numbers, and the rule beside it."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    diagnosis = _diagnosis(rng.uniform(0, 2, count), rng.uniform(0, 2, count), error=float(rng.uniform(0, 0.3)))
    values = json.loads(json.dumps(diagnosis.as_json(), allow_nan=False))
    assert values["conclusion"] in {UNDER_FIT, GOOD, OVER_FIT, UNREPRESENTATIVE, UNSTABLE, TOO_SHORT}
    assert len(values["zones"]["all"]) == count
    assert values["zones"]["all"][values["kept_epoch"] - 1] == GOOD
    assert values["rule"] == RULE


def test_the_rule_states_its_thresholds():
    """The printed rule holds the numbers that the code uses."""
    for number in ("2%", "90%", "last 5 epochs", "2 standard errors of the difference", "running median of three"):
        assert number in RULE
