"""Early stopping, the rate drops beside it, and the history they leave."""

import csv
import io
import math
from dataclasses import fields
from typing import Any

import pytest

from penult.export.history import Epoch, History
from penult.export.schedule import EarlyStopping


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
    history = History([_epoch(1, "head"), _epoch(1), _epoch(2)], ["a note"])
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
