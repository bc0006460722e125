"""The table of what a run under --budget has tried, for the terminal and the report."""

from collections.abc import Mapping
from typing import Any

from penult.bundle.scores import wilson
from penult.console import duration
from penult.export.evaluation.accuracy import between

HEADER = ("stage", "network", "what", "photos", "accuracy, 95 %", "loss", "lead", "at", "took")


def rows(plan: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each thing that was tried, as in HEADER."""
    return [_row(each) for each in plan["tried"]]


def _row(each: Mapping[str, Any]) -> list[str]:
    loss, lead = each["loss"], each["lead"]
    scale, digits = (100.0, 1) if loss is None else (1.0, 3)  # points of accuracy, or loss
    shown = "" if lead is None else f"{scale * lead:+.{digits}f} ± {scale * each['lead_error']:.{digits}f}"
    epochs = f", {each['epochs']:.3g} epochs" if each["epochs"] else ""
    return [
        each["stage"], each["arch"], each["what"] + epochs, str(each["photos"]),
        between(*wilson(each["accuracy"], each["photos"])), "" if loss is None else f"{loss:.3f}", shown,
        duration(each["at_s"]), duration(each["seconds"]),
    ]  # fmt: skip
