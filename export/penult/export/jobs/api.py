"""Learn from Python: the commands `penult train`, `svm`, `calibrate`, `inspect`, `compare` and `import` as functions.

A function does what its command does, and writes the same files. It changes nothing in the calling process: random
numbers of PyTorch and NumPy go on as if it had not run. Options have the names of the flags, with underscores, and
their defaults. Variables such as PENULT_TRAIN_EPOCHS are not read.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from penult.console import OnLine, OnProgress, reporting_to
from penult.export.config.calibrate import CalibrateSettings
from penult.export.config.compare import CompareSettings
from penult.export.config.import_model import ImportSettings
from penult.export.config.inspect import InspectSettings
from penult.export.config.refit import RefitSettings
from penult.export.config.train import TrainSettings
from penult.export.jobs.inspect import Inspected
from penult.export.jobs.packaging import Result
from penult.export.jobs.preflight import (
    check_calibration,
    check_comparison,
    check_import,
    check_inspection,
    check_next_version,
    check_training,
)

if TYPE_CHECKING:
    from penult.export.jobs.compare import Compared

Name = str | PathLike[str]


def train(
    data: Name, out: Name, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Any
) -> Result:
    """Fine-tune a network on labelled photos, and publish a bundle, as `penult train` does.

    Args:
        data: A folder of class folders or of splits, or a label file.
        out: The folder of the model, like models/NAME. It gets the next version.
        on_progress: Called with what is being done, how many items are done, and how many there are (None if unknown).
        on_line: Called with each note. If neither function is given, both are printed to standard error.
        options: Those of `penult train --help`, such as arch="resnet18", freeze=3, epochs=20.

    Returns:
        The folder of the version, and its metrics: those of metrics.json.

    Raises:
        PenultError: An option, the photos or the disk; `message` is one line. Nothing is published.
    """
    began = time.monotonic()
    settings = TrainSettings.of(data=data, out=out, **options)
    with reporting_to(on_progress, on_line), _same_random_numbers():
        check_training(settings)
        if settings.budget:
            from penult.export.jobs.budget import run_budget

            return run_budget(settings, began)
        if settings.budget_plan:
            from penult.export.jobs.budget import replay as run
        else:
            from penult.export.jobs.train import train as run

        return run(settings)


def svm(
    model: Name, data: Name, *, on_progress: OnProgress | None = None, on_line: OnLine | None = None, **options: Any
) -> Result:
    """Fit a new SVM on the descriptors of a model, and publish its next version, as `penult svm` does.

    Args:
        model: The folder of the model, like models/NAME.
        data: The photos, as for train().
        on_progress: As for train().
        on_line: As for train().
        options: Those of `penult svm --help`, such as kernel="rbf". `from_collection` is the command's only.

    Returns:
        The folder of the version, and its metrics.

    Raises:
        PenultError: As for train().
    """
    settings = RefitSettings.of(model=model, data=data, **options)
    with reporting_to(on_progress, on_line), _same_random_numbers():
        check_next_version(settings)
        from penult.export.jobs.refit import refit

        return refit(settings)


def calibrate(
    model: Name,
    data: Name,
    max_error: float | str = 0.05,
    *,
    on_progress: OnProgress | None = None,
    on_line: OnLine | None = None,
    **options: Any,
) -> Result:
    """Certify from which probability on a model may answer, and publish its next version, as `penult calibrate` does.

    Args:
        model: The folder of the model, like models/NAME.
        data: Labelled photos that the model has not seen, as for train().
        max_error: The share of the answers that may be wrong: 0.05 or "5%".
        on_progress: As for train().
        on_line: As for train().
        options: Those of `penult calibrate --help`, such as per_class=True.

    Returns:
        The folder of the version, and its metrics. `metrics["abstaining"]` has what is certified, by scorer.

    Raises:
        PenultError: As for train(), or the photos cannot certify `max_error`. Nothing is published.
    """
    settings = CalibrateSettings.of(model=model, data=data, max_error=max_error, **options)
    with reporting_to(on_progress, on_line), _same_random_numbers():
        check_calibration(settings)
        from penult.export.jobs.calibrate import calibrate as run

        return run(settings)


def inspect(
    data: Name,
    out: Name | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_line: OnLine | None = None,
    **options: Any,
) -> Inspected:
    """Rank labels that are probably wrong, and find copies and weak photos, as `penult inspect` does.

    Args:
        data: The photos, as for train().
        out: The folder of the page and the CSV files; None: inspect/ and the data's own name.
        on_progress: As for train().
        on_line: As for train().
        options: Those of `penult inspect --help`, such as arch="resnet18".

    Returns:
        What was found: paths of `page`, `suspects` and `duplicates`, `found` with all numbers, and `as_json()`.

    Raises:
        PenultError: As for train().
    """
    settings = InspectSettings.of(data=data, out=out, **options)
    with reporting_to(on_progress, on_line), _same_random_numbers():
        check_inspection(settings)
        from penult.export.jobs.inspect import inspect as run

        return run(settings)


def compare(
    model: Name,
    data: Name,
    versions: tuple[int, int] | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_line: OnLine | None = None,
    **options: Any,
) -> "Compared":
    """Compare two versions of a model on the same labelled photos, as `penult compare` does.

    Args:
        model: The folder of the model, like models/NAME.
        data: The photos, as for train().
        versions: The former and the latter version, like (3, 4); None: the newest two.
        on_progress: As for train().
        on_line: As for train().
        options: Those of `penult compare --help`, such as split="all", fail_if_worse=True.

    Returns:
        What was found: `sentence`, `is_worse`, `failure` ("" if the gates are passed), paths of `page` and `table`,
        `found` with all numbers, and `as_json()`.

    Raises:
        PenultError: As for train(). A version that does not pass a gate raises nothing.
    """
    settings = CompareSettings.of(model=model, data=data, versions=versions, **options)
    with reporting_to(on_progress, on_line):
        check_comparison(settings)
        from penult.export.jobs.compare import compare as run

        return run(settings)


def import_model(
    source: Name,
    out: Name,
    *,
    on_progress: OnProgress | None = None,
    on_line: OnLine | None = None,
    **options: Any,
) -> Result:
    """Publish a model that was trained elsewhere as a bundle, as `penult import` does.

    Args:
        source: A checkpoint, a Hugging Face folder, an ONNX file, or an archive of TorchServe.
        out: The folder of the model, like models/NAME. It gets the next version.
        on_progress: As for train().
        on_line: As for train().
        options: Those of `penult import --help`, such as labels="classes.txt". `preprocess` is JSON or its file.

    Returns:
        The folder of the version, and its metrics. `metrics["parity"]` compares it with the original.

    Raises:
        PenultError: As for train().
    """
    settings = ImportSettings.of(source=source, out=out, **options)
    with reporting_to(on_progress, on_line), _same_random_numbers():
        check_import(settings)
        from penult.export.jobs.import_model import import_model as run

        return run(settings)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leave PyTorch's generators as they were, on all devices, and NumPy's, from which libraries draw too."""
    import torch

    before = np.random.get_state()  # the old generator is the one that belongs to the process
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        np.random.set_state(before)
