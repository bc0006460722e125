"""`--budget`: a time in which `penult train` chooses how to train, trains and publishes.

The other options are choices that it makes. An option that is given pins that choice.
"""

import argparse
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from penult.export.errors import SettingsError

if TYPE_CHECKING:
    from penult.export.config.train import TrainSettings

QUICK = "quick"
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)([smh])")
# The options that --budget-plan takes from the command line: where the photos are, and what becomes of the network.
PLACES = (
    "data", "out", "val", "test", "images", "skip_missing", "exclude", "group_by", "cache_mb", "device", "save_weights",
    "report_photos", "resume",
)  # fmt: skip
# What cannot be combined with a run that chooses for itself, and what to do instead.
_REFUSED = {
    "sweep": "which publishes a model: omit --sweep",
    "dry_run": "which decides as it measures: omit --dry-run",
    "int8": "which chooses the network: run penult quantize afterwards",
    "reinit": "which compares networks that keep their weights: omit --reinit",
    "lr": "which has learning rates of its own: omit --lr auto",
    "tensorboard": "which trains several times: omit --tensorboard",
    "max_error": "which chooses on all validation photos: run penult calibrate afterwards",
    "schedule": "whose learning rate ends when the time ends: omit --schedule",
    "lr_factor": "whose learning rate ends when the time ends: omit --lr-factor",
    "lr_patience": "whose learning rate ends when the time ends: omit --lr-patience",
    "stop_patience": "which trains until the time ends: omit --stop-patience",
}


def budget_time(text: str) -> str:
    """Return a time as --budget takes it, such as 90s, 20m, 1.5h or quick; raise ArgumentTypeError."""
    found = _TIME.fullmatch(text)
    if text and text != QUICK and not (found and float(found[1]) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 20m or 2h, nor {QUICK}")
    return text


def seconds_of(budget: str) -> float | None:
    """Return the seconds of a budget; None for `quick`, which has no clock."""
    found = _TIME.fullmatch(budget)
    return float(found[1]) * _UNITS_S[found[2]] if found else None


def check(settings: "TrainSettings") -> None:
    """Raise SettingsError for options that --budget or --budget-plan cannot be combined with."""
    if not settings.budget and not settings.budget_plan:
        return
    if settings.budget and settings.budget_plan:
        raise SettingsError("BUDGET", "--budget chooses, and --budget-plan repeats what was chosen: omit one")
    option = "--budget" if settings.budget else "--budget-plan"
    for name, out in _REFUSED.items():
        if name in settings.pinned or getattr(settings, name) != getattr(type(settings), name):
            raise SettingsError("BUDGET", f"--{name.replace('_', '-')} cannot be combined with {option}, {out}")
    if settings.budget_plan and (more := set(settings.pinned) - {*PLACES, "weights", "budget_plan"}):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(more))
        raise SettingsError("BUDGET", f"--budget-plan has its own {names}: omit what decides on the training")
    if settings.weights == "none":
        raise SettingsError(
            "BUDGET", f"--weights none cannot be combined with {option}, which compares trained weights: give files"
        )


def pinned(given: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the options that are given, which --budget must not choose."""
    return tuple(sorted(set(given) - {"data", "out", "resume", "budget"}))
