"""The plan of a run under `--budget`: what was tried and decided, so that the final training can be repeated."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from penult.bundle.errors import BundleError
from penult.bundle.naming import versions
from penult.bundle.reader import read_file, read_manifest
from penult.export.config import budget as budgets
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.errors import SettingsError
from penult.export.jobs.budget_journal import Journal
from penult.export.jobs.packaging import Result
from penult.export.jobs.train import Run
from penult.export.networks import weights_at_hand
from penult.export.networks.weights_at_hand import AtHand
from penult.export.networks.weights_file import DOWNLOADS
from penult.export.training.pace import Round

PLAN_NAME = "budget.json"
_FORMAT = 1


def identity_of(settings: TrainSettings, networks: Sequence[AtHand], splits: Splits) -> list[Any]:
    """Return what two runs must have in common for one to resume the other."""
    known = [[each.arch, sha256_of(each.weights)] for each in networks]
    # The network of the settings is only the first one at hand.
    given = settings.as_json() | {"arch": "", "weights": ""}
    return [given, settings.budget, list(settings.pinned), known, splits.sha256]


def sha256_of(weights: str) -> str:
    """Return the digest of a file of weights; the word itself for a download."""
    path = Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else weights


def run_of(identity: list[Any]) -> str:
    """Return a short name of a run that is the same for every try at it."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def plan_of(
    settings: TrainSettings, identity: list[Any], run: Run, journal: Journal, networks: Sequence[AtHand],
    final: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return the contents of budget.json.

    Args:
        settings: The options that were given.
        identity: Of the run.
        run: Processes and photos.
        journal: What was tried.
        networks: Those at hand.
        final: The published training: kind, settings, weights_sha256 and rounds.
    """
    tried = [{key: value for key, value in asdict(each).items() if key != "more"} for each in journal.tried]
    return {
        "format": _FORMAT,
        "run": run_of(identity),
        "budget": settings.budget,
        "pinned": list(settings.pinned),
        "seed": settings.seed,
        "data_sha256": run.splits.sha256,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": run.processes.device.type,
            "processes": run.processes.size,
            "measured": {name: value for name, value in journal.facts.items() if name.startswith(("costs", "reserve"))},
        },
        "networks": [
            {"arch": each.arch, "weights": Path(each.weights).name, "sha256": sha256_of(each.weights)}
            for each in networks
        ],
        "tried": tried,
        "decisions": journal.decisions,
        "final": dict(final),
    }


def finished_before(model: Path, run: str) -> Result | None:
    """Return the newest version that this run has published; None if there is none."""
    for version in reversed(versions(model)):
        folder = model / str(version)
        try:
            manifest = read_manifest(folder)
            plan = manifest.training.get("budget")
            # `penult svm` and `penult quantize` copy the record.
            is_plain = "svm" not in manifest.training and "precision" not in manifest.training
            if is_plain and isinstance(plan, dict) and plan.get("run") == run:
                return Result(folder, json.loads(read_file(folder, manifest, "metrics.json")))
        except BundleError:
            continue  # a damaged version does not count
    return None


def read_plan(path: Path) -> dict[str, Any]:
    """Return the contents of a budget.json; raise SettingsError if it is none."""
    try:
        plan = json.loads(path.read_bytes())
        if plan["format"] == _FORMAT and isinstance(plan["final"]["settings"], dict):
            found: dict[str, Any] = plan
            return found
        raise SettingsError("BUDGET", f"--budget-plan {path} has format {plan['format']}; this penult reads {_FORMAT}")
    except OSError as error:
        raise SettingsError("BUDGET", f"--budget-plan {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError("BUDGET", f"--budget-plan {path} is no budget.json of penult train --budget") from error


def settings_of(settings: TrainSettings, plan: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of the plan's final training, on the photos that are given; raise SettingsError.

    Its weights are those with the same content, among the files of --weights or the networks at hand.
    """
    final = plan["final"]
    recorded: dict[str, Any] = final["settings"]
    places = {name: getattr(settings, name) for name in budgets.PLACES}
    for name in ("val", "test", "group_by"):
        if name not in settings.pinned and (name == "group_by" or _is_fraction(recorded.get(name))):
            places[name] = recorded.get(name)
    learning = {name: value for name, value in recorded.items() if name not in {*places, "weights"}}
    weights = _weights(settings, str(recorded["arch"]), final["weights_sha256"])
    return TrainSettings.of(**places, **learning, weights=weights)


def _weights(settings: TrainSettings, arch: str, sha256: str) -> str:
    if sha256 in DOWNLOADS:
        return sha256
    given = settings.weights if "weights" in settings.pinned else ""
    for each in weights_at_hand.find(given, arch):
        if sha256_of(each.weights) == sha256:
            return each.weights
    raise SettingsError(
        "WEIGHTS",
        f"--budget-plan needs the weights of {arch} with SHA-256 {sha256[:16]}…; give their file by --weights",
    )


def _is_fraction(text: object) -> bool:
    try:
        return 0 <= float(str(text)) < 1
    except ValueError:
        return False


def rounds_of(plan: Mapping[str, Any]) -> tuple[Round, ...]:
    """Return the rounds of the plan's final training."""
    return tuple(Round(**each) for each in plan["final"]["rounds"])
