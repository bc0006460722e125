"""`penult svm`: a new SVM on a bundle's descriptors, published as the model's next version, without PyTorch.

The network stays byte for byte, so its fingerprint does too and descriptors of both versions compare. The photos may
have other classes than the network was trained on; its dense head then has nothing to say, and the SVM is the only
scorer.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penult.bundle.baseline import BASELINE_NAME
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import DENSE, GOLDEN_NAME, MODEL_NAME, SCORERS, SVM, SVM_NAME, FileEntry, Manifest
from penult.bundle.reader import Bundle, read_bundle, read_file
from penult.console import say
from penult.export.config.refit import RefitSettings, VersionSettings
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits, load_splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.evaluation import drift_baseline, svm, svm_cost
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.packaging import Result, libraries, make_goldens, measure, publish_bundle, refit_on_all, score
from penult.export.onnx.runtime import ExportedModel
from penult.export.report.report_data import ReportData, Validation
from penult.folders.names import normalised

_BATCH = 32
_FRACTION = TrainSettings.val
_HISTORY = "history.csv"
_ONLY_WHERE_SILENT = ("classes", "dense_is_silent")
# Libraries that a new SVM and its goldens depend on; the others made the network.
_USED = ("onnxruntime-gpu", "onnxruntime", "scikit-learn", "numpy", "pillow", "penult")


@dataclass(frozen=True)
class Trained:
    """What a bundle tells of its network's training: classes in the order of the logits, and how photos were split."""

    classes: tuple[str, ...]
    settings: dict[str, Any]
    data_sha256: str

    @classmethod
    def of(cls, manifest: Manifest) -> "Trained":
        """Read a manifest; fields of other types than penult writes count as absent."""
        settings, classes = manifest.training.get("settings"), manifest.training.get("classes")
        if DENSE in manifest.scorers or not isinstance(classes, list) or len(classes) != manifest.logits_length:
            classes = manifest.classes if DENSE in manifest.scorers else ()
        data = manifest.training.get("data_sha256")
        return cls(tuple(map(str, classes)), settings if isinstance(settings, dict) else {}, str(data))


def refit(settings: RefitSettings) -> Result:
    """Fit a new SVM on the photos of `settings.data` and publish it; raise PenultError with what to do."""
    bundle = read_bundle(settings.model, settings.version)
    trained = Trained.of(bundle.manifest)
    seed = seed_of(settings, trained)
    splits = splits_as_trained(settings, bundle, trained)
    labels = np.array([photo.label for photo in splits.train])
    svm_cost.check(settings.kernel, svm.counts_of(labels, bundle.manifest.descriptor_length))
    exported = ExportedModel(bundle.onnx, bundle.manifest)
    reader = PhotoReader(bundle.manifest.preprocess, Cache(0), _BATCH)
    measured = {
        part: SplitOutputs(*exported.run_all(reader.crops(getattr(splits, part), f"describing {part} photos")))
        for part in ("train", "val", "test")
    }
    train = measured["train"]
    fitted = svm.fit(train.descriptors, train.labels, seed, settings.kernel, settings.class_weight)
    chosen = {"kernel": fitted.kernel, "class_weights": settings.class_weights, "seed": seed}
    chosen |= {"data_sha256": splits.sha256, "photos": splits.counts(), "network_of_version": bundle.version}
    manifest = draft(bundle, splits, trained, {"svm": chosen})
    told = {"network_of_version": bundle.version}
    return publish_next(settings, bundle, manifest, splits, exported, bundle.onnx, measured, fitted, told)


