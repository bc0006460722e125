"""What a training run and a new SVM do alike between descriptors and a bundle: calibrate, choose, measure, record.

Nothing here needs PyTorch: `penult svm` must not wait for it.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle import goldens, writer
from penult.bundle.manifest import DENSE, GOLDEN_NAME, SVM, Manifest
from penult.bundle.preprocess import crop_encoded
from penult.bundle.scores import Floats, pieces
from penult.export.data.dataset import Photo, Splits
from penult.export.data.loader import as_served
from penult.export.disk import writing
from penult.export.evaluation.metrics import against_validation, compare, evaluate, fit_temperature
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.evaluation.svm import FittedSvm, fit_again
from penult.export.onnx.runtime import ExportedModel
from penult.export.report.report import predictions_csv, report_files
from penult.export.report.report_data import ReportData

_GOLDENS = 8
# Relative to the largest value. TF32 on a GPU keeps ten bits: the descriptor moves by about a thousandth.
_DEVICE_NOISE = 1e-3
_MAX_MOVED = 0.05
_SHAKES = 4
# Of the training photos, as many are judged as have this many scores (400 MB); validation and test photos all are.
_MAX_JUDGED = 100_000_000
_MAX_CHOSEN_FROM = 10_000_000
_LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "scikit-learn", "numpy", "pillow")


@dataclass(frozen=True)
class Result:
    """What a run ends with: the published folder and the contents of metrics.json."""

    folder: Path
    metrics: dict[str, Any]


def refit_on_all(chosen: FittedSvm, measured: Mapping[str, SplitOutputs]) -> FittedSvm:
    """Fit the chosen SVM once more, on training and validation photos: labels are too dear to leave a part unused.

    What validation decides (scorer, temperatures, gates) is decided before, by the SVM that has not seen it.
    """
    parts = [measured[part] for part in ("train", "val")]
    descriptors, labels = (np.concatenate([getattr(m, name) for m in parts]) for name in ("descriptors", "labels"))
    return fit_again(chosen, descriptors, labels)


def score(
    measured: Mapping[str, SplitOutputs], scorers: Sequence[str], chosen: FittedSvm, final: FittedSvm
) -> dict[str, dict[str, Floats]]:
    """Return scores [N, classes] by split and scorer: of the test photos those that the bundle will give.

    The SVM's of the validation photos are those of the `chosen` one, which learnt from the training photos alone.
    """
    svm = {"train": chosen, "val": chosen, "test": final}
    rows = {part: judged(part, len(m.labels), len(chosen.pipeline.classes_)) for part, m in measured.items()}
    return {
        part: {
            name: m.logits[rows[part]] if name == DENSE else svm[part].scores(m.descriptors[rows[part]])
            for name in scorers
        }
        for part, m in measured.items()
    }


def judged(part: str, photos: int, classes: int) -> slice:
    """Return which photos of a split are scored: every second, third, … of very many training photos, else all."""
    return slice(None, None, -(-photos * classes // _MAX_JUDGED) if part == "train" else 1)


def measure(
    draft: Manifest, splits: Splits, scores: dict[str, dict[str, Floats]], labels: dict[str, np.ndarray]
) -> tuple[Manifest, dict[str, Any]]:
    """Calibrate and choose the scorer on validation photos, then measure each scorer on every split.

    `scores` is [N, classes] by split and scorer, as score() gives them; `labels` [N] by split. Temperatures that the
    draft holds were found on photos that were new to the network; they stay, and so does its default scorer.
    """
    known = draft.temperatures
    temperatures = {
        name: known[name] if name in known else fit_temperature(values, labels["val"])
        for name, values in scores["val"].items()
    }
    metrics: dict[str, Any] = {
        part: {
            name: evaluate(
                values,
                labels[part][judged(part, len(labels[part]), len(splits.classes))],
                splits.classes,
                temperatures[name],
            )
            for name, values in scores[part].items()
        }
        for part in ("test", "val", "train")
    }
    for figures in (metrics["test"], metrics["val"], metrics["train"]):
        # Photos are few for all scorers or for none: they stand in one table.
        few = any(m["few_photos"] for m in figures.values())
        figures.update({name: m | {"few_photos": few} for name, m in figures.items()})
    # Where both are equally good it is the first, the dense head: it costs nothing.
    best = max(metrics["val"], key=lambda name: metrics["val"][name]["accuracy"])
    default = draft.default_scorer if known else best
    if len(scores["val"]) > 1:
        metrics["comparison"] = {p: compare(scores[p][DENSE], scores[p][SVM], labels[p]) for p in ("test", "val")}
    metrics["test_against_validation"] = {
        name: against_validation(figures, metrics["val"][name]) for name, figures in metrics["test"].items()
    }
    metrics |= {"default_scorer": default, "goldens": min(_GOLDENS, len(splits.val))}
    return replace(draft, default_scorer=default, temperatures=temperatures), metrics


def publish_bundle(
    folder: Path,
    data: Path,
    files: dict[str, bytes],
    report_data: ReportData,
    exported: ExportedModel,
    fitted: FittedSvm,
) -> Result:
    """Add the report on the photos below `data`, replay the goldens, and publish below `folder`.

    Raises BundleError where a golden photo gets another answer, DiskError where the disk refuses; nothing is published
    then.
    """
    manifest = report_data.manifest
    predictions = predictions_csv(report_data.splits, data, report_data.scores, manifest.temperatures)
    files = files | report_files(report_data) | {"report/predictions.csv": predictions}
    # From their bytes, as the service will read them, and before anything can be served.
    goldens.replay(goldens.Goldens.from_bytes(files[GOLDEN_NAME]), manifest, exported.run, fitted.scores)
    with writing(folder):
        return Result(writer.publish(folder, manifest, files), report_data.metrics)


def make_goldens(
    manifest: Manifest, photos: tuple[Photo, ...], measured: SplitOutputs, exported: ExportedModel, fitted: FittedSvm
) -> goldens.Goldens:
    """Choose validation photos that are clear cases, and record the answers of the exported model and the SVM."""
    # Of very many scores, those of every second, third, … photo are enough to choose from.
    some = np.arange(0, len(photos), -(-len(photos) * len(manifest.classes) // _MAX_CHOSEN_FROM))
    clear = measured.logits[some] if DENSE in manifest.scorers else fitted.scores(measured.descriptors[some])
    steady = steady_rows(measured.descriptors[some], fitted)
    rows = some[steady[goldens.choose(clear[steady], measured.labels[some[steady]].tolist(), _GOLDENS)]]
    images = tuple(as_served(photos[row].read(), manifest.preprocess) for row in rows)
    crops = np.stack([crop_encoded(image, manifest.preprocess) for image in images])
    logits, descriptor = exported.run(crops)
    return goldens.Goldens(images, crops, logits, descriptor, fitted.scores(descriptor))


def steady_rows(descriptors: Floats, fitted: FittedSvm) -> NDArray[np.intp]:
    """Return the rows whose SVM scores move no further than their descriptors do (all, where there are none).

    An RBF SVM counts votes between pairs of classes: where two classes tie, a rounding difference on another device
    moves a whole vote, and a golden photo would be refused without any fault.
    """
    random, moved, largest = np.random.default_rng(0), np.zeros(len(descriptors)), 0.0
    for rows in pieces(len(descriptors), max(len(fitted.pipeline.classes_), descriptors.shape[1])):
        still = descriptors[rows]
        scores = fitted.scores(still)
        largest = max(largest, float(np.abs(scores).max()))
        for _ in range(_SHAKES):
            noise = random.normal(size=still.shape) * _DEVICE_NOISE * np.abs(still).max(axis=1, keepdims=True)
            shaken = fitted.scores((still + noise).astype(np.float32))
            moved[rows] = np.maximum(moved[rows], np.abs(shaken - scores).max(axis=1))
    steady = np.flatnonzero(moved <= _MAX_MOVED * largest)
    return steady if len(steady) else np.arange(len(descriptors))


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that decide the numbers, as far as they are installed."""
    installed = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in (*_LIBRARIES, "penult") if name in installed}
