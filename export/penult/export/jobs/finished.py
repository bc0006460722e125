"""Runs that have ended already: what `--resume` finds if it is given once more."""

import json
from collections.abc import Callable
from pathlib import Path

from penult.bundle.errors import BundleError
from penult.bundle.manifest import INT8, SVM, Manifest
from penult.bundle.naming import versions
from penult.bundle.reader import read_file, read_manifest
from penult.export.config.train import TrainSettings
from penult.export.jobs.packaging import Result

_METRICS = "metrics.json"


def finished_run(settings: TrainSettings, data_sha256: str) -> Result | None:
    """Return the newest version that a run of these settings on these photos published; None if there is none."""
    wanted = json.loads(json.dumps(settings.as_json()))

    def is_it(manifest: Manifest) -> bool:
        training = manifest.training
        # A new SVM and lower precision keep the record of the training; what they publish is no end of the run.
        is_plain = SVM not in training and "precision" not in training
        return is_plain and (training.get("settings"), training.get("data_sha256")) == (wanted, data_sha256)

    return _newest(settings.out, is_it)


def finished_int8(model: Path, float_version: int) -> Result | None:
    """Return the newest int8 version made of this one; None if there is none."""

    def is_it(manifest: Manifest) -> bool:
        made_of = manifest.training.get("calibration")
        return manifest.precision == INT8 and isinstance(made_of, dict) and made_of["float_version"] == float_version

    return _newest(model, is_it)


def _newest(model: Path, is_it: Callable[[Manifest], bool]) -> Result | None:
    for version in reversed(versions(model)):
        folder = model / str(version)
        try:
            manifest = read_manifest(folder)
            if is_it(manifest):
                return Result(folder, json.loads(read_file(folder, manifest, _METRICS)))
        except BundleError:
            continue  # a damaged version is no version to end with
    return None
