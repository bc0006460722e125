"""`penult calibrate`: certify thresholds of a model on further labelled photos, and publish them as its next version.

Network, SVM and temperatures stay as they are, so descriptors and probabilities do too. The photos must be new to the
model. This module must not import PyTorch.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from penult.bundle import writer
from penult.bundle.manifest import DENSE, SVM, FileEntry, Manifest
from penult.bundle.operating_points import percent
from penult.bundle.reader import Bundle, read_bundle, read_file
from penult.console import say
from penult.export.config.calibrate import CalibrateSettings
from penult.export.config.photos import PhotoSource
from penult.export.data.certifying import independent_rows
from penult.export.data.dataset import Splits, load_splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.disk import writing
from penult.export.errors import CalibrateError, DataError
from penult.export.evaluation.abstaining_report import Evidence, Wanted, certify_bundle
from penult.export.evaluation.outputs import SplitOutputs, run_split, unit_rows
from penult.export.jobs.abstaining import CALIBRATE
from penult.export.jobs.near_copy_groups import near_copies_as_trained
from penult.export.jobs.packaging import Result
from penult.export.onnx.runtime import ExportedModel
from penult.export.report.report import with_abstaining
from penult.folders.names import normalised
from penult.folders.walk import some
from penult.service.models.svm.scorer import load_scorer

_BATCH = 32
# The share of the photos that fixes the sequence of thresholds.
_CHOOSING = 0.2
# A descriptor this near to one of a training photo, as 1 - cosine, is the same photo's.
_SAME = 1e-5
_METRICS, _PAGE, _CARD = "metrics.json", "report/index.html", "MODEL_CARD.md"


def calibrate(settings: CalibrateSettings) -> Result:
    """Certify thresholds, and publish the next version of a model.

    Raises:
        CalibrateError: `settings.max_error` cannot be certified. Nothing is published.
        DataError: The photos cannot be used.
    """
    bundle = read_bundle(settings.model, settings.version)
    manifest, wanted = bundle.manifest, Wanted(settings.max_error, settings.per_class)
    if manifest.has_one_class:
        raise CalibrateError(
            "ONE_CLASS", f"{bundle.name} has one class, whose threshold penult svm --false-alarms sets; nothing is done"
        )
    splits, photos = _photos(settings, bundle)
    reader = PhotoReader(manifest.preprocess, Cache(0), _BATCH)
    exported = ExportedModel(bundle.onnx, manifest)
    outputs = run_split(exported, reader.crops(photos, "describing photos"))
    _refuse_known(bundle, splits, photos, outputs)
    evidence = _evidence(bundle, outputs)
    rows = np.random.default_rng([settings.seed, 11]).permutation(independent_rows(photos, (), settings.seed))
    first = max(1, round(_CHOOSING * len(rows)))
    say(
        f"{bundle.name} version {bundle.version}: {len(rows) - first} of {len(photos)} photos certify, {first} fix the "
        "sequence of thresholds"
    )
    points, entry = certify_bundle(wanted, manifest, evidence.at(rows[:first]), evidence.at(rows[first:]))
    if not any(point.is_default for point in points):
        known = ", ".join(map(percent, sorted({point.max_error for point in points}, reverse=True)))
        advice = f"; these photos certify {known}: give one of them as --max-error" if known else ""
        said = "; ".join(sentence.removesuffix(".") for sentence in entry["sentences"])
        raise CalibrateError("NOT_CERTIFIED", f"{said}{advice}; nothing is published")
    record = {
        **wanted.as_json(), "of_version": bundle.version, "data_sha256": splits.sha256, "photos": len(photos),
        "seed": settings.seed,
    }  # fmt: skip
    draft = replace(manifest, operating_points=points, training=dict(manifest.training) | {CALIBRATE: record})
    return _publish(settings, bundle, draft, entry)


def _photos(settings: CalibrateSettings, bundle: Bundle) -> tuple[Splits, tuple[Photo, ...]]:
    """Return the photos of all splits, with the model's class numbers; raise DataError."""
    grouped = near_copies_as_trained(settings.group_by, settings.model, bundle)
    splits = load_splits(PhotoSource.of(settings), settings.model, "0.15", "0.15", settings.seed, grouped)
    places = {normalised(name): place for place, name in enumerate(bundle.manifest.classes)}
    if unknown := sorted(set(splits.classes) - set(places)):
        raise DataError(
            "CLASSES",
            f"{bundle.name} does not know the classes {some(unknown)}; leave their photos out, or train again",
        )
    for note in splits.notes:
        if "set aside at random" not in note:  # here they all count
            say(f"note: {note}")
    every = (*splits.train, *splits.val, *splits.test)
    return splits, tuple(replace(photo, label=places[splits.classes[photo.label]]) for photo in every)


def _refuse_known(bundle: Bundle, splits: Splits, photos: tuple[Photo, ...], outputs: SplitOutputs) -> None:
    """Raise DataError if photos are among those that the bundle keeps descriptors of, because it learnt from them."""
    if bundle.baseline is None:
        return
    nearest = 1 - (unit_rows(outputs.descriptors) @ bundle.baseline.references.T.astype(np.float64)).max(axis=1)
    known = [splits.name(photo) for photo, distance in zip(photos, nearest, strict=True) if distance < _SAME]
    if known:
        raise DataError(
            "PHOTOS_KNOWN",
            f"{len(known)} photos are among those that {bundle.name} learnt from, and would look too easy: "
            f"{some(known)}; give photos that it has not seen, such as those of its test split",
        )


def _evidence(bundle: Bundle, outputs: SplitOutputs) -> Evidence:
    scores = {DENSE: outputs.logits} if DENSE in bundle.manifest.scorers else {}
    if bundle.svm is not None:
        # As the server computes them, which never unpickles.
        svm = load_scorer(bundle.svm, bundle.manifest.descriptor_length, len(bundle.manifest.classes))
        scores[SVM] = svm(outputs.descriptors)
    is_novel = np.zeros(len(outputs.labels), dtype=bool)
    if bundle.baseline:
        is_novel = bundle.baseline.novelty(outputs.descriptors) > bundle.baseline.threshold
    return Evidence(scores, outputs.labels, is_novel)


def _publish(settings: CalibrateSettings, bundle: Bundle, draft: Manifest, entry: dict[str, Any]) -> Result:
    """Publish the files of the bundle with other operating points; report and card show them."""
    folder = settings.model / str(bundle.version)
    files = {name: read_file(folder, bundle.manifest, name) for name in bundle.manifest.files}
    metrics = json.loads(files[_METRICS]) if _METRICS in files else {}
    metrics |= {"abstaining": entry, "default_scorer": draft.default_scorer}
    files[_METRICS] = (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode()
    if _PAGE in files and _CARD in files:
        files |= with_abstaining(files[_PAGE], files[_CARD], metrics)
    draft = replace(draft, files={name: FileEntry.of(content) for name, content in files.items()})
    with writing(settings.model):
        return Result(writer.publish(settings.model, draft, files), metrics)
