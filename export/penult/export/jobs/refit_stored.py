"""`penult svm --from-collection`: fit a new SVM on the stored descriptors of a collection, without photos.

The fingerprint shows that the descriptors are the network's own. Some items are set aside to calibrate and to measure.
The golden photos are those of the bundle, with the scores of the new SVM.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from penult.bundle.goldens import Goldens
from penult.bundle.manifest import DENSE, PENULTIMATE, Manifest
from penult.bundle.reader import read_bundle
from penult.bundle.scores import Floats
from penult.export.config.refit import RefitSettings
from penult.export.data.dataset import MIN_PER_CLASS, Splits
from penult.export.data.split_folders import PARTS
from penult.export.data.splitting import Photo, hold_out
from penult.export.errors import DataError
from penult.export.evaluation import svm
from penult.export.evaluation.choice import fit_and_choose
from penult.export.evaluation.folds import groups_of
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.abstaining import note_dropped
from penult.export.jobs.packaging import Candidate, Result, publish_bundle, stable_rows
from penult.export.jobs.refit import (
    TrainingRecord,
    announce,
    draft,
    history_of,
    network_of,
    plan_of,
    seed_of,
    svm_record,
    why_no_dense,
)
from penult.export.onnx.head import cut_head, reads_descriptor
from penult.export.onnx.runtime import ExportedHead, ExportedModel
from penult.folders.names import normalised

WHITENED = "the stored descriptors are whitened, and the dense head reads them raw"
OTHER_LAYER = "the dense head reads another layer than the stored descriptors"
_MAY_BE_KNOWN = (
    "the network may have learnt from some of these items; then the accuracy and the SVM's confidence here are too "
    "high, and the threshold for novel photos is too low"
)
_FRACTION = 0.15
_MIN_TRAINING = 2


@dataclass(frozen=True)
class Stored:
    """Labelled items of a collection: ids and labels [N], descriptors float32 [N, length], and their fingerprint."""

    collection: str
    fingerprint: str
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    descriptors: Floats


def refit_stored(settings: RefitSettings, stored: Stored) -> Result:
    """Fit a new SVM on stored descriptors and publish it; raise PenultError."""
    bundle = read_bundle(settings.model, settings.version)
    if stored.fingerprint != bundle.manifest.fingerprint:
        raise DataError(
            "FINGERPRINT",
            f"collection {stored.collection} holds descriptors of another network; describe its photos again "
            f"with penult index reindex {stored.collection} --model {bundle.name}",
        )
    record = TrainingRecord.of(bundle.manifest)
    seed = seed_of(settings, record)
    splits = _split(stored, record.classes, seed)
    no_dense = _why_not_read(bundle.manifest) or why_no_dense(splits, record)
    if not no_dense and not reads_descriptor(bundle.onnx, bundle.manifest):
        no_dense = OTHER_LAYER
    announce(bundle, splits, no_dense)
    note_dropped(bundle.manifest, bundle.version)
    head = None if no_dense else ExportedHead(cut_head(bundle.onnx, bundle.manifest), bundle.manifest)
    outputs = {part: _outputs(getattr(splits, part), stored, head) for part in PARTS}
    plan = plan_of(bundle, record, splits.sha256, settings.kernel, settings.class_weight, seed)
    # The default scorer stays what it is; see below.
    fitted, _ = fit_and_choose(plan, outputs, groups_of((*splits.train, *splits.val)), has_dense=False)
    more = svm_record(settings, bundle, splits, fitted, collection=stored.collection)
    manifest = draft(bundle, splits, record, more, no_dense)
    if not no_dense:
        # The head may have learnt from these items; a temperature fitted on them would be too low.
        before = bundle.manifest
        manifest = replace(
            manifest, temperatures={DENSE: before.temperatures[DENSE]}, default_scorer=before.default_scorer
        )
    metrics = network_of(settings, bundle) | {"collection": stored.collection}
    exported = ExportedModel(bundle.onnx, bundle.manifest, bundle.dense_head)
    candidate = Candidate(manifest, splits, exported, outputs, fitted, None, metrics, history_of(settings, bundle))
    return publish_bundle(settings.published, candidate, renew=partial(_renewed, bundle.goldens))


def _why_not_read(manifest: Manifest) -> str:
    """Return why the dense head cannot be measured on stored descriptors, because it reads others; "" if it can."""
    if manifest.is_whitened:
        return WHITENED
    layer = manifest.descriptor_layer
    return "" if layer == PENULTIMATE else f"the stored descriptors are of {layer}, and the dense head reads others"


def _split(stored: Stored, order: tuple[str, ...], seed: int) -> Splits:
    """Set items of each class aside by seed; keep the network's class order and spelling if the classes are equal."""
    labels, known = ([normalised(name) for name in given] for given in (stored.labels, order))
    classes = sorted(set(labels))
    classes = known if sorted(known) == classes else classes
    if len(classes) < 2:
        raise DataError("DATA_ONE_CLASS", f"the items of {stored.collection} have fewer than two labels; label more")
    counts, place = Counter(labels), {name: at for at, name in enumerate(classes)}
    for name, count in counts.items():
        if count < MIN_PER_CLASS:
            raise DataError(
                "DATA_FEW",
                f"label {name!r} has {count} items in {stored.collection}; add more, {MIN_PER_CLASS} are needed",
            )
    items = [
        Photo(Path(id_), place[label], _digest(vector))
        for id_, label, vector in zip(stored.ids, labels, stored.descriptors, strict=True)
    ]
    left, test = hold_out(items, _FRACTION, f"{seed} test", _MIN_TRAINING + 1)
    train, val = hold_out(left, _FRACTION, f"{seed} val", _MIN_TRAINING)
    notes = (f"the SVM is fitted on the stored items of collection {stored.collection}, not on photos", _MAY_BE_KNOWN)
    return Splits(order if classes == known else tuple(classes), tuple(train), tuple(val), tuple(test), notes)


def _outputs(items: tuple[Photo, ...], stored: Stored, head: ExportedHead | None) -> SplitOutputs:
    rows = {_digest(vector): row for row, vector in enumerate(stored.descriptors)}
    chosen = stored.descriptors[[rows[item.sha256] for item in items]]
    logits = head.run(chosen) if head else np.empty((len(chosen), 0), dtype=np.float32)  # without a head none are read
    return SplitOutputs(logits, chosen, np.array([item.label for item in items]))


def _digest(vector: Floats) -> str:
    return hashlib.sha256(vector.tobytes()).hexdigest()


def _renewed(old: Goldens, fitted: svm.FittedSvm) -> Goldens:
    """Return the golden photos with the new SVM's scores; photos whose scores rounding would change are left out."""
    rows = stable_rows(old.descriptor, fitted)
    images = tuple(old.images[row] for row in rows)
    return Goldens(images, old.crops[rows], old.logits[rows], old.descriptor[rows], fitted.scores(old.descriptor[rows]))
