"""The table and the files of a run under `--budget`: trials.csv, trials.png and budget.json."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penult.bundle.scores import wilson
from penult.export.config.budget import seconds_of
from penult.export.disk import writing
from penult.export.jobs.budget_record import PLAN_NAME
from penult.export.report.plot_budget import trials_png

_CSV = ("stage", "arch", "what", "photos", "accuracy", "low", "high", "loss", "lead", "lead_error", "epochs", "at_s",
        "seconds")  # fmt: skip


def trials_csv(plan: Mapping[str, Any]) -> str:
    """Return the text of trials.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV, lineterminator="\n")
    writer.writeheader()
    for each in plan["tried"]:
        low, high = wilson(each["accuracy"], each["photos"])
        writer.writerow({name: each.get(name) for name in _CSV} | {"low": low, "high": high})
    return text.getvalue()


def plan_json(plan: Mapping[str, Any]) -> bytes:
    """Return the bytes of budget.json."""
    return (json.dumps(plan, indent=1, ensure_ascii=False) + "\n").encode()


def read(folder: Path) -> dict[str, Any]:
    """Return the plan that write() has written."""
    plan: dict[str, Any] = json.loads((folder / PLAN_NAME).read_bytes())
    return plan


def write(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write the files of a run into its folder; raise DiskError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trials.csv").write_text(trials_csv(plan))
        (folder / "trials.png").write_bytes(trials_png(plan, seconds_of(plan["budget"])))
        (folder / PLAN_NAME).write_bytes(plan_json(plan))
