"""`penult quantize`: convert a bundle's network to int8 or float16 and publish it if it loses little accuracy.

The result is another network, so its SVM, temperatures, default scorer, goldens and report are made from its own
descriptors. The float network's SVM is fitted again on the same photos, so that only the precision differs. This module
must not import PyTorch.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from penult.bundle.manifest import DENSE, FLOAT, INT8, SCORERS, SVM, Manifest
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.scores import Floats
from penult.console import say
from penult.export.config.quantize import QuantizeSettings, check_precision, check_several
from penult.export.config.train import BALANCED, SVM_KERNELS, TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.loader import Batch, Cache, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.data.thumbnails import SIDE, thumbnails
from penult.export.errors import QuantizeError
from penult.export.evaluation import svm
from penult.export.evaluation.choice import Choice, fit_and_choose
from penult.export.evaluation.folds import groups_of
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.abstaining import wanted_by
from penult.export.jobs.finished import finished_int8
from penult.export.jobs.near_copy_groups import recorded_groups
from penult.export.jobs.packaging import Candidate, Result, publish_bundle
from penult.export.jobs.refit import (
    BATCH,
    TrainingRecord,
    draft,
    grouping_of,
    history_of,
    plan_of,
    seed_of,
    splits_as_trained,
    why_no_dense,
)
from penult.export.onnx.class_maps import with_features
from penult.export.onnx.float16 import to_float16
from penult.export.onnx.int8 import METHOD, to_int8
from penult.export.onnx.runtime import ExportedModel

# With more photos the ranges get wider; with fewer, values of new photos lie outside. A few hundred are usual.
CALIBRATION_PHOTOS = 256


def quantize(settings: QuantizeSettings) -> Result:
    """Publish a bundle's network in lower precision; raise PenultError if it loses more accuracy than allowed."""
    bundle = read_bundle(settings.model, settings.version)
    check_precision(bundle.manifest, bundle.name, bundle.version, settings.to)
    trained = TrainingRecord.of(bundle.manifest)
    splits, seed = splits_as_trained(settings, bundle, trained), seed_of(settings, trained)
    check_several(splits.classes)
    reader = PhotoReader(bundle.manifest.preprocess, Cache(0), BATCH)
    # The result is another network anyway, so it can have class maps, even if the bundle is older than those.
    given = with_features(bundle.onnx, bundle.manifest)
    if settings.to == INT8:
        chosen = calibration_photos(splits, seed)
        batches = reader.crops(chosen, "measuring the ranges of values")
        onnx = to_int8(given, bundle.manifest, (pixels for pixels, _ in batches))
        calibration = METHOD | {"photos": len(chosen)}
    else:
        onnx, calibration = to_float16(given), {}
    models = ExportedModel(bundle.onnx, bundle.manifest), ExportedModel(onnx, bundle.manifest)
    # Both side by side, so that each photo is decoded once.
    train, val = (
        _run(models, reader.crops(getattr(splits, part), f"describing {part} photos, both networks"))
        for part in ("train", "val")
    )
    kernel, class_weights = _svm_options(bundle.manifest, trained)
    weight = None if class_weights == "none" else class_weights
    plan, groups = (
        plan_of(bundle, trained, splits.sha256, kernel, weight, seed),
        groups_of((*splits.train, *splits.val)),
    )
    has_dense = not why_no_dense(splits, trained)
    decided = [
        fit_and_choose(plan, {"train": of_train, "val": of_val}, groups, has_dense)
        for of_train, of_val in zip(train, val, strict=True)
    ]
    fitted, choices = zip(*decided, strict=True)
    svm_entry = {
        "kernel": fitted[1].kernel,
        "class_weights": class_weights,
        "seed": seed,
        "data_sha256": splits.sha256,
        "photos": splits.counts(),
    }
    record = {
        "svm": svm_entry,
        "precision": settings.to,
        "calibration": calibration | {"float_version": bundle.version},
    }
    manifest = replace(draft(bundle, splits, trained, record), class_maps=None)
    scorers = manifest.stated_scorers or SCORERS
    loss = compare(val[0], val[1], fitted[0], fitted[1], scorers, settings.to, choices)
    _gate(loss, settings, bundle)
    outputs = {"train": train[1], "val": val[1]}
    for part in splits.parts[2:]:
        (outputs[part],) = _run(models[1:], reader.crops(getattr(splits, part), f"describing {part} photos"))
    metrics: dict[str, Any] = {settings.to: {"float_version": bundle.version, "max_loss": settings.max_loss, **loss}}
    metrics |= recorded_groups(splits, grouping_of(settings, trained))
    history = history_of(settings, bundle)
    wanted = wanted_by(settings, bundle.manifest)
    candidate = Candidate(manifest, splits, models[1], outputs, fitted[1], choices[1], metrics, history, wanted)
    return publish_bundle(settings.model, candidate, reader.stack if settings.report_photos else None)


def after_training(settings: TrainSettings, float_version: int) -> Result:
    """Publish the int8 version of a version of `penult train`; raise as quantize() does.

    With --resume, return the int8 version that exists already, if there is one.
    """
    if settings.resume and (before := finished_int8(settings.out, float_version)):
        say(f"already finished: {before.folder}")
        return before
    return quantize(
        QuantizeSettings(
            settings.out,
            settings.data,
            float_version,
            val=settings.val,
            test=settings.test,
            seed=settings.seed,
            images=settings.images,
            skip_missing=settings.skip_missing,
            exclude=settings.exclude,
            group_by=settings.group_by,
            report_photos=settings.report_photos,
            max_loss=settings.max_loss,
        )
    )


