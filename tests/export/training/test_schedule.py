"""Early stopping, the rate drops beside it, and the history they leave."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest
import torch

from penult.export.config.train import TrainSettings
from penult.export.training.history import Epoch, History
from penult.export.training.schedule import EarlyStopping, make, one_cycle


def _stops_after(losses: list[float], patience: int) -> int:
    """Return after how many epochs a run with these validation losses ends."""
    stopping = EarlyStopping(patience)
    for loss in losses:
        stopping.improved(loss)
        if stopping.should_stop:
            break
    return stopping.epoch


@pytest.mark.parametrize(
    ("losses", "patience", "epochs"),
    [
        ([3, 2, 1, 2, 2, 2, 2], 3, 6),
        ([3, 2, 1, 2, 2, 0.5, 2, 2, 2, 2], 3, 9),
        ([1, 1, 1, 1, 1], 2, 3),
        ([5, 4, 3, 2, 1], 1, 5),
        ([math.nan] * 9, 4, 4),
        ([1, math.nan, 0.5, math.nan, math.nan, 9], 2, 5),
    ],
)
def test_patience_counts_epochs_since_the_best(losses: list[float], patience: int, epochs: int):
    """A run ends when the lowest loss is `patience` epochs old; equal losses and NaN are no improvement."""
    assert _stops_after(losses, patience) == epochs


def test_the_best_epoch_is_remembered():
    """Value and number of the best epoch are kept, the first of equals."""
    stopping = EarlyStopping(10)
    assert [stopping.improved(loss) for loss in (2.0, 1.0, 1.0, 3.0)] == [True, True, False, False]
    assert (stopping.best, stopping.best_epoch, stopping.epoch) == (1.0, 2, 4)


def test_a_phase_that_still_comes_down_goes_on():
    """Above the best of an earlier phase, patience counts from this phase's own lowest; the best stays the earlier."""
    stopping = EarlyStopping(3, best=0.8)
    losses = [1.2 - 0.03 * epoch for epoch in range(12)]
    assert [stopping.improved(loss) for loss in losses] == [False] * 12
    assert not stopping.should_stop
    assert stopping.best == 0.8
    for _ in range(3):
        stopping.improved(1.0)
    assert stopping.should_stop


def _epoch(number: int, phase: str = "all", **changes: Any) -> Epoch:
    values = dict.fromkeys([f.name for f in fields(Epoch)], 0.1 * number) | {"phase": phase, "epoch": number}
    return Epoch(**(values | changes))


def test_history_is_one_row_per_epoch():
    """history.csv has a header of the fields in their order, and every value to its last digit."""
    history = History([_epoch(1, "head"), _epoch(2, val_loss=1 / 3)])
    rows = list(csv.DictReader(io.StringIO(history.to_csv().decode())))
    assert list(rows[0]) == [
        "phase", "epoch", "learning_rate", "running_loss", "train_loss", "val_loss", "train_accuracy", "val_accuracy",
        "seconds", "val_loss_error",
    ]  # fmt: skip
    assert [(row["phase"], row["epoch"]) for row in rows] == [("head", "1"), ("all", "2")]
    assert float(rows[1]["val_loss"]) == 1 / 3


def test_history_survives_a_checkpoint():
    """Plain values and back give the same history."""
    history = History([_epoch(1, "head"), _epoch(1), _epoch(2)], ["a note"], 2.5)
    assert History.from_state(history.to_state()) == history
    assert [epoch.epoch for epoch in history.phase("all")] == [1, 2]


def test_a_line_says_which_epoch_was_best():
    """The line for a person has phase, number and validation figures."""
    history = History([_epoch(7, val_accuracy=0.953, val_loss=0.25)])
    assert "all   7" in history.last_line(False)
    assert "val loss 0.250" in history.last_line(False)
    assert "95.3%" in history.last_line(False)
    assert history.last_line(True).endswith("best")
    assert not history.last_line(False).endswith("best")


def test_the_trained_bundle_has_its_history(trained: Any):
    """A real run's history.csv has an epoch per row up to the last, with rates that never rise after the warm-up."""
    rows = list(csv.DictReader(io.StringIO((trained.folder / "history.csv").read_text())))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {row["phase"] for row in rows} == {"all"}
    rates = [float(row["learning_rate"]) for row in rows[1:]]
    assert rates == sorted(rates, reverse=True)
    losses = [float(row["val_loss"]) for row in rows]
    assert min(losses) < losses[0] / 5


def _optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates])


def test_one_cycle_rises_and_falls():
    """The rate starts at a tenth, reaches its height at a quarter, ends at a thousandth, and never jumps."""
    assert one_cycle(0) == pytest.approx(0.1)
    assert one_cycle(0.25) == pytest.approx(1)
    assert one_cycle(1) == pytest.approx(1e-3)
    values = [one_cycle(step / 1000) for step in range(1001)]
    assert max(values) == pytest.approx(1)
    assert max(abs(b - a) for a, b in pairwise(values)) < 0.01
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_one_cycle_moves_all_groups_and_never_stops_early(settings: Callable[..., TrainSettings]):
    """Every group follows the same cycle from its own rate, over all epochs, whatever the validation loss does."""
    chosen = settings(schedule="onecycle", epochs=4)
    optimizer = _optimizer(1e-2, 1e-4)
    schedule = make(optimizer, chosen, math.inf, steps=5)
    seen = []
    for epoch in range(4):
        for _ in range(5):
            schedule.before_step()
            seen.append([group["lr"] for group in optimizer.param_groups])
        assert not schedule.is_over or epoch == 3
        schedule.after_epoch(1.0 + epoch)
    assert schedule.stopping.best_epoch == 1
    assert [a / b for a, b in seen] == pytest.approx([100] * 20)
    assert [a for a, _ in seen] == pytest.approx([1e-2 * one_cycle(step / 19) for step in range(20)])


@pytest.mark.parametrize("kind", ["plateau", "onecycle"])
def test_a_schedule_goes_on_where_it_was(settings: Callable[..., TrainSettings], kind: str):
    """State saved after any epoch and loaded into a new schedule gives the rates and the end of an unbroken one."""
    chosen = settings(schedule=kind, epochs=9, **({"lr_patience": 0, "stop_patience": 3} if kind == "plateau" else {}))
    losses = [3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 1.3, 1.4]

    def rates(cut: int | None) -> list[float]:
        optimizer = _optimizer(1e-3)
        schedule, seen = make(optimizer, chosen, math.inf, steps=2), []
        for number, loss in enumerate(losses):
            if number == cut:
                saved, state = optimizer.state_dict(), schedule.state_dict()
                optimizer = _optimizer(1e-3)
                schedule = make(optimizer, chosen, math.inf, steps=2)
                optimizer.load_state_dict(saved)
                schedule.load_state_dict(state)
            for _ in range(2):
                schedule.before_step()
                seen.append(optimizer.param_groups[0]["lr"])
            schedule.after_epoch(loss)
            if schedule.is_over:
                break
        return seen

    whole = rates(None)
    assert len(set(whole)) > 2
    for cut in range(len(whole) // 2):
        assert rates(cut) == whole
