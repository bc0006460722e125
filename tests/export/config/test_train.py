"""The options of `penult train`: defaults that work, contradictions refused with what to change."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penult.bundle import preprocess
from penult.export.config.quantize import QuantizeSettings
from penult.export.config.refit import RefitSettings
from penult.export.config.train import FITS, FREEZE_ALL, TrainSettings
from penult.export.errors import SettingsError
from penult.settings import Settings, declared, option_of


def _parse(*options: str) -> TrainSettings:
    parser = argparse.ArgumentParser()
    TrainSettings.add_arguments(parser)
    return TrainSettings.load(parser.parse_args(list(options)), {})


def test_views_reach_the_settings():
    """--views is a number, and only those that there are."""
    assert _parse("photos", "--views", "8", "--augment", "topdown").views == 8
    with pytest.raises(SystemExit):
        _parse("photos", "--views", "3", "--augment", "topdown")


def test_fits_are_those_of_the_preprocessing():
    """The list that the command line knows without loading Pillow is the one that serving knows."""
    assert FITS == preprocess.FITS


def test_the_defaults_are_the_dataclass_defaults():
    """The command line without options gives TrainSettings without options: there is one set of defaults."""
    assert _parse("photos", "--out", "models/x") == TrainSettings(data=Path("photos"), out=Path("models/x"))


def test_every_option_reaches_the_settings():
    """Each option of the command line sets the value that it names."""
    given = {
        "arch": "vgg16", "weights": "w.pt", "epochs": 3, "head_epochs": 4, "seed": 5, "val": "0.3", "test": "t",
        "device": "cpu", "batch_size": 6, "lr_head": 0.7, "lr_backbone": 0.8, "lr_stage_decay": 0.9, "lr_factor": 0.25,
        "lr_patience": 1, "stop_patience": 11, "weight_decay": 0.5, "dropout": 0.4, "augment": "gentle", "cache_mb": 7,
        "save_weights": Path("s.pt"), "freeze": 2, "svm": "rbf", "fit": "stretch", "descriptor": "dense1",
        "dropout_channels": 0.1,
    }  # fmt: skip
    options = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))]
    parsed = _parse("photos", "--out", "models/x", "--reinit", "--resume", *options)
    assert parsed == TrainSettings(data=Path("photos"), out=Path("models/x"), reinit=True, resume=True, **given)


@pytest.mark.parametrize(("text", "count"), [*((str(n), n) for n in range(6)), ("all", FREEZE_ALL)])
def test_freeze_counts_stages(text: str, count: int):
    """--freeze takes 0 to 5, or all."""
    assert _parse("photos", "--freeze", text).freeze == count


@pytest.mark.parametrize("text", ["6", "-1", "", "3.0", "ALL", "two", "3 "])
def test_freeze_takes_nothing_else(text: str, capsys: pytest.CaptureFixture[str]):
    """Anything else is a usage error (exit code 2) that says what may be given."""
    with pytest.raises(SystemExit) as caught:
        _parse("photos", f"--freeze={text}")
    assert caught.value.code == 2
    assert "is not 0, 1, 2, 3, 4, 5 or all" in capsys.readouterr().err


def test_a_random_start_freezes_nothing_by_default():
    """--weights none alone works, since the default only makes sense with weights; freezing them as well is refused."""
    assert _parse("photos", "--weights", "none").freeze == 0
    assert _parse("photos").freeze == 3
    for text in ("3", "1", "all"):
        with pytest.raises(SettingsError):
            _parse("photos", "--weights", "none", "--freeze", text)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("photos", "photos"), ("My Photos (2)", "My-Photos-2-"), ("größe", "gr-e"), ("x" * 80, "x" * 64), ("猫", "-")],
)
def test_the_default_model_name_is_the_folders(tmp_path: Path, folder: str, name: str):
    """Without --out the model is called as the photos' folder, with what a model name may not hold replaced."""
    assert _parse(str(tmp_path / folder)).out == Path("models") / name