def calibration_photos(splits: Splits, seed: int, count: int = CALIBRATION_PHOTOS) -> list[Photo]:
    """Return up to `count` training photos, equally many of each class if possible, drawn by contents and `seed`.

    Copies of validation or test photos are left out, because those must decide nothing.
    """
    held_out = {photo.sha256 for photo in (*splits.val, *splits.test)}
    by_label = defaultdict(list)
    for photo in sorted(splits.train, key=lambda photo: (photo.sha256, photo.path)):
        if photo.sha256 not in held_out:
            by_label[photo.label].append(photo)
    for label, photos in by_label.items():
        random.Random(f"calibration {seed} {label}").shuffle(photos)
    ranked = [(rank, photo.label, photo) for photos in by_label.values() for rank, photo in enumerate(photos)]
    return [photo for *_, photo in sorted(ranked, key=lambda row: row[:2])[:count]]


def compare(
    before: SplitOutputs,
    after: SplitOutputs,
    svm_before: svm.FittedSvm,
    svm_after: svm.FittedSvm,
    scorers: Sequence[str],
    kind: str = INT8,
    choices: Sequence[Choice | None] = (None, None),
) -> dict[str, Any]:
    """Return what the precision `kind` costs on the same photos in the same order, as plain values for metrics.json.

    Returns:
        By scorer, the accuracy of FLOAT and `kind`, the share of photos with the same answer, and the loss in
        percentage points (negative if `kind` is better). `loss` is the one of the default scorers, each network with
        its own. `descriptor_cosine_min` belongs to the photo whose descriptor changed most.
    """
    measured = {}
    for name in scorers:
        scores = [
            m.logits if name == DENSE else fitted.scores(m.descriptors)
            for m, fitted in ((before, svm_before), (after, svm_after))
        ]
        named = [values.argmax(axis=1) for values in scores]
        right = [int((labels == before.labels).sum()) for labels in named]
        measured[name] = {
            FLOAT: right[0] / len(before.labels),
            kind: right[1] / len(before.labels),
            "loss": 100 * (right[0] - right[1]) / len(before.labels),
            "agreement": float((named[0] == named[1]).mean()),
        }
    names = [choice.scorer if choice else scorers[0] for choice in choices]
    default = dict(zip((FLOAT, kind), names, strict=True))
    lost = 100 * (measured[default[FLOAT]][FLOAT] - measured[default[kind]][kind])
    return {
        "photos": len(before.labels),
        "loss": round(lost, 9),
        "default_scorers": default,
        "scorers": measured,
        "descriptor_cosine_min": _min_cosine(before.descriptors, after.descriptors),
    }


def _gate(loss: dict[str, Any], settings: QuantizeSettings, bundle: Bundle) -> None:
    """Raise QuantizeError if more than --max-loss percentage points are lost.

    With fewer than 100 / max_loss validation photos, none of them may be lost.
    """
    kind, max_loss = settings.to, settings.max_loss
    photos = loss["photos"]
    before, after = (round(photos * loss["scorers"][loss["default_scorers"][of]][of]) for of in (FLOAT, kind))
    figures = f"{kind} classifies {after} of {photos} validation photos correctly, float {before}"
    if loss["loss"] > max_loss:
        raise QuantizeError(
            f"{kind.upper()}_LOSS",
            f"{figures}: it loses {loss['loss']:.2f} points, more than --max-loss {max_loss:g}; no {kind} version is "
            f"published; serve version {bundle.version}, or raise --max-loss",
        )
    one = f"; one photo is {100 / photos:.1f} points" if 100 / photos > max_loss else ""
    say(f"{figures}: it loses {loss['loss']:.2f} points, at most {max_loss:g} are allowed{one}")


def _svm_options(manifest: Manifest, trained: TrainingRecord) -> tuple[str, str]:
    """Return kernel and class weights that the bundle's SVM was requested with."""
    refitted = manifest.training.get(SVM)
    record = refitted if isinstance(refitted, dict) else {"kernel": trained.settings.get("svm"), **trained.settings}
    kernel, weights = str(record.get("kernel")), str(record.get("class_weights"))
    return (kernel if kernel in SVM_KERNELS else "auto"), (weights if weights == BALANCED else "none")


def _run(models: Sequence[ExportedModel], batches: Iterable[Batch]) -> list[SplitOutputs]:
    """Return the outputs of each model on the same photos."""
    rows: list[list[tuple[Floats, Floats, np.ndarray]]] = [[] for _ in models]
    small = []
    for pixels, labels in batches:
        for model, of_model in zip(models, rows, strict=True):
            of_model.append((*model.run(pixels), labels))
        if pixels.shape[1] >= SIDE:
            small.append(thumbnails(pixels))
    shown = np.concatenate(small) if small else None
    columns = ([np.concatenate(column) for column in zip(*of_model, strict=True)] for of_model in rows)
    return [SplitOutputs(logits, descriptors, labels, shown) for logits, descriptors, labels in columns]


def _min_cosine(before: Floats, after: Floats) -> float:
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float(((before * after).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
