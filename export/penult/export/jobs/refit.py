"""`penult svm`: fit a new SVM on a bundle's descriptors and publish it as the model's next version, without PyTorch.

The network keeps its bytes and its fingerprint, so descriptors of both versions can be compared. If the photos have
other classes than the network was trained on, the SVM is the only scorer.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penult.bundle.manifest import DENSE, SVM, Manifest
from penult.bundle.map_support import MapSupport
from penult.bundle.naming import model_name
from penult.bundle.reader import Bundle, read_bundle, read_file
from penult.console import say
from penult.export.config import no_effect
from penult.export.config.compare import CompareSettings
from penult.export.config.photos import NO_GROUPS, PhotoSource
from penult.export.config.refit import RefitSettings, VersionSettings
from penult.export.config.train import TrainSettings
from penult.export.data.certifying import set_aside
from penult.export.data.dataset import Splits, load_splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.outliers import load_outliers
from penult.export.data.split_folders import PARTS
from penult.export.data.splitting import Photo
from penult.export.evaluation import svm, svm_cost
from penult.export.evaluation.choice import Plan, fit_and_choose
from penult.export.evaluation.folds import groups_of
from penult.export.evaluation.one_class_text import classes_text
from penult.export.evaluation.outputs import run_split
from penult.export.jobs import one_class
from penult.export.jobs.abstaining import CALIBRATE, note_dropped, wanted_by
from penult.export.jobs.near_copy_groups import near_copies_as_trained, recorded_groups
from penult.export.jobs.packaging import HISTORY_NAME, Candidate, Result, libraries, publish_bundle
from penult.export.onnx.runtime import ExportedModel
from penult.folders.names import normalised

BATCH = 32
_OTHER_PHOTOS = (
    "the network was trained on other photos or on another split; if it has seen a test photo in training, the "
    "accuracy here is too high"
)
_CHOSE = (
    "the network was trained without --max-error, so the certifying photos took part in the choice of its epoch; the "
    "share of wrong answers may be slightly higher than certified; penult calibrate with new photos has no such doubt"
)
_OF_ITS_OWN = (CALIBRATE, "classes", "dense_is_silent", one_class.RECORD)
# Libraries that a new SVM and its goldens depend on; the others made the network.
_USED = ("onnxruntime-gpu", "onnxruntime", "scikit-learn", "numpy", "pillow", "penult")


@dataclass(frozen=True)
class TrainingRecord:
    """What a manifest records of the network's training: classes in the order of the logits, settings, SHA-256."""

    classes: tuple[str, ...]
    settings: dict[str, Any]
    data_sha256: str

    @classmethod
    def of(cls, manifest: Manifest) -> "TrainingRecord":
        """Read a manifest; fields of an unexpected type count as absent."""
        settings, classes = manifest.training.get("settings"), manifest.training.get("classes")
        if DENSE in manifest.scorers or not isinstance(classes, list) or len(classes) != manifest.logits_length:
            classes = manifest.classes if DENSE in manifest.scorers else ()
        data = manifest.training.get("data_sha256")
        return cls(tuple(map(str, classes)), settings if isinstance(settings, dict) else {}, str(data))


def refit(settings: RefitSettings) -> Result:
    """Fit a new SVM on the photos of `settings.data` and publish it; raise PenultError."""
    bundle = read_bundle(settings.model, settings.version)
    record = TrainingRecord.of(bundle.manifest)
    splits = splits_as_trained(settings, bundle, record)
    no_effect.refuse_for(settings, len(splits.classes))
    if len(splits.classes) == 1:
        return _refit_one_class(settings, bundle, record, splits)
    labels = np.array([photo.label for photo in splits.train])
    svm_cost.check(settings.kernel, svm.counts_of(labels, bundle.manifest.descriptor_length))
    exported = ExportedModel(bundle.onnx, bundle.manifest, bundle.dense_head)
    reader = PhotoReader(bundle.manifest.preprocess, Cache(0), BATCH)
    outputs = {
        part: run_split(exported, reader.crops(getattr(splits, part), f"describing {part} photos"))
        for part in splits.parts
    }
    plan = plan_of(bundle, record, splits.sha256, settings.kernel, settings.class_weight, seed_of(settings, record))
    groups, has_dense = groups_of((*splits.train, *splits.val)), not why_no_dense(splits, record)
    fitted, choice = fit_and_choose(plan, outputs, groups, has_dense)
    manifest = draft(bundle, splits, record, svm_record(settings, bundle, splits, fitted))
    metrics = network_of(settings, bundle) | recorded_groups(splits, grouping_of(settings, record))
    history, wanted = history_of(settings, bundle), wanted_by(settings, bundle.manifest)
    candidate = Candidate(manifest, splits, exported, outputs, fitted, choice, metrics, history, wanted)
    return publish_bundle(settings.published, candidate, reader.stack if settings.report_photos else None)


