"""From a trained network to a bundle: ONNX, parity, SVM, metrics, goldens, report."""

import json
import math
from dataclasses import asdict, replace

from penult.bundle.baseline import BASELINE_NAME
from penult.bundle.manifest import DENSE, GOLDEN_NAME, MODEL_NAME, SVM, SVM_NAME, FileEntry, Manifest
from penult.bundle.naming import model_name
from penult.console import say
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.loader import PhotoReader
from penult.export.evaluation import drift_baseline, svm, whitening
from penult.export.evaluation.diagnosis import Verdict, diagnose
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.packaging import Result, libraries, make_goldens, measure, publish_bundle, refit_on_all, score
from penult.export.networks import architectures
from penult.export.networks.network import Normalise, PenultNet, Weights, parameter_groups
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.parity import Parity, check_parity
from penult.export.onnx.runtime import ExportedModel
from penult.export.report.report_data import ReportData, TrainingSummary, Validation
from penult.export.training.history import History

__all__ = ["Result", "publish"]


def publish(
    settings: TrainSettings, splits: Splits, net: PenultNet, given: Weights, photos: PhotoReader, history: History
) -> Result:
    """Export, check, fit the SVM, measure, and write the bundle; `given` are the weights that learning began with."""
    whitened = _whiten(settings, splits, net, photos) if settings.whiten else None
    draft = Manifest(
        architecture=settings.arch,
        classes=splits.classes,
        preprocess=photos.spec,
        descriptor_length=settings.whiten or net.descriptor_length,
        default_scorer=DENSE,
        temperatures={},
        libraries=libraries(),
        training={"settings": settings.as_json(), "data_sha256": splits.sha256, "photos": splits.counts()}
        | ({"whitening": whitened.as_json()} if whitened else {}),
    )
    say("exporting to ONNX")
    onnx = to_onnx(net, draft)
    exported = ExportedModel(onnx, draft)
    parity = check_parity(net, Normalise(photos.spec), exported, photos.crops(splits.val, "comparing with ONNX"))
    say(f"parity: {parity.photos} photos, all labels identical, values within {_worst(parity):.0e} of the largest")
    measured = {
        part: SplitOutputs(*exported.run_all(photos.crops(getattr(splits, part), f"describing {part} photos")))
        for part in ("train", "val", "test")
    }
    train = measured["train"]
    chosen = svm.fit(train.descriptors, train.labels, settings.seed, settings.svm, settings.class_weight)
    fitted = refit_on_all(chosen, measured)
    scores = score(measured, (DENSE, SVM), chosen, fitted)
    labels = {part: m.labels for part, m in measured.items()}
    manifest, metrics = measure(draft, splits, scores, labels)
    ordinary = drift_baseline.learn(manifest, measured, scores["val"], settings.seed)
    verdict = diagnose(history, len(splits.classes), settings.schedule, len(splits.val))
    metrics |= {"parity": asdict(parity), "svm": fitted.as_json(), "notes": list(splits.notes)}
    metrics["novelty"] = drift_baseline.told(ordinary, measured)
    metrics |= {"verdict": verdict.as_json()} | ({"whitening": whitened.as_json()} if whitened else {})
    files = {
        MODEL_NAME: onnx,
        SVM_NAME: fitted.to_bytes(),
        GOLDEN_NAME: make_goldens(manifest, splits.val, measured["val"], exported, fitted).to_bytes(),
        BASELINE_NAME: ordinary.to_bytes(),
        "history.csv": history.to_csv(),
        "metrics.json": (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    # The report reads the manifest, so it must know which files there will be.
    listed = replace(manifest, files={name: FileEntry.of(data) for name, data in files.items()})
    say("drawing the report")
    test = measured["test"]
    report_data = ReportData(
        model_name(settings.out), listed, splits, metrics, scores["test"], test.labels, test.descriptors, settings,
        validation=Validation(scores["val"], labels["val"]),
        learning=_learning(settings, net, given, history, verdict),
        crops=photos.stack if settings.report_photos else None,
    )  # fmt: skip
    return publish_bundle(settings.out, settings.data, files, report_data, exported, fitted)


def _whiten(settings: TrainSettings, splits: Splits, net: PenultNet, photos: PhotoReader) -> whitening.WhiteningResult:
    train, val = (photos.crops(getattr(splits, part), f"describing {part} photos, raw") for part in ("train", "val"))
    return whitening.whiten(net, Normalise(photos.spec), settings.whiten, train, val)


def _learning(
    settings: TrainSettings, net: PenultNet, given: Weights, history: History, verdict: Verdict
) -> TrainingSummary:
    """Gather what the report tells of the training itself."""
    architecture = architectures.get(settings.arch)
    groups = parameter_groups(net, architecture, settings)
    rates = {str(group["name"]): group["lr"] * history.rate_factor for group in groups}
    dropout = architecture.dropout if settings.dropout is None else settings.dropout
    return TrainingSummary(architecture, history, verdict, given, net.state_dict(), rates, dropout)


def _worst(parity: Parity) -> float:
    worst = max(parity.logits_difference, parity.descriptor_difference)
    return 10.0 ** math.ceil(math.log10(worst)) if worst else 0.0
