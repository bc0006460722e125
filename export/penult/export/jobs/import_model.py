"""`penult import`: a classifier that was trained elsewhere becomes a bundle.

The network keeps its weights. Preprocessing is put in front of it, and its last hidden layer becomes the descriptor.
The bundle is compared with the model as it was written. With labelled photos it gets all that `penult train` measures.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from penult.bundle import goldens, writer
from penult.bundle.errors import ImageError
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import DENSE, GOLDEN_NAME, MODEL_NAME, SVM, FileEntry, Manifest
from penult.bundle.naming import model_name
from penult.bundle.preprocess import Pixels, crop_encoded
from penult.console import say
from penult.export.config.import_model import ImportSettings, check_count, read_labels
from penult.export.config.photos import PhotoSource
from penult.export.data.dataset import Splits, load_splits
from penult.export.data.loader import Cache, PhotoReader, as_served
from penult.export.data.made_up import is_unlabelled, made_up_images, some_images
from penult.export.data.split_folders import PARTS
from penult.export.disk import writing
from penult.export.errors import ImportModelError
from penult.export.evaluation import svm, svm_cost
from penult.export.evaluation.choice import Plan, fit_and_choose
from penult.export.evaluation.folds import groups_of
from penult.export.evaluation.one_class_text import classes_text
from penult.export.evaluation.outputs import run_split
from penult.export.jobs.class_maps import proved
from penult.export.jobs.import_source import Given, load, opened
from penult.export.jobs.packaging import GOLDENS, Candidate, Result, libraries, publish_bundle
from penult.export.jobs.refit import BATCH, reorder_classes
from penult.export.onnx.class_maps import with_features
from penult.export.onnx.original import ImportParity, OriginalModel, check_original, check_runs
from penult.export.onnx.penultimate import Head, to_bundle
from penult.export.onnx.runtime import ExportedModel
from penult.export.report.report_imported import imported_card

_MAX_COMPARED = 64
_TRAINED_ELSEWHERE = (
    "the network was trained elsewhere; if it has seen a test photo in training, the accuracy here is too high"
)
_OTHER_CLASSES = "the network was trained on other classes"


@dataclass(frozen=True)
class _Imported:
    """The model of the bundle, its draft, and the original to compare it with."""

    draft: Manifest
    exported: ExportedModel
    original: OriginalModel
    head: Head

    def compare(self, batches: Iterator[Pixels]) -> ImportParity:
        """Return the differences; raise ParityError."""
        parity = check_original(self.original, self.head, self.draft.preprocess, self.exported.run, batches)
        worst = max(parity.logits_difference, parity.descriptor_difference)
        say(f"parity: {parity.photos} photos, all labels identical, values within {worst:.0e} of the largest")
        return parity


def import_model(settings: ImportSettings) -> Result:
    """Read the model, compare it with the original, and publish it; raise PenultError."""
    labels = read_labels(settings.labels) if settings.labels else ()
    splits = _labelled(settings)
    with opened(settings.source) as given:
        imported = _prepare(settings, given, *_classes(settings, given, labels, splits))
        return _publish_alone(settings, imported) if splits is None else _publish_learnt(settings, imported, splits)


def _classes(
    settings: ImportSettings, given: Given, labels: tuple[str, ...], splits: Splits | None
) -> tuple[tuple[str, ...], str]:
    """Return the class names, and how messages name where they are from; raise ImportModelError."""
    if labels:
        return labels, f"--labels {settings.labels}"
    if given.labels:
        return given.labels, given.labels_source
    if splits is None:
        raise ImportModelError(
            "LABELS", "class names are missing; give --labels FILE, or --photos with a folder for each class"
        )
    return tuple(sorted(splits.classes)), f"--photos {settings.photos}"


def _labelled(settings: ImportSettings) -> Splits | None:
    """Return the labelled photos, split; None if there are none, or if they have no labels."""
    if settings.photos is None or is_unlabelled(settings.photos):
        return None
    splits = load_splits(PhotoSource(settings.photos), settings.out, settings.val, settings.test, settings.seed)
    if len(splits.classes) == 1:
        raise ImportModelError(
            "ONE_CLASS",
            f"--photos has one class, {splits.classes[0]!r}; import without it, then run penult svm MODEL PHOTOS",
        )
    return splits


def _prepare(settings: ImportSettings, given: Given, classes: tuple[str, ...], classes_source: str) -> _Imported:
    """Return the model of the bundle; raise PenultError."""
    source = load(given, settings, classes, classes_source)
    head = source.head
    logits, descriptor = source.original.shapes(source.preprocess)
    check_count(classes, logits[0], classes_source)
    draft = Manifest(
        architecture=source.architecture,
        classes=classes,
        preprocess=source.preprocess,
        descriptor_length=descriptor[0],
        default_scorer=DENSE,
        temperatures={},
        libraries=libraries(),
        training={"imported": source.record},
    )
    data = with_features(to_bundle(source.foreign, head, draft, (len(logits) + 1, len(descriptor) + 1)), draft)
    check_runs(data, draft)
    left = f", {head.softmax} left out" if head.softmax else ""
    say(
        f"{settings.source.name}: {len(classes)} classes from {source.scores}{left}; descriptor {source.layer}, "
        f"{descriptor[0]:,} numbers"
    )
    return _Imported(draft, ExportedModel(data, draft), source.original, head)


# -- with labelled photos ----------------------------------------------------------------------------------------------


def _publish_learnt(settings: ImportSettings, imported: _Imported, splits: Splits) -> Result:
    """Fit the SVM, measure and publish."""
    draft = imported.draft
    splits = reorder_classes(splits, draft.classes)
    splits = replace(splits, notes=(*splits.notes, _TRAINED_ELSEWHERE))
    has_dense = splits.classes == draft.classes
    counts = splits.counts()
    say(
        f"{classes_text(splits.classes)}; {counts['train']} training, {counts['val']} validation and {counts['test']} "
        "test photos"
    )
    for note in (*splits.notes, *([] if has_dense else [f"{_OTHER_CLASSES}, so the SVM is the only scorer"])):
        say(f"note: {note}")
    labels = np.array([photo.label for photo in splits.train])
    svm_cost.check(settings.kernel, svm.counts_of(labels, draft.descriptor_length))
    reader = PhotoReader(draft.preprocess, Cache(0), BATCH)
    compared = splits.val[:_MAX_COMPARED]
    parity = imported.compare(pixels for pixels, _ in reader.crops(compared, "comparing with the original"))
    outputs = {
        part: run_split(imported.exported, reader.crops(getattr(splits, part), f"describing {part} photos"))
        for part in PARTS
    }
    # If the classes differ, no label of these photos has shaped the descriptors.
    plan = Plan(settings.kernel, None, settings.seed, is_frozen=not has_dense)
    fitted, choice = fit_and_choose(plan, outputs, groups_of((*splits.train, *splits.val)), has_dense)
    record = {"kernel": fitted.kernel, "seed": fitted.seed, "data_sha256": splits.sha256, "photos": counts}
    manifest = replace(draft, classes=splits.classes, training=dict(draft.training) | {SVM: record})
    if not has_dense:
        silent = {"classes": list(draft.classes), "dense_is_silent": _OTHER_CLASSES}
        manifest = replace(
            manifest,
            default_scorer=SVM,
            training=dict(manifest.training) | silent,
            stated_scorers=(SVM,),
            stated_logits_length=draft.logits_length,
        )
    metrics = {"parity": parity.as_json(), "imported": dict(draft.training["imported"])}
    candidate = Candidate(manifest, splits, imported.exported, outputs, fitted, choice, metrics, {})
    return publish_bundle(settings.out, candidate, reader.stack if settings.report_photos else None)


# -- without ---------------------------------------------------------------------------------------------------------


def _publish_alone(settings: ImportSettings, imported: _Imported) -> Result:
    """Publish the network with its dense head as the only scorer."""
    exported, spec = imported.exported, imported.draft.preprocess
    images = _golden_images(settings, imported.draft)
    crops = np.stack([crop_encoded(image, spec) for image in images])
    parity = imported.compare(crops[at : at + BATCH] for at in range(0, len(crops), BATCH))
    logits, _ = exported.run(crops)
    rows = goldens.choose(logits, logits.argmax(axis=1).tolist(), GOLDENS)
    golden = Goldens(
        tuple(images[row] for row in rows), crops[rows], *exported.run(crops[rows]), np.empty((0, 0), np.float32)
    )
    metrics = {
        "parity": parity.as_json(),
        "imported": dict(imported.draft.training["imported"]),
        "default_scorer": DENSE,
        "goldens": len(rows),
        "goldens_made_up": settings.photos is None,
        "test": {},
    }
    manifest = replace(imported.draft, temperatures={DENSE: 1.0}, stated_scorers=(DENSE,))
    manifest, head_file = proved(manifest, exported, golden.crops, None)
    files = head_file | {
        MODEL_NAME: exported.onnx,
        GOLDEN_NAME: golden.to_bytes(),
        "metrics.json": (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode(),
        "MODEL_CARD.md": imported_card(model_name(settings.out), manifest, metrics).encode(),
    }
    manifest = replace(manifest, files={name: FileEntry.of(content) for name, content in files.items()})
    # From their bytes, as the service will read them.
    goldens.replay(Goldens.from_bytes(files[GOLDEN_NAME]), manifest, exported.run, None)
    with writing(settings.out):
        return Result(writer.publish(settings.out, manifest, files), metrics)


def _golden_images(settings: ImportSettings, draft: Manifest) -> list[bytes]:
    if settings.photos is None:
        return made_up_images(draft.preprocess)
    found = []
    for image in some_images(settings.photos, _MAX_COMPARED):
        try:
            served = as_served(image, draft.preprocess)
            crop_encoded(served, draft.preprocess)
        except ImageError as error:
            say(f"note: an image of --photos is left out: {error.message}")
        else:
            found.append(served)
    if not found:
        raise ImportModelError("PHOTOS", f"--photos {settings.photos} has no image that can be read; give others")
    return found