def _refit_one_class(settings: RefitSettings, bundle: Bundle, record: TrainingRecord, splits: Splits) -> Result:
    """Fit the measures of novelty on the network's descriptors of one class, and publish them."""
    outliers: tuple[Photo, ...] = ()
    if settings.outliers:
        outliers, notes = load_outliers(settings.outliers, splits.classes[0])
        splits = replace(splits, notes=(*splits.notes, *notes))
        for note in notes:
            say(f"note: {note}")
    for note in no_effect.notes_for_one_class(settings):
        say(f"note: {note}")
    exported = ExportedModel(bundle.onnx, bundle.manifest, bundle.dense_head)
    reader = PhotoReader(bundle.manifest.preprocess, Cache(0), BATCH)
    outputs = {
        part: run_split(exported, reader.crops(getattr(splits, part), f"describing {part} photos")) for part in PARTS
    }
    before = bundle.manifest
    entry = {
        "data_sha256": splits.sha256,
        "photos": splits.counts(),
        "seed": seed_of(settings, record),
    } | network_of(settings, bundle)
    manifest = _draft_one_class(bundle, splits, record, {SVM: entry})
    candidate = one_class.Candidate(
        manifest, splits, exported, outputs, outliers, one_class.describe_outliers(exported, reader, outliers),
        network_of(settings, bundle), history_of(settings, bundle),
    )  # fmt: skip
    known = before.training.get(one_class.RECORD)
    shown = reader if settings.report_photos else None
    choice = one_class.Choice.asked(settings.novelty, settings.false_alarms, known, seed_of(settings, record))
    return one_class.publish_one_class(settings.published, candidate, choice, shown)


def _draft_one_class(bundle: Bundle, splits: Splits, record: TrainingRecord, more: dict[str, Any]) -> Manifest:
    """Return the next version's manifest for one class, without what measuring adds."""
    before = bundle.manifest
    training = {key: value for key, value in before.training.items() if key not in _OF_ITS_OWN} | more
    if record.classes:
        training["classes"] = list(record.classes)
    now = {name: version for name, version in libraries().items() if name in _USED}
    return replace(
        before,
        classes=splits.classes,
        libraries=dict(before.libraries) | now,
        training=training,
        files={},
        operating_points=(),
        class_maps=before.class_maps or MapSupport(),
        stated_logits_length=before.logits_length if before.logits_length > 1 else None,
    )


def plan_of(
    bundle: Bundle, record: TrainingRecord, data_sha256: str, kernel: str, class_weight: str | None, seed: int
) -> Plan:
    """Return the plan of an SVM on the network of `bundle`, for photos with this SHA-256 (that of Splits)."""
    manifest = bundle.manifest
    return Plan.of(
        record.settings, manifest.architecture, kernel, class_weight, seed,
        is_same=data_sha256 == record.data_sha256, reads_descriptor=manifest.head_reads_descriptor,
    )  # fmt: skip


def svm_record(
    settings: RefitSettings, bundle: Bundle, splits: Splits, fitted: svm.FittedSvm, **more: object
) -> dict[str, Any]:
    """Return what the manifest records of a new SVM on the network of `bundle`."""
    record = {
        "kernel": fitted.kernel,
        "class_weights": settings.class_weights,
        "seed": fitted.seed,
        "data_sha256": splits.sha256,
        "photos": splits.counts(),
    }
    wanted = wanted_by(settings)
    return {"svm": record | network_of(settings, bundle) | more | (wanted.as_json() if wanted else {})}


def network_of(settings: RefitSettings, bundle: Bundle) -> dict[str, Any]:
    """Return what records and reports say of the version that the network is from; its model, if it is another."""
    found: dict[str, Any] = {"network_of_version": bundle.version}
    return found if model_name(settings.published) == bundle.name else found | {"network_of_model": bundle.name}


def history_of(settings: VersionSettings, bundle: Bundle) -> dict[str, bytes]:
    """Return history.csv of the network's training, if the bundle has it."""
    if HISTORY_NAME not in bundle.manifest.files:
        return {}
    return {HISTORY_NAME: read_file(settings.model / str(bundle.version), bundle.manifest, HISTORY_NAME)}


