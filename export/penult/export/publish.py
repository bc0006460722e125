"""From a trained network to a bundle: ONNX, parity, SVM, metrics, goldens, report."""

import importlib.metadata
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penult.bundle import goldens, writer
from penult.bundle.manifest import DENSE, GOLDEN_NAME, MODEL_NAME, SVM, SVM_NAME, FileEntry, Manifest
from penult.bundle.preprocess import Pixels, crop_encoded
from penult.bundle.scores import Floats
from penult.export import architectures, svm
from penult.export.convert import to_onnx
from penult.export.data import Photo, Splits
from penult.export.evaluate import compare, evaluate, fit_temperature
from penult.export.evidence import Evidence, Learning
from penult.export.finetune import Normalise
from penult.export.history import History
from penult.export.model import PenultNet, Weights, parameter_groups
from penult.export.parity import Parity, check_parity
from penult.export.photos import PhotoReader
from penult.export.progress import say
from penult.export.report import predictions_csv, report_files
from penult.export.runtime import ExportedModel
from penult.export.settings import TrainSettings
from penult.export.verdict import Verdict, diagnose

_GOLDENS = 8
_LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "scikit-learn", "numpy", "pillow")


@dataclass(frozen=True)
class Result:
    """What a run ends with: the published folder and the contents of metrics.json."""

    folder: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Measured:
    """The exported model's outputs on one split: logits [N, classes], descriptors [N, length], labels [N]."""

    logits: Floats
    descriptors: Floats
    labels: np.ndarray


def publish(
    settings: TrainSettings, splits: Splits, net: PenultNet, given: Weights, photos: PhotoReader, history: History
) -> Result:
    """Export, check, fit the SVM, measure, and write the bundle; `given` are the weights that learning began with."""
    draft = Manifest(
        architecture=settings.arch,
        classes=splits.classes,
        preprocess=photos.spec,
        descriptor_length=net.descriptor_length,
        default_scorer=DENSE,
        temperatures={},
        libraries=_libraries(),
        training={"settings": settings.as_json(), "data_sha256": splits.sha256, "photos": splits.counts()},
    )
    say("exporting to ONNX")
    onnx = to_onnx(net, draft)
    exported = ExportedModel(onnx, draft)
    parity = check_parity(net, Normalise(photos.spec), exported, photos.crops(splits.val, "comparing with ONNX"))
    say(f"parity: {parity.photos} photos, all labels identical, values within {_worst(parity):.0e} of the largest")
    measured = {
        part: _Measured(*exported.run_all(photos.crops(getattr(splits, part), f"describing {part} photos")))
        for part in ("train", "val", "test")
    }
    fitted = svm.fit(measured["train"].descriptors, measured["train"].labels, settings.seed)
    scores = {part: {DENSE: m.logits, SVM: fitted.scores(m.descriptors)} for part, m in measured.items()}
    labels = {part: m.labels for part, m in measured.items()}
    manifest, metrics = _measure(draft, splits, scores, labels)
    verdict = diagnose(history, len(splits.classes))
    metrics |= {"parity": asdict(parity), "svm": fitted.as_json(), "notes": list(splits.notes)}
    metrics["verdict"] = verdict.as_json()
    files = {
        MODEL_NAME: onnx,
        SVM_NAME: fitted.to_bytes(),
        GOLDEN_NAME: _make_goldens(manifest, splits.val, measured["val"], exported, fitted).to_bytes(),
        "history.csv": history.to_csv(),
        "metrics.json": (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    # The report reads the manifest, so it must know which files there will be.
    listed = replace(manifest, files={name: FileEntry.of(data) for name, data in files.items()})
    say("drawing the report")
    test = measured["test"]
    evidence = Evidence(
        settings.out.resolve().name, listed, splits, metrics, scores["test"], test.labels, test.descriptors, settings,
        learning=_learning(settings, net, given, history, verdict),
        crops=_crops(photos) if settings.report_photos else None,
    )  # fmt: skip
    files |= report_files(evidence)
    files["report/predictions.csv"] = predictions_csv(splits, settings.data, scores["test"], manifest.temperatures)
    # From their bytes, as the service will read them, and before anything can be served.
    goldens.replay(goldens.Goldens.from_bytes(files[GOLDEN_NAME]), listed, exported.run, fitted.scores)
    return Result(writer.publish(settings.out, manifest, files), metrics)


def _measure(
    draft: Manifest, splits: Splits, scores: dict[str, dict[str, Floats]], labels: dict[str, np.ndarray]
) -> tuple[Manifest, dict[str, Any]]:
    """Calibrate and choose the scorer on validation photos, then measure both scorers on every split.

    `scores` is [N, classes] by split and scorer, `labels` [N] by split.
    """
    temperatures = {name: fit_temperature(values, labels["val"]) for name, values in scores["val"].items()}
    metrics: dict[str, Any] = {
        part: {
            name: evaluate(values, labels[part], splits.classes, temperatures[name])
            for name, values in scores[part].items()
        }
        for part in ("test", "val", "train")
    }
    val = metrics["val"]
    default = SVM if val[SVM]["accuracy"] > val[DENSE]["accuracy"] else DENSE
    metrics["comparison"] = {p: compare(scores[p][DENSE], scores[p][SVM], labels[p]) for p in ("test", "val")}
    metrics |= {"default_scorer": default, "goldens": min(_GOLDENS, len(splits.val))}
    return replace(draft, default_scorer=default, temperatures=temperatures), metrics


def _learning(settings: TrainSettings, net: PenultNet, given: Weights, history: History, verdict: Verdict) -> Learning:
    """Gather what the report tells of the training itself."""
    architecture = architectures.get(settings.arch)
    groups = parameter_groups(net, architecture, settings)
    rates = {str(group["name"]): float(str(group["lr"])) for group in groups}
    dropout = architecture.dropout if settings.dropout is None else settings.dropout
    return Learning(architecture, history, verdict, given, net.state_dict(), rates, dropout)


def _crops(photos: PhotoReader) -> Callable[[Sequence[Photo]], Pixels]:
    """Return what reads some photos as uint8 [n, crop, crop, 3]."""
    return lambda chosen: np.concatenate([pixels for pixels, _ in photos.crops(chosen, "reading the worst errors")])


def _make_goldens(
    manifest: Manifest, photos: tuple[Photo, ...], measured: _Measured, exported: ExportedModel, fitted: svm.FittedSvm
) -> goldens.Goldens:
    """Choose validation photos that are clear cases, and record the answers of the exported model."""
    rows = goldens.choose(measured.logits, measured.labels.tolist(), _GOLDENS)
    images = tuple(photos[row].read() for row in rows)
    crops = np.stack([crop_encoded(image, manifest.preprocess) for image in images])
    logits, descriptor = exported.run(crops)
    return goldens.Goldens(images, crops, logits, descriptor, fitted.scores(descriptor))


def _worst(parity: Parity) -> float:
    worst = max(parity.logits_difference, parity.descriptor_difference)
    return 10.0 ** math.ceil(math.log10(worst)) if worst else 0.0


def _libraries() -> dict[str, str]:
    installed = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in (*_LIBRARIES, "penult") if name in installed}
