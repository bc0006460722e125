"""From descriptors to a published bundle: calibrate, measure, choose the default scorer, make goldens, publish.

`penult train`, `svm` and `quantize` share this module, so it must not import PyTorch, which takes seconds.
"""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle import goldens, writer
from penult.bundle.baseline import Baseline
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import (
    BASELINE_NAME,
    DENSE,
    GOLDEN_NAME,
    MODEL_NAME,
    SCORERS,
    SVM,
    SVM_NAME,
    FileEntry,
    Manifest,
)
from penult.bundle.naming import model_name
from penult.bundle.preprocess import Pixels, crop_encoded
from penult.bundle.scores import Floats, pieces
from penult.console import say
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.loader import as_served
from penult.export.data.split_folders import CERTIFY
from penult.export.data.splitting import Photo
from penult.export.disk import writing
from penult.export.evaluation import drift_baseline
from penult.export.evaluation.abstaining_report import Wanted
from penult.export.evaluation.choice import Choice
from penult.export.evaluation.copies_across import Across, as_metrics, find_across, notes
from penult.export.evaluation.metrics import against_validation, compare, evaluate, fit_temperature
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.evaluation.svm import FittedSvm, fit_again
from penult.export.jobs.abstaining import certified
from penult.export.jobs.class_maps import proved
from penult.export.jobs.report_maps import photo_maps
from penult.export.onnx.runtime import ExportedModel
from penult.export.report.report import predictions_csv, report_files
from penult.export.report.report_data import ReportData, TrainingSummary, Validation

Crops = Callable[[Sequence[Photo]], Pixels]

HISTORY_NAME = "history.csv"
GOLDENS = 8
# Relative to the largest value. TF32 on a GPU keeps ten bits: the descriptor moves by about a thousandth.
_DEVICE_NOISE = 1e-3
_MAX_MOVED = 0.05
_NOISE_DRAWS = 4
# At most so many scores of training photos are computed (400 MB); validation and test photos are all scored.
_MAX_SCORED = 100_000_000
_MAX_CHOSEN_FROM = 10_000_000
_LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "scikit-learn", "numpy", "pillow")


@dataclass(frozen=True)
class Result:
    """What a run ends with: the published folder and the contents of metrics.json."""

    folder: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A network and its SVM, to be measured and published.

    Attributes:
        draft: The manifest without what measuring adds.
        splits: The photos.
        exported: The ONNX model.
        outputs: Its outputs by split.
        svm: The SVM, fitted on the training photos alone.
        choice: Why which scorer is the default; None if there is one scorer, or if the draft has a default.
        metrics: Further entries of metrics.json.
        files: Further files of the bundle: history.csv, if there is one.
        wanted: The thresholds to certify on the photos set aside; None for none.
    """

    draft: Manifest
    splits: Splits
    exported: ExportedModel
    outputs: Mapping[str, SplitOutputs]
    svm: FittedSvm
    choice: Choice | None
    metrics: dict[str, Any]
    files: dict[str, bytes]
    wanted: Wanted | None = None


def refit_on_all(chosen: FittedSvm, measured: Mapping[str, SplitOutputs]) -> FittedSvm:
    """Fit the chosen SVM again on training and validation photos, so that no label is left unused.

    What validation photos decide (temperatures, gates, often the scorer) is decided before, without the final SVM.
    """
    parts = [measured[part] for part in ("train", "val")]
    descriptors, labels = (np.concatenate([getattr(m, name) for m in parts]) for name in ("descriptors", "labels"))
    return fit_again(chosen, descriptors, labels)


def score(
    measured: Mapping[str, SplitOutputs], scorers: Sequence[str], chosen: FittedSvm, final: FittedSvm
) -> dict[str, dict[str, Floats]]:
    """Return scores [N, classes] by split and scorer.

    Args:
        measured: The network's outputs by split.
        scorers: The scorers of the bundle.
        chosen: The SVM fitted on the training photos alone; it scores training and validation photos.
        final: The SVM of the bundle; it scores the test photos and those that certify thresholds.
    """
    svm = {"train": chosen, "val": chosen, "test": final, CERTIFY: final}
    rows = {part: scored_rows(part, len(m.labels), len(chosen.pipeline.classes_)) for part, m in measured.items()}
    return {
        part: {
            name: m.logits[rows[part]] if name == DENSE else svm[part].scores(m.descriptors[rows[part]])
            for name in scorers
        }
        for part, m in measured.items()
    }


def scored_rows(part: str, photos: int, classes: int) -> slice:
    """Return the rows of a split that are scored: every nth of very many training photos, else all."""
    return slice(None, None, -(-photos * classes // _MAX_SCORED) if part == "train" else 1)


def measure(
    draft: Manifest,
    splits: Splits,
    scores: dict[str, dict[str, Floats]],
    labels: dict[str, np.ndarray],
    choice: Choice | None = None,
) -> tuple[Manifest, dict[str, Any]]:
    """Calibrate the scorers on validation photos, then measure every split.

    Args:
        draft: The manifest. If it has temperatures, they and its default scorer are kept.
        splits: The photos.
        scores: [N, classes] by split and scorer, as score() returns them.
        labels: [N] by split.
        choice: The choice of the default scorer; None keeps the one of the draft, or takes the only scorer.

    Returns:
        The manifest with temperatures and default scorer, and the contents of metrics.json so far.
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
                labels[part][scored_rows(part, len(labels[part]), len(splits.classes))],
                splits.classes,
                temperatures[name],
            )
            for name, values in scores[part].items()
        }
        for part in ("test", "val", "train")
    }
    for figures in (metrics["test"], metrics["val"], metrics["train"]):
        # All scorers or none have few photos: they share a table, which shows intervals or shares.
        few = any(m["few_photos"] for m in figures.values())
        figures.update({name: m | {"few_photos": few} for name, m in figures.items()})
    default = draft.default_scorer
    if not known:
        default = choice.scorer if choice else next(iter(metrics["val"]))
        metrics |= {"choice": choice.as_json()} if choice else {}
    if len(scores["val"]) > 1:
        metrics["comparison"] = {p: compare(scores[p][DENSE], scores[p][SVM], labels[p]) for p in ("test", "val")}
    metrics["test_against_validation"] = {
        name: against_validation(figures, metrics["val"][name]) for name, figures in metrics["test"].items()
    }
    metrics |= {"default_scorer": default, "goldens": min(GOLDENS, len(splits.val))}
    return replace(draft, default_scorer=default, temperatures=temperatures), metrics