def test_a_relative_folder_names_the_model_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`penult train .` takes the name of the folder that one is in, and a link its own, not that of its target."""
    (tmp_path / "birds").mkdir()
    (tmp_path / "gulls").symlink_to("birds")
    assert _parse(str(tmp_path / "gulls")).out == Path("models/gulls")
    monkeypatch.chdir(tmp_path / "birds")
    assert _parse(".").out == Path("models/birds")


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"stop_patience": 8}, "PATIENCE", "--stop-patience"),
        ({"lr_patience": 10}, "PATIENCE", "--lr-patience"),
        ({"weights": "none", "freeze": 3}, "FREEZE", "--freeze 0"),
        ({"weights": "none", "freeze": FREEZE_ALL}, "FREEZE", "--freeze 0"),
        ({"weights": "w.pt", "reinit": True, "freeze": FREEZE_ALL}, "FREEZE", "--freeze all"),
        ({"sweep": "labels", "freeze": FREEZE_ALL, "weights": "w.pt"}, "FREEZE", "--freeze 0 to 5"),
        ({"repeats": 5}, "NO_EFFECT", "add --sweep"),
        ({"sweep": "labels", "save_weights": Path("w.pt")}, "NO_EFFECT", "--save-weights has no effect"),
        ({"sweep": "freeze", "tensorboard": Path("events")}, "NO_EFFECT", "--tensorboard has no effect"),
        ({"sweep": "freeze", "int8": True, "weights": "w.pt"}, "NO_EFFECT", "--int8 has no effect"),
        ({"sweep": "labels", "whiten": 8}, "NO_EFFECT", "--whiten has no effect"),
        ({"sweep": "layers", "weights": "w.pt", "descriptor": "stage3"}, "NO_EFFECT", "which tries every layer"),
        ({"sweep": "freeze", "weights": "w.pt", "descriptor": "stage3"}, "NO_EFFECT", "use the penultimate layer"),
        ({"weights": "w.pt", "freeze": FREEZE_ALL, "dropout_channels": 0.1}, "NO_EFFECT", "reads channels"),
        ({"dropout_channels": 1.0}, "RANGE", "--dropout-channels"),
        ({"descriptor": "stage1"}, "RANGE", "--descriptor stage1 is not one of penultimate, stage3"),
        ({"max_loss": 2.0}, "NO_EFFECT", "add --int8"),
        ({"epochs": 0}, "RANGE", "--epochs"),
        ({"head_epochs": 0}, "RANGE", "--head-epochs"),
        ({"batch_size": -1}, "RANGE", "--batch-size"),
        ({"dropout": 1.0}, "RANGE", "--dropout"),
        ({"dropout": -0.1}, "RANGE", "--dropout"),
        ({"dropout": float("nan")}, "RANGE", "--dropout"),
    ],
    ids=str,
)
def test_contradictions_are_refused_with_what_to_change(
    settings: Callable[..., TrainSettings], changes: dict[str, Any], reason: str, said: str
):
    """Settings that cannot work together are refused at once, in one line that names the option."""
    with pytest.raises(SettingsError) as caught:
        settings(**changes)
    assert caught.value.reason == reason
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [{"seed": -1}, {"seed": 2**32}, {"lr_head": -1e-3}, {"lr_backbone": -1.0}, {"lr_head": float("nan")},
     {"lr_factor": 1.0}, {"lr_factor": -0.1}, {"lr_patience": -1}, {"weight_decay": -0.1}, {"lr_stage_decay": -1.0}],
    ids=str,
)  # fmt: skip
def test_values_that_a_library_would_refuse_hours_later_are_refused_at_once(
    settings: Callable[..., TrainSettings], changes: dict[str, Any]
):
    """A seed that scikit-learn does not take, or a rate that torch does not, stops the run before it starts."""
    with pytest.raises(SettingsError):
        settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"stop_patience": 9}, {"dropout": 0.0}, {"dropout": 0.99}, {"epochs": 1}, {"max_loss": 0.5},
     {"max_loss": 2.0, "int8": True}, {"repeats": 5, "sweep": "labels", "weights": "w.pt"},
     {"freeze": FREEZE_ALL, "weights": "w.pt", "sweep": "freeze"}, {"save_weights": Path("w.pt")}],
    ids=str,
)  # fmt: skip
def test_the_edges_of_what_works_are_accepted(settings: Callable[..., TrainSettings], changes: dict[str, Any]):
    """Values just inside their limits are fine, and kept as they were given."""
    accepted = settings(**changes)
    assert {name: getattr(accepted, name) for name in changes} == changes


def test_what_is_recorded_names_no_path_of_this_machine(settings: Callable[..., TrainSettings], tmp_path: Path):
    """The manifest learns all that decides the result, and file names without their folders."""
    chosen = settings(weights=str(tmp_path / "w.pt"), val=str(tmp_path / "v"), test=str(tmp_path / "t"), seed=3)
    recorded = chosen.as_json()
    assert str(tmp_path) not in json.dumps(recorded)
    assert (recorded["weights"], recorded["val"], recorded["test"], recorded["seed"]) == ("w.pt", "v", "t", 3)
    assert {"arch", "freeze", "reinit", "epochs", "lr_head", "lr_backbone", "batch_size", "augment"} <= set(recorded)


def test_photos_in_the_report_can_be_turned_off():
    """--no-report-photos is parsed; the manifest and a resumed run do not depend on it."""
    shown, hidden = _parse("photos"), _parse("photos", "--no-report-photos")
    assert (shown.report_photos, hidden.report_photos) == (True, False)
    assert shown.as_json() == hidden.as_json()


def test_files_and_variables_give_settings_that_are_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A flag wins over a variable, that over --config; a run that a variable changes prints its name."""
    (tmp_path / "run.toml").write_text('epochs = 3\nseed = 3\nbatch_size = 3\nfreeze = "all"\nreinit = false')
    parser = argparse.ArgumentParser()
    TrainSettings.add_arguments(parser)
    arguments = parser.parse_args(["photos", "--config", str(tmp_path / "run.toml"), "--epochs", "5"])
    found = TrainSettings.load(arguments, {"PENULT_TRAIN_EPOCHS": "4", "PENULT_TRAIN_SEED": "4", "PENULT_EPOCHS": "9"})
    assert (found.epochs, found.seed, found.batch_size, found.freeze) == (5, 4, 3, FREEZE_ALL)
    assert capsys.readouterr().err == "penult: settings from PENULT_TRAIN_EPOCHS, PENULT_TRAIN_SEED\n"


@pytest.mark.parametrize("text", ["epohs = 3", 'epochs = "many"', "epochs = 0", 'freeze = "most"', "data = 'photos'"])
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str):
    """What --config gives is checked as flags are; the photos are named on the command line only."""
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(SettingsError, match=text.split(maxsplit=1)[0]) as caught:
        _parse("photos", "--config", str(tmp_path / "run.toml"))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", [TrainSettings, RefitSettings, QuantizeSettings])
def test_help_is_short(kind: type[Settings]):
    """Each option is said in at most 12 words, without a stop."""
    assert [option_of(f).help for f in declared(kind) if len(option_of(f).help.rstrip(".").split()) > 12] == []