def publish_next(
    settings: VersionSettings,
    bundle: Bundle,
    draft: Manifest,
    splits: Splits,
    exported: ExportedModel,
    onnx: bytes,
    measured: dict[str, SplitOutputs],
    chosen: svm.FittedSvm,
    told: dict[str, Any],
    renew: Callable[[svm.FittedSvm], Goldens] | None = None,
) -> Result:
    """Measure on `splits`, and write the version after `bundle`, whose network is `onnx`, loaded as `exported`.

    `measured` holds the network's outputs by split; `chosen` is the SVM fitted on the training photos; `told` is what
    metrics.json tells besides the figures; `renew` makes goldens that take the place of validation photos. Raises
    BundleError, with nothing published, where the goldens do not replay.
    """
    fitted = refit_on_all(chosen, measured)
    scores = score(measured, draft.stated_scorers or SCORERS, chosen, fitted)
    manifest, metrics = measure(draft, splits, scores, {part: m.labels for part, m in measured.items()})
    ordinary = drift_baseline.learn(manifest, measured, scores["val"], seed_of(settings, Trained.of(bundle.manifest)))
    metrics |= {"svm": fitted.as_json(), "notes": list(splits.notes), **told}
    metrics["novelty"] = drift_baseline.told(ordinary, measured)
    golden = renew(fitted) if renew else make_goldens(manifest, splits.val, measured["val"], exported, fitted)
    files = _history(settings.model / str(bundle.version), bundle.manifest) | {
        MODEL_NAME: onnx,
        SVM_NAME: fitted.to_bytes(),
        GOLDEN_NAME: golden.to_bytes(),
        BASELINE_NAME: ordinary.to_bytes(),
        "metrics.json": (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    # The report reads the manifest, so it must know which files there will be.
    listed = replace(manifest, files={name: FileEntry.of(data) for name, data in files.items()})
    test = measured["test"]
    reader = PhotoReader(manifest.preprocess, Cache(0), _BATCH)
    report_data = ReportData(
        bundle.name, listed, splits, metrics, scores["test"], test.labels, test.descriptors,
        validation=Validation(scores["val"], measured["val"].labels),
        crops=reader.stack if settings.report_photos else None,
    )  # fmt: skip
    return publish_bundle(settings.model, settings.data, files, report_data, exported, fitted)


def splits_as_trained(settings: VersionSettings, bundle: Bundle, trained: Trained) -> Splits:
    """Load the photos of `settings.data`, split as the network's were, and say what they are; raise DataError.

    Where the photos have the classes of the network or of the bundle, they are in the order of those.
    """
    asked = _split_settings(settings, trained, seed_of(settings, trained))
    splits = _in_order(load_splits(asked), trained.classes, bundle.manifest.classes)
    splits = replace(splits, notes=(*splits.notes, *_notes(splits, trained)))
    introduce(bundle, splits, why_dense_is_silent(splits, trained))
    return splits


def seed_of(settings: VersionSettings, trained: Trained) -> int:
    """Return the seed asked for, else the one that the network was trained with."""
    seed = trained.settings.get("seed") if settings.seed is None else settings.seed
    return seed if type(seed) is int and 0 <= seed < 2**32 else 0


def _split_settings(settings: VersionSettings, trained: Trained, seed: int) -> TrainSettings:
    """Return what decides the splits. Drawn as they were for training, the test photos are as new to the network."""
    val, test = (
        asked or _fraction(trained.settings.get(part))
        for part, asked in (("val", settings.val), ("test", settings.test))
    )
    return TrainSettings(settings.data, settings.model, weights="none", freeze=0, seed=seed, val=val, test=test)


def _fraction(before: object) -> str:
    """Return a recorded fraction; of a folder only its name was recorded, which says nothing here."""
    try:
        return str(before) if 0 < float(str(before)) < 1 else _FRACTION
    except ValueError:
        return _FRACTION


def _in_order(splits: Splits, *orders: tuple[str, ...]) -> Splits:
    """Return the splits with their classes in the first of the given orders that has the same classes, if one has.

    Bundles of before have names in whatever Unicode form the folders had, and keep them.
    """
    for classes in orders:
        places = {normalised(name): place for place, name in enumerate(classes)}
        if sorted(places) == sorted(splits.classes):
            train, val, test = (
                tuple(replace(photo, label=places[splits.classes[photo.label]]) for photo in photos)
                for photos in (splits.train, splits.val, splits.test)
            )
            return replace(splits, classes=classes, train=train, val=val, test=test)
    return splits


def _notes(splits: Splits, trained: Trained) -> Iterable[str]:
    if splits.sha256 != trained.data_sha256:
        yield (
            "the network was trained on other photos, or on another split of these: where it has seen a test photo in "
            "training, the accuracy here is too good"
        )


def why_dense_is_silent(splits: Splits, trained: Trained) -> str:
    """Return why the network's dense head cannot name the classes of `splits`; "" where it can."""
    return "" if splits.classes == trained.classes else "the network was trained on other classes"


def introduce(bundle: Bundle, splits: Splits, why_silent: str) -> None:
    """Say what a new SVM is about to learn from, and what to know about it."""
    counts = splits.counts()
    say(
        f"{bundle.name} version {bundle.version}, {bundle.manifest.architecture}; {len(splits.classes)} classes; "
        f"{counts['train']} photos to learn from, {counts['val']} to validate, {counts['test']} to test"
    )
    if why_silent:
        say(f"note: {why_silent}, so the SVM will be the only scorer")
    for note in splits.notes:
        say(f"note: {note}")


def draft(
    bundle: Bundle, splits: Splits, trained: Trained, more: dict[str, Any], why_silent: str | None = None
) -> Manifest:
    """Return the manifest but for what measuring adds: the record of the training stays, and gets `more` entries.

    `why_silent` is why the dense head is no scorer, "" where it is one, None to find out by the classes.
    """
    before = bundle.manifest
    why_silent = why_dense_is_silent(splits, trained) if why_silent is None else why_silent
    has_dense = not why_silent
    record = {key: value for key, value in before.training.items() if key not in _ONLY_WHERE_SILENT} | more
    if not has_dense:
        record |= {"classes": list(trained.classes), "dense_is_silent": why_silent}
    now = {name: version for name, version in libraries().items() if name in _USED}
    return replace(
        before,
        classes=splits.classes,
        default_scorer=SVM,
        temperatures={},
        libraries=dict(before.libraries) | now,
        training=record,
        files={},
        stated_scorers=None if has_dense else (SVM,),
        stated_logits_length=None if has_dense else before.logits_length,
    )


def _history(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Return the history of the network's training, as far as there is one."""
    return {_HISTORY: read_file(folder, manifest, _HISTORY)} if _HISTORY in manifest.files else {}