def splits_as_trained(settings: VersionSettings, bundle: Bundle, record: TrainingRecord) -> Splits:
    """Load the photos of `settings.data`, split as for the network's training, and print what they are.

    The same seed and fractions set the same photos aside, so the test photos stay new to the network. If the photos
    have the classes of the network or of the bundle, these keep their order.

    Raises:
        DataError: The photos cannot be used.
    """
    splits = load_as_trained(settings, bundle, record)
    splits = reorder_classes(splits, record.classes, bundle.manifest.classes)
    sha256 = splits.sha256
    if wanted_by(settings, bundle.manifest) and len(splits.classes) > 1:
        splits = set_aside(splits, seed_of(settings, record))
    else:
        note_dropped(bundle.manifest, bundle.version)
    # A network that was taken as it was given has seen none of the photos.
    is_given = bundle.manifest.has_one_class and not record.classes
    if splits.sha256 != record.data_sha256 and not is_given:
        note = _CHOSE if splits.certify and sha256 == record.data_sha256 else _OTHER_PHOTOS
        splits = replace(splits, notes=(*splits.notes, note))
    announce(bundle, splits, why_no_dense(splits, record))
    return splits


def load_as_trained(settings: VersionSettings | CompareSettings, bundle: Bundle, record: TrainingRecord) -> Splits:
    """Load the photos of `settings.data`, split with the seed and the fractions of the network's training.

    Raises:
        DataError: The photos cannot be used.
    """
    val, test = (
        given or _recorded_fraction(record.settings.get(part))
        for part, given in (("val", settings.val), ("test", settings.test))
    )
    grouped = grouping_of(settings, record)
    source = replace(PhotoSource.of(settings), group_by=grouped)
    near_copies = near_copies_as_trained(grouped, settings.model, bundle)
    return load_splits(source, settings.model, val, test, seed_of(settings, record), near_copies)


def grouping_of(settings: VersionSettings | CompareSettings, record: TrainingRecord) -> str:
    """Return how the settings group photos, else how the network's training did."""
    return settings.group_by or str(record.settings.get("group_by", NO_GROUPS))


def seed_of(settings: VersionSettings | CompareSettings, record: TrainingRecord) -> int:
    """Return the seed of the settings, else the one of the network's training."""
    seed = record.settings.get("seed") if settings.seed is None else settings.seed
    return seed if type(seed) is int and 0 <= seed < 2**32 else 0


def _recorded_fraction(value: object) -> str:
    """Return a recorded fraction, else the default: of a folder only its name is recorded."""
    try:
        return str(value) if 0 < float(str(value)) < 1 else TrainSettings.val
    except ValueError:
        return TrainSettings.val


def reorder_classes(splits: Splits, *orders: tuple[str, ...]) -> Splits:
    """Return the splits with their classes in the first of `orders` that has the same classes; unchanged if none has.

    Bundles of older versions keep class names in the Unicode form of their folders.
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


def why_no_dense(splits: Splits, record: TrainingRecord) -> str:
    """Return why the network's dense head cannot score the classes of `splits`; "" if it can."""
    return "" if splits.classes == record.classes else "the network was trained on other classes"


def announce(bundle: Bundle, splits: Splits, why_no_dense: str) -> None:
    """Print the photos of a new SVM, and the notes on them."""
    counts = splits.counts()
    say(
        f"{bundle.name} version {bundle.version}, {bundle.manifest.architecture}; {classes_text(splits.classes)}; "
        f"{counts['train']} training, {counts['val']} validation and {counts['test']} test photos"
    )
    if why_no_dense and len(splits.classes) > 1:
        say(f"note: {why_no_dense}, so the SVM is the only scorer")
    for note in splits.notes:
        say(f"note: {note}")


def draft(
    bundle: Bundle, splits: Splits, record: TrainingRecord, more: dict[str, Any], no_dense: str | None = None
) -> Manifest:
    """Return the next version's manifest without what measuring adds.

    Args:
        bundle: The version that the network is taken from; the record of its training is kept.
        splits: The photos.
        record: The network's training.
        more: Further entries of the training record.
        no_dense: Why the dense head is no scorer, "" if it is one; None decides by the classes.
    """
    before = bundle.manifest
    no_dense = why_no_dense(splits, record) if no_dense is None else no_dense
    training = {key: value for key, value in before.training.items() if key not in _OF_ITS_OWN} | more
    if no_dense:
        training |= {"classes": list(record.classes), "dense_is_silent": no_dense}
    now = {name: version for name, version in libraries().items() if name in _USED}
    return replace(
        before,
        classes=splits.classes,
        default_scorer=SVM,
        temperatures={},
        libraries=dict(before.libraries) | now,
        training=training,
        files={},
        operating_points=(),
        # Of the same network, so what it can have maps of stays; packaging decides anew which scorers have them.
        class_maps=before.class_maps or MapSupport(),
        stated_scorers=(SVM,) if no_dense else None,
        stated_logits_length=before.logits_length if no_dense else None,
    )
