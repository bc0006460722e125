"""--budget: times, and what it cannot be combined with."""

import argparse
from pathlib import Path

import pytest

from penult.export.config.budget import seconds_of
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError


def _parse(*options: str) -> TrainSettings:
    parser = argparse.ArgumentParser()
    TrainSettings.add_arguments(parser)
    return TrainSettings.load(parser.parse_args(["photos", *options]), {})


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("quick", None)])
def test_times(text: str, seconds: float | None):
    """Seconds, minutes, hours, and a run without a clock."""
    assert seconds_of(_parse("--budget", text).budget) == seconds


@pytest.mark.parametrize("text", ["20", "0m", "20 minutes", "-5m", "fast", ""])
def test_other_texts_are_no_times(text: str, capsys: pytest.CaptureFixture[str]):
    """One line names what is wrong; an empty text is no budget."""
    if not text:
        assert not _parse("--budget", text).budget
        return
    with pytest.raises(SystemExit):
        _parse(f"--budget={text}")
    assert "is not a time such as 90s, 20m or 2h, nor quick" in capsys.readouterr().err


def test_given_options_are_pinned():
    """Also if they are the defaults; nothing is pinned without --budget."""
    assert _parse("--budget", "20m", "--freeze", "3", "--arch", "resnet18").pinned == ("arch", "freeze")
    assert _parse("--freeze", "3").pinned == ()


@pytest.mark.parametrize(
    "options",
    [
        ("--sweep", "freeze"), ("--dry-run",), ("--reinit",), ("--lr", "auto"), ("--tensorboard", "events"),
        ("--weights", "none"), ("--budget-plan", "budget.json"), ("--schedule", "plateau"), ("--stop-patience", "20"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined(options: tuple[str, ...]):
    """Refused in one line that says what to omit or give."""
    with pytest.raises(SettingsError, match=r"omit|give files"):
        _parse("--budget", "20m", *options)


def test_a_plan_has_its_own_options():
    """Only places may be given beside it."""
    plan = _parse("--budget-plan", "budget.json", "--weights", "w.pt", "--save-weights", "s.pt")
    assert plan.budget_plan == Path("budget.json")
    with pytest.raises(SettingsError, match="--budget-plan has its own --freeze, --seed: omit"):
        _parse("--budget-plan", "budget.json", "--seed", "1", "--freeze", "2")
