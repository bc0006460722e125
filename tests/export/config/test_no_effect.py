"""Options that change nothing beside others: all of them are reported at once, and none that does something."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from penult.export.config import no_effect
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.errors import SettingsError

Settings = Callable[..., TrainSettings]
_GIVEN = {"weights": "w.pt", "freeze": 3}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"freeze": FREEZE_ALL, "epochs": 3}, ["--epochs has no effect with --freeze all, which trains the head only"]),
        (
            {"freeze": FREEZE_ALL, "epochs": 3, "lr_backbone": 0.1, "augment": "none", "schedule": "onecycle"},
            ["--epochs, --lr-backbone, --augment and --schedule have no effect with --freeze all"],
        ),
        ({"weights": "none", "freeze": 0, "head_epochs": 3}, ["--head-epochs has no effect with --weights none"]),
        (
            {"reinit": True, "head_epochs": 3, "lr_backbone": 0.1, "lr_stage_decay": 0.5},
            ["--head-epochs has no effect with", "--lr-backbone and --lr-stage-decay have no effect with"],
        ),
        ({"weights": "none", "freeze": 0, "reinit": True}, ["--reinit has no effect with --weights none"]),
        ({"freeze": 4, "lr_stage_decay": 0.5}, ["--lr-stage-decay has no effect with --freeze 4 or 5"]),
        ({"freeze": 5, "reinit": True}, ["--reinit has no effect with --freeze 5 and a network without hidden dense"]),
        (
            {"descriptor": "stage5"},
            ["--descriptor has no effect with a network whose penultimate layer is the mean of"],
        ),
        ({"freeze": 2, "sweep": "freeze"}, ["--freeze has no effect with --sweep freeze"]),
        ({"sweep": "labels", "report_photos": False}, ["--no-report-photos has no effect with --sweep"]),
        ({"dry_run": True, "resume": True}, ["--resume has no effect with --dry-run"]),
    ],
    ids=str,
)
def test_options_with_nothing_to_do_are_noted(settings: Settings, changes: dict[str, Any], told: list[str]):
    """Each reason is a line with all the options that it holds for; the run goes on."""
    notes = no_effect.notes(settings(**_GIVEN | changes))
    assert len(notes) == len(told)
    for note, beginning in zip(notes, told, strict=True):
        assert note.startswith(beginning)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 3, "lr_backbone": 0.1, "lr_stage_decay": 0.5, "train_crop": 24, "head_epochs": 2},
        {"freeze": FREEZE_ALL, "head_epochs": 3, "lr_head": 0.1, "dropout": 0.5, "lr_patience": 1},
        {"freeze": FREEZE_ALL, "sweep": "freeze", "epochs": 3, "augment": "none"},
        {"freeze": 4, "lr_backbone": 0.1},
        {"descriptor": "stage4"},
        {"arch": "alexnet", "descriptor": "stage5", "dropout_channels": 0.2},
        {"arch": "alexnet", "freeze": 5, "reinit": True, "epochs": 3},
        {"sweep": "labels", "reinit": True, "lr_stage_decay": 0.5, "head_epochs": 3, "resume": True},
    ],
    ids=str,
)
def test_options_that_do_something_are_not_noted(settings: Settings, changes: dict[str, Any]):
    """What changes the run is passed over, and so are the defaults."""
    if changes.get("freeze") == FREEZE_ALL and changes.get("sweep"):
        changes = changes | {"freeze": TrainSettings.freeze}
    assert no_effect.notes(settings(**_GIVEN | changes)) == ()


def test_all_that_is_refused_is_refused_at_once(settings: Settings, tmp_path: Path):
    """Several options that promise what will not happen are one line, each with its reason."""
    with pytest.raises(SettingsError) as caught:
        settings(**_GIVEN, sweep="freeze", int8=True, save_weights=tmp_path / "w", tensorboard=tmp_path)
    assert caught.value.message == (
        "--int8 has no effect with --sweep, which publishes nothing; --save-weights has no effect with --sweep, which "
        "keeps no network; --tensorboard has no effect with --sweep, which writes no event files; omit them"
    )


def test_the_table_names_options_that_there_are():
    """A renamed setting does not silently leave the table."""
    known = {f.name for f in fields(TrainSettings)}
    tables = (*no_effect._REFUSED, *no_effect._NOTED)
    assert {name for idle in tables for name in idle.options} <= known