def _measured(candidate: Candidate, scores: dict[str, dict[str, Floats]]) -> tuple[Manifest, dict[str, Any]]:
    labels = {part: m.labels for part, m in candidate.outputs.items()}
    return measure(candidate.draft, candidate.splits, scores, labels, candidate.choice)


def publish_bundle(
    folder: Path,
    candidate: Candidate,
    crops: Crops | None = None,
    settings: TrainSettings | None = None,
    learning: TrainingSummary | None = None,
    renew: Callable[[FittedSvm], Goldens] | None = None,
) -> Result:
    """Measure a candidate, replay its goldens, and publish it as the next version of a model.

    Args:
        folder: The model's folder, models/NAME.
        candidate: The network and its SVM.
        crops: Returns photos as uint8 [n, size, size, 3] for the report; None shows none.
        settings: The training run; None if only the SVM is new.
        learning: The training for the report; None if only the SVM is new.
        renew: Makes the goldens of the final SVM; None chooses validation photos.

    Raises:
        BundleError: A golden photo gets another answer.
        DiskError: The bundle cannot be written.
    """
    splits, outputs, chosen, exported = candidate.splits, candidate.outputs, candidate.svm, candidate.exported
    fitted = refit_on_all(chosen, outputs)
    scores = score(outputs, candidate.draft.stated_scorers or SCORERS, chosen, fitted)
    manifest, metrics = _measured(candidate, scores)
    manifest, baseline = _with_points(candidate, manifest, scores, metrics)
    splits, across = _count_near_copies(splits, outputs, scores["test"], metrics)
    metrics |= {"svm": fitted.as_json(), "notes": list(splits.notes)}
    metrics |= {"novelty": drift_baseline.as_metrics(baseline, outputs), **candidate.metrics}
    golden = renew(fitted) if renew else make_goldens(manifest, splits.val, outputs["val"], exported, fitted)
    manifest, head_file = proved(manifest, exported, golden.crops, fitted)
    files = (
        candidate.files
        | head_file
        | {
            MODEL_NAME: exported.onnx,
            SVM_NAME: fitted.to_bytes(),
            GOLDEN_NAME: golden.to_bytes(),
            BASELINE_NAME: baseline.to_bytes(),
            "metrics.json": (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode(),
        }
    )
    manifest = replace(manifest, files={name: FileEntry.of(content) for name, content in files.items()})
    say("drawing the report")
    report_data = ReportData(
        name=model_name(folder), manifest=manifest, splits=splits, metrics=metrics, scores=scores["test"],
        labels=outputs["test"].labels, descriptors=outputs["test"].descriptors, settings=settings, learning=learning,
        validation=Validation(scores["val"], outputs["val"].labels), crops=crops, near_copies=across,
        maps=photo_maps(manifest, exported, fitted, files),
    )  # fmt: skip
    files |= report_files(report_data)
    files["report/predictions.csv"] = predictions_csv(splits, scores["test"], manifest.temperatures)
    # From their bytes, as the service will read them.
    goldens.replay(Goldens.from_bytes(files[GOLDEN_NAME]), manifest, exported.run, fitted.scores)
    with writing(folder):
        return Result(writer.publish(folder, manifest, files), metrics)


def _with_points(
    candidate: Candidate, manifest: Manifest, scores: dict[str, dict[str, Floats]], metrics: dict[str, Any]
) -> tuple[Manifest, Baseline]:
    """Return the manifest with the wanted operating points, and the baseline; add the points to the metrics."""
    outputs, seed = candidate.outputs, candidate.svm.seed
    baseline = drift_baseline.fit(manifest, outputs, scores["val"], seed)
    if candidate.wanted is None:
        return manifest, baseline
    points, metrics["abstaining"] = certified(
        candidate.wanted, manifest, candidate.splits, outputs, scores, baseline, seed
    )
    return replace(manifest, operating_points=points), baseline


def _count_near_copies(
    splits: Splits, outputs: Mapping[str, SplitOutputs], scores: Mapping[str, Floats], metrics: dict[str, Any]
) -> tuple[Splits, Sequence[Across]]:
    """Add near-copies across splits to the metrics; return the splits with notes on them, and the near-copies."""
    across = find_across(splits, outputs)
    if across is None:
        return splits, ()
    metrics["near_copies"] = as_metrics(across, splits, scores, outputs["test"].labels)
    lines = notes(metrics, metrics["default_scorer"])
    for line in lines:
        say(f"note: {line}")
    return replace(splits, notes=(*splits.notes, *lines)), across


def make_goldens(
    manifest: Manifest, photos: tuple[Photo, ...], measured: SplitOutputs, exported: ExportedModel, fitted: FittedSvm
) -> Goldens:
    """Choose validation photos with clear answers, and record the outputs of the exported model and the SVM."""
    # If there are very many scores, those of every nth photo are enough to choose from.
    some = np.arange(0, len(photos), -(-len(photos) * len(manifest.classes) // _MAX_CHOSEN_FROM))
    clear = measured.logits[some] if DENSE in manifest.scorers else fitted.scores(measured.descriptors[some])
    stable = stable_rows(measured.descriptors[some], fitted)
    rows = some[stable[goldens.choose(clear[stable], measured.labels[some[stable]].tolist(), GOLDENS)]]
    images = tuple(as_served(photos[row].read(), manifest.preprocess) for row in rows)
    crops = np.stack([crop_encoded(image, manifest.preprocess) for image in images])
    logits, descriptor = exported.run(crops)
    return Goldens(images, crops, logits, descriptor, fitted.scores(descriptor))


def stable_rows(descriptors: Floats, fitted: FittedSvm) -> NDArray[np.intp]:
    """Return the rows whose SVM scores barely change when noise is added to their descriptors; all if none are stable.

    An RBF SVM counts votes between pairs of classes. If two classes tie, a rounding difference on another device moves
    a whole vote, and a golden photo would fail although nothing is wrong.
    """
    random, moved, largest = np.random.default_rng(0), np.zeros(len(descriptors)), 0.0
    for rows in pieces(len(descriptors), max(len(fitted.pipeline.classes_), descriptors.shape[1])):
        given = descriptors[rows]
        scores = fitted.scores(given)
        largest = max(largest, float(np.abs(scores).max()))
        for _ in range(_NOISE_DRAWS):
            noise = random.normal(size=given.shape) * _DEVICE_NOISE * np.abs(given).max(axis=1, keepdims=True)
            noisy = fitted.scores((given + noise).astype(np.float32))
            moved[rows] = np.maximum(moved[rows], np.abs(noisy - scores).max(axis=1))
    stable = np.flatnonzero(moved <= _MAX_MOVED * largest)
    return stable if len(stable) else np.arange(len(descriptors))


def libraries() -> dict[str, str]:
    """Return the versions of the installed libraries that numbers depend on."""
    installed = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in (*_LIBRARIES, "penult") if name in installed}
