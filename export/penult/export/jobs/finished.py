"""Find the version that an earlier run published, for `--resume`."""

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


def finished_run(
    settings: TrainSettings, data_sha256: str, one_class: dict[str, object] | None = None
) -> Result | None:
    """Return the newest version that a run with these settings and photos published; None if there is none.

    `one_class` is what the manifest records of a model with one class.
    """
    wanted = json.loads(json.dumps(settings.as_json()))

    def is_it(manifest: Manifest) -> bool:
        training = manifest.training
        # Versions of `penult svm` and `penult quantize` copy the record of the training, but do not end the run.
        is_plain = SVM not in training and "precision" not in training
        recorded = training.get("settings"), training.get("data_sha256"), training.get("one_class")
        return is_plain and recorded == (wanted, data_sha256, one_class)

    return _newest(settings.out, is_it)


def finished_int8(model: Path, float_version: int) -> Result | None:
    """Return the newest int8 version of a float version; None if there is none."""

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
            continue  # a damaged version does not count
    return None
