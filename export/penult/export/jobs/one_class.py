"""From descriptors of one class to a published bundle: fit the measures of novelty, measure, make goldens, publish.

`penult train` and `penult svm` share this module, so it must not import PyTorch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penult.bundle import goldens, writer
from penult.bundle.baseline import Baseline
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import (
    BASELINE_NAME,
    GOLDEN_NAME,
    MEASURES,
    MODEL_NAME,
    NEAREST,
    NOVELTY,
    SVM,
    SVM_NAME,
    FileEntry,
    Manifest,
)
from penult.bundle.naming import model_name
from penult.bundle.preprocess import crop_encoded
from penult.console import say
from penult.export.config.one_class import FALSE_ALARMS
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.loader import PhotoReader, as_served
from penult.export.data.splitting import Photo
from penult.export.disk import writing
from penult.export.evaluation import one_class
from penult.export.evaluation.one_class import Fitted
from penult.export.evaluation.one_class_text import few_photos
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.class_maps import proved
from penult.export.jobs.packaging import Result
from penult.export.onnx.runtime import ExportedModel
from penult.export.report import report_one_class
from penult.export.report.report_one_class import OneClassData

_GOLDENS = 8
# The record in the manifest's `training`.
RECORD = "one_class"


@dataclass(frozen=True)
class Candidate:
    """A network and photos of one class, to be measured and published.

    Attributes:
        draft: The manifest without files and scorer.
        splits: The photos.
        exported: The ONNX model.
        outputs: Its outputs by split.
        outliers: Photos of other things, for the report only.
        outlier_outputs: The network's outputs for them; None if there are none.
        metrics: Further entries of metrics.json.
        files: Further files of the bundle.
    """

    draft: Manifest
    splits: Splits
    exported: ExportedModel
    outputs: Mapping[str, SplitOutputs]
    outliers: tuple[Photo, ...]
    outlier_outputs: SplitOutputs | None
    metrics: dict[str, Any]
    files: dict[str, bytes]


@dataclass(frozen=True)
class Choice:
    """What is served: the measure, the share of false alarms, and the seed of folds."""

    measure: str
    false_alarms: float
    seed: int

    @classmethod
    def asked(cls, measure: str | None, false_alarms: float | None, known: object, seed: int) -> "Choice":
        """Return what is asked for, else what the record of an earlier version says, else the defaults."""
        before = known if isinstance(known, dict) else {}
        recorded, rate = before.get("novelty"), before.get("false_alarms")
        return cls(
            measure or (recorded if recorded in MEASURES else NEAREST),
            false_alarms or (rate if isinstance(rate, float) and 0 < rate < 1 else FALSE_ALARMS),
            seed,
        )

    def as_json(self) -> dict[str, object]:
        """Return the record of the manifest."""
        return {"novelty": self.measure, "false_alarms": self.false_alarms}


def publish_one_class(
    folder: Path, candidate: Candidate, choice: Choice, reader: PhotoReader | None,
    settings: TrainSettings | None = None,
) -> Result:  # fmt: skip
    """Fit both measures, measure them, and publish the bundle with the chosen one.

    Args:
        folder: The model's folder, models/NAME.
        candidate: The network and the photos.
        choice: What is served.
        reader: Reads photos for the report; None shows none.
        settings: The training run; None for `penult svm`.

    Raises:
        BundleError: A golden photo gets another answer.
        DiskError: The bundle cannot be written.
    """
    splits, outputs, exported = candidate.splits, candidate.outputs, candidate.exported
    groups = [photo.group for photo in splits.train]
    fitted = one_class.fit(outputs["train"], outputs["val"], choice.false_alarms, choice.seed, groups)
    served = fitted[choice.measure]
    others = candidate.outlier_outputs.descriptors if candidate.outlier_outputs else np.empty((0, 0), np.float32)
    metrics = one_class.figures(fitted, choice.measure, choice.false_alarms, outputs, others)
    baseline = one_class.baseline(fitted, choice.measure, outputs["val"])
    training = {**candidate.draft.training, RECORD: choice.as_json()}
    manifest = replace(
        candidate.draft, default_scorer=NOVELTY, temperatures={}, stated_scorers=(NOVELTY,), training=training
    )
    golden = make_goldens(manifest, splits.val, outputs["val"], exported, served)
    notes = list(splits.notes) + [line for line in [few_photos(metrics["novelty"])] if line]
    metrics |= {"goldens": len(golden.images), "notes": notes, **candidate.metrics}
    files = candidate.files | {
        MODEL_NAME: exported.onnx,
        GOLDEN_NAME: golden.to_bytes(),
        BASELINE_NAME: baseline.to_bytes(),
        "metrics.json": (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    if isinstance(served.measure, one_class.OneClassSvm):
        files[SVM_NAME] = served.measure.to_bytes()
    manifest, _ = proved(manifest, exported, golden.crops, None)
    manifest = replace(manifest, files={name: FileEntry.of(content) for name, content in files.items()})
    say("drawing the report")
    found = _report_data(folder, candidate, manifest, metrics, fitted, settings)
    chance = baseline.probability(found.distances["test"])
    files |= report_one_class.report_files(replace(found, probabilities=chance, crops=reader.stack if reader else None))
    _replay(files, manifest, exported, served, baseline)
    with writing(folder):
        return Result(writer.publish(folder, manifest, files), metrics)


def _report_data(
    folder: Path,
    candidate: Candidate,
    manifest: Manifest,
    metrics: dict[str, Any],
    fitted: Mapping[str, Fitted],
    settings: TrainSettings | None,
) -> OneClassData:
    """Return the contents of the report, but for probabilities and photos."""
    served, outputs = fitted[manifest.measure], candidate.outputs
    others = candidate.outlier_outputs
    by_measure = {
        name: (
            each.measure.novelty(outputs["test"].descriptors),
            each.measure.novelty(others.descriptors) if others else np.empty(0, np.float32),
        )
        for name, each in fitted.items()
    }
    return OneClassData(
        name=model_name(folder),
        manifest=manifest,
        splits=candidate.splits,
        metrics=metrics,
        distances={part: served.measure.novelty(found.descriptors) for part, found in outputs.items()},
        held_out=served.held_out,
        by_measure=by_measure,
        outliers=candidate.outliers,
        settings=settings,
    )


def _replay(
    files: Mapping[str, bytes], manifest: Manifest, exported: ExportedModel, served: Fitted, baseline: Baseline
) -> None:
    """Replay the goldens as the service will, from the files' bytes."""
    stored = Baseline.from_bytes(files[BASELINE_NAME], manifest)
    novelty = served.measure.novelty if manifest.measure == SVM else stored.novelty
    golden = Goldens.from_bytes(files[GOLDEN_NAME])
    goldens.replay(golden, manifest, exported.run, None, run_novelty=novelty)


def make_goldens(
    manifest: Manifest, photos: tuple[Photo, ...], measured: SplitOutputs, exported: ExportedModel, served: Fitted
) -> Goldens:
    """Choose validation photos that are not novel, from the nearest to the most distant, and record their outputs."""
    distances = served.measure.novelty(measured.descriptors)
    order = np.argsort(distances, kind="stable")
    ordinary = order[distances[order] <= served.limit.threshold]
    rows = ordinary if len(ordinary) else order
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_GOLDENS, len(rows))).round().astype(int))]
    images = tuple(as_served(photos[row].read(), manifest.preprocess) for row in rows)
    crops = np.stack([crop_encoded(image, manifest.preprocess) for image in images])
    logits, descriptor = exported.run(crops)
    none = np.empty((0, 0), dtype=np.float32)
    return Goldens(images, crops, logits, descriptor, none, served.measure.novelty(descriptor))


def describe_outliers(exported: ExportedModel, reader: PhotoReader, outliers: tuple[Photo, ...]) -> SplitOutputs | None:
    """Return the network's outputs for photos of other things; None if there are none."""
    if not outliers:
        return None
    return SplitOutputs(*exported.run_all(reader.crops(outliers, "describing outliers")))
