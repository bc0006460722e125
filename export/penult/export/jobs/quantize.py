"""`penult quantize`: a bundle's network in int8 or float16, published as its next version behind an accuracy gate.

That is another network: its descriptors are measured anew, and SVM, temperatures, default scorer, goldens and report
are made of them. So that only the precision decides the comparison, the float network's SVM is fitted again in the same
way on the same photos. Needs no PyTorch.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from penult.bundle.manifest import DENSE, FLOAT, INT8, SCORERS, SVM, Manifest
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.scores import Floats
from penult.console import say
from penult.export.config.quantize import QuantizeSettings, check_precision
from penult.export.config.train import BALANCED, SVM_KERNELS, TrainSettings
from penult.export.data.dataset import Photo, Splits
from penult.export.data.loader import Batch, Cache, PhotoReader
from penult.export.errors import QuantizeError
from penult.export.evaluation import svm
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.finished import finished_int8
from penult.export.jobs.packaging import Result
from penult.export.jobs.refit import Trained, draft, publish_next, seed_of, splits_as_trained
from penult.export.onnx.float16 import to_half
from penult.export.onnx.int8 import METHOD, to_int8
from penult.export.onnx.runtime import ExportedModel

# More photos widen the ranges, fewer leave values of unseen ones outside; a few hundred are usual.
CALIBRATION_PHOTOS = 256
_BATCH = 32


def quantize(settings: QuantizeSettings) -> Result:
    """Publish a bundle in lower precision, or raise PenultError with what to do and nothing published."""
    bundle = read_bundle(settings.model, settings.version)
    check_precision(bundle.manifest, bundle.name, bundle.version, settings.to)
    trained = Trained.of(bundle.manifest)
    splits, seed = splits_as_trained(settings, bundle, trained), seed_of(settings, trained)
    reader = PhotoReader(bundle.manifest.preprocess, Cache(0), _BATCH)
    onnx, method = _to_int8(bundle, splits, seed, reader) if settings.to == INT8 else (to_half(bundle.onnx), {})
    models = ExportedModel(bundle.onnx, bundle.manifest), ExportedModel(onnx, bundle.manifest)
    # Both side by side: each photo is decoded once.
    measured = {part: _run(models, reader.crops(getattr(splits, part), f"describing {part} photos, both networks"))
                for part in ("train", "val")}  # fmt: skip
    kernel, class_weights = _svm_options(bundle.manifest, trained)
    weight = None if class_weights == "none" else class_weights
    fitted = [svm.fit(train.descriptors, train.labels, seed, kernel, weight) for train in measured["train"]]
    record = {
        "svm": {"kernel": fitted[1].kernel, "class_weights": class_weights, "seed": seed,
                "data_sha256": splits.sha256, "photos": splits.counts()},
        "precision": settings.to,
        "calibration": method | {"float_version": bundle.version},
    }  # fmt: skip
    manifest = draft(bundle, splits, trained, record)
    (before, after), (svm_before, svm_after) = measured["val"], fitted
    loss = compare(before, after, svm_before, svm_after, manifest.stated_scorers or SCORERS, settings.to)
    _gate(loss, settings, bundle)
    described = {part: of_both[1] for part, of_both in measured.items()}
    described |= {"test": _run(models[1:], reader.crops(splits.test, "describing test photos"))[0]}
    told = {settings.to: {"float_version": bundle.version, "max_loss": settings.max_loss, **loss}}
    return publish_next(settings, bundle, manifest, splits, models[1], onnx, described, fitted[1], told)


def _to_int8(bundle: Bundle, splits: Splits, seed: int, reader: PhotoReader) -> tuple[bytes, dict[str, Any]]:
    """Return the int8 model, and how its ranges were found."""
    chosen = calibration_photos(splits, seed)
    ranging = reader.crops(chosen, "looking for the ranges of values")
    onnx = to_int8(bundle.onnx, bundle.manifest, (pixels for pixels, _ in ranging))
    return onnx, METHOD | {"photos": len(chosen)}


def after_training(settings: TrainSettings, float_version: int) -> Result:
    """Publish the int8 version of what `penult train` has published; raise as quantize() does.

    With --resume it is the one that there is already, if there is one.
    """
    if settings.resume and (before := finished_int8(settings.out, float_version)):
        say(f"finished already: {before.folder}")
        return before
    return quantize(
        QuantizeSettings(
            settings.out, settings.data, float_version, val=settings.val, test=settings.test, seed=settings.seed,
            report_photos=settings.report_photos, max_loss=settings.max_loss,
        )
    )  # fmt: skip


def calibration_photos(splits: Splits, seed: int, most: int = CALIBRATION_PHOTOS) -> list[Photo]:
    """Return up to `most` training photos, of every class alike as far as it can; contents and `seed` decide.

    Photos that stand in the validation or test photos too, byte for byte, are left out: those must decide nothing.
    """
    held_out = {photo.sha256 for photo in (*splits.val, *splits.test)}
    by_label = defaultdict(list)
    for photo in sorted(splits.train, key=lambda photo: (photo.sha256, photo.path)):
        if photo.sha256 not in held_out:
            by_label[photo.label].append(photo)
    for label, photos in by_label.items():
        random.Random(f"calibration {seed} {label}").shuffle(photos)
    ranked = [(rank, photo.label, photo) for photos in by_label.values() for rank, photo in enumerate(photos)]
    return [photo for *_, photo in sorted(ranked, key=lambda row: row[:2])[:most]]


def compare(
    before: SplitOutputs,
    after: SplitOutputs,
    svm_before: svm.FittedSvm,
    svm_after: svm.FittedSvm,
    scorers: Sequence[str],
    kind: str = INT8,
) -> dict[str, Any]:
    """Return what the precision `kind` costs on the same photos in the same order, as plain values for metrics.json.

    By scorer: accuracy of FLOAT and `kind`, the share of photos that both name alike, and the loss in percentage points
    (negative where `kind` is better). `loss` is that of the default scorers, each network with its own: what a client
    notices that names no scorer. `descriptor_cosine_min` is of the photo whose descriptor changed most.
    """
    told = {}
    for name in scorers:
        named = [_scores(m, fitted, name).argmax(axis=1) for m, fitted in ((before, svm_before), (after, svm_after))]
        right = [int((labels == before.labels).sum()) for labels in named]
        told[name] = {
            FLOAT: right[0] / len(before.labels),
            kind: right[1] / len(before.labels),
            "loss": 100 * (right[0] - right[1]) / len(before.labels),
            "agreement": float((named[0] == named[1]).mean()),
        }
    # As in bundling.measure(): the first of equals.
    default = {of: max(told, key=lambda name: told[name][of]) for of in (FLOAT, kind)}
    lost = 100 * (told[default[FLOAT]][FLOAT] - told[default[kind]][kind])
    return {"photos": len(before.labels), "loss": round(lost, 9), "default_scorers": default, "scorers": told,
            "descriptor_cosine_min": _least_cosine(before.descriptors, after.descriptors)}  # fmt: skip


def _gate(loss: dict[str, Any], settings: QuantizeSettings, bundle: Bundle) -> None:
    """Raise QuantizeError where more than --max-loss percentage points are lost, exactly: half a photo does not count.

    With fewer than 100 / max_loss validation photos, not one of them may be lost.
    """
    kind, max_loss = settings.to, settings.max_loss
    photos = loss["photos"]
    before, after = (round(photos * loss["scorers"][loss["default_scorers"][of]][of]) for of in (FLOAT, kind))
    figures = f"{kind} names {after} of {photos} validation photos right, float {before}"
    if loss["loss"] > max_loss:
        raise QuantizeError(
            f"{kind.upper()}_LOSS",
            f"{figures}: a loss of {loss['loss']:.2f} points, more than --max-loss {max_loss:g}; no {kind} version is "
            f"published: serve version {bundle.version} as it is, or allow more",
        )
    one = f"; one photo is {100 / photos:.1f}, too few photos to show less" if 100 / photos > max_loss else ""
    say(f"{figures}: a loss of {loss['loss']:.2f} points, {max_loss:g} are allowed{one}")


def _svm_options(manifest: Manifest, trained: Trained) -> tuple[str, str]:
    """Return kernel and class weights as they were asked for when the bundle's SVM was made."""
    refitted = manifest.training.get(SVM)
    record = refitted if isinstance(refitted, dict) else {"kernel": trained.settings.get("svm"), **trained.settings}
    kernel, weights = str(record.get("kernel")), str(record.get("class_weights"))
    return (kernel if kernel in SVM_KERNELS else "auto"), (weights if weights == BALANCED else "none")


def _run(models: Sequence[ExportedModel], batches: Iterable[Batch]) -> list[SplitOutputs]:
    """Return the outputs of each model on the same photos."""
    rows: list[list[tuple[Floats, Floats, np.ndarray]]] = [[] for _ in models]
    for pixels, labels in batches:
        for model, of_model in zip(models, rows, strict=True):
            of_model.append((*model.run(pixels), labels))
    return [SplitOutputs(*map(np.concatenate, zip(*of_model, strict=True))) for of_model in rows]


def _scores(measured: SplitOutputs, fitted: svm.FittedSvm, scorer: str) -> Floats:
    return measured.logits if scorer == DENSE else fitted.scores(measured.descriptors)


def _least_cosine(before: Floats, after: Floats) -> float:
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float(((before * after).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
