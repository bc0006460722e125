"""`penult svm --from-collection`: a new SVM from descriptors that are stored already, in seconds and without a photo.

The items' descriptors are the network's own, by their fingerprint. Some are set aside, as photos would be, to calibrate
and to measure; the golden photos are those of the bundle, with what the new SVM says of them.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from penult.bundle.goldens import Goldens
from penult.bundle.manifest import DENSE, GOLDEN_NAME
from penult.bundle.reader import read_bundle, read_file
from penult.bundle.scores import Floats
from penult.export.config.refit import RefitSettings
from penult.export.data.dataset import MIN_PER_CLASS, Photo, Splits, hold_out
from penult.export.data.split_folders import PARTS
from penult.export.errors import DataError
from penult.export.evaluation import svm
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.packaging import Result, steady_rows
from penult.export.jobs.refit import Trained, draft, introduce, publish_next, seed_of, why_dense_is_silent
from penult.export.onnx.head import cut_head
from penult.export.onnx.runtime import ExportedHead, ExportedModel
from penult.folders.names import normalised

WHITENED = "the stored descriptors are whitened, and the dense head reads them raw"
_MAY_BE_KNOWN = (
    "the network may have learnt from some of these items: then accuracy here is too good, the SVM too sure of itself, "
    "and photos count as novel too soon"
)
_FRACTION = 0.15
_LEARNT_FROM = 2


@dataclass(frozen=True)
class Stored:
    """Labelled items of a collection: ids and labels [N], descriptors float32 [N, length], and whose they are."""

    collection: str
    fingerprint: str
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    descriptors: Floats


def refit_stored(settings: RefitSettings, stored: Stored) -> Result:
    """Fit a new SVM on stored descriptors, and publish it; raise PenultError with what to do."""
    bundle = read_bundle(settings.model, settings.version)
    if stored.fingerprint != bundle.manifest.fingerprint:
        raise DataError(
            "FINGERPRINT",
            f"collection {stored.collection} holds another network's descriptors; penult index reindex "
            f"{stored.collection} --model {bundle.name} describes its photos with this one",
        )
    trained, seed = Trained.of(bundle.manifest), seed_of(settings, Trained.of(bundle.manifest))
    splits = _split(stored, trained.classes, seed)
    # What the dense head reads is not stored where descriptors are whitened: nothing can be measured of it.
    why_silent = WHITENED if bundle.manifest.is_whitened else why_dense_is_silent(splits, trained)
    introduce(bundle, splits, why_silent)
    head = None if why_silent else ExportedHead(cut_head(bundle.onnx, bundle.manifest), bundle.manifest)
    measured = {part: _measured(getattr(splits, part), stored, head) for part in PARTS}
    train = measured["train"]
    fitted = svm.fit(train.descriptors, train.labels, seed, settings.kernel, settings.class_weight)
    chosen = {"kernel": fitted.kernel, "class_weights": settings.class_weights, "seed": seed}
    chosen |= {"data_sha256": splits.sha256, "photos": splits.counts(), "network_of_version": bundle.version}
    manifest = draft(bundle, splits, trained, {"svm": chosen | {"collection": stored.collection}}, why_silent)
    if not why_silent:
        # A head that learnt from these items would be judged too good, and its temperature found too low.
        before = bundle.manifest
        manifest = replace(
            manifest, temperatures={DENSE: before.temperatures[DENSE]}, default_scorer=before.default_scorer
        )
    old = Goldens.from_bytes(read_file(settings.model / str(bundle.version), bundle.manifest, GOLDEN_NAME))
    told = {"network_of_version": bundle.version, "collection": stored.collection}
    return publish_next(
        replace(settings, report_photos=False), bundle, manifest, splits, ExportedModel(bundle.onnx, bundle.manifest),
        bundle.onnx, measured, fitted, told, partial(_renewed, old),
    )  # fmt: skip


def _split(stored: Stored, order: tuple[str, ...], seed: int) -> Splits:
    """Set some of each class aside, by seed; classes in the network's order and spelling where they are the same."""
    labels, known = ([normalised(name) for name in given] for given in (stored.labels, order))
    classes = sorted(set(labels))
    classes = known if sorted(known) == classes else classes
    if len(classes) < 2:
        raise DataError("DATA_ONE_CLASS", f"the items of {stored.collection} bear fewer than two labels; label more")
    counts, place = Counter(labels), {name: at for at, name in enumerate(classes)}
    for name, count in counts.items():
        if count < MIN_PER_CLASS:
            raise DataError(
                "DATA_FEW",
                f"label {name!r} has {count} items in {stored.collection}; at least {MIN_PER_CLASS} are needed, and "
                "some tens are better",
            )
    items = [
        Photo(Path(id_), place[label], _digest(vector))
        for id_, label, vector in zip(stored.ids, labels, stored.descriptors, strict=True)
    ]
    left, test = hold_out(items, _FRACTION, f"{seed} test", _LEARNT_FROM + 1)
    train, val = hold_out(left, _FRACTION, f"{seed} val", _LEARNT_FROM)
    notes = (f"learnt from the stored items of collection {stored.collection}; no photo was seen", _MAY_BE_KNOWN)
    return Splits(order if classes == known else tuple(classes), tuple(train), tuple(val), tuple(test), notes)


def _measured(items: tuple[Photo, ...], stored: Stored, head: ExportedHead | None) -> SplitOutputs:
    rows = {_digest(vector): row for row, vector in enumerate(stored.descriptors)}
    chosen = stored.descriptors[[rows[item.sha256] for item in items]]
    logits = head.run(chosen) if head else np.empty((len(chosen), 0), dtype=np.float32)  # nobody asks a silent head
    return SplitOutputs(logits, chosen, np.array([item.label for item in items]))


def _digest(vector: Floats) -> str:
    return hashlib.sha256(vector.tobytes()).hexdigest()


def _renewed(old: Goldens, fitted: svm.FittedSvm) -> Goldens:
    """Return the golden photos with the new SVM's scores, those alone that rounding does not move."""
    rows = steady_rows(old.descriptor, fitted)
    images = tuple(old.images[row] for row in rows)
    return Goldens(images, old.crops[rows], old.logits[rows], old.descriptor[rows], fitted.scores(old.descriptor[rows]))
