"""`penult train` from top to bottom: read the photos, fine-tune, export, fit the SVM, publish."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penult.bundle.manifest import DENSE, Manifest
from penult.bundle.naming import name_to_publish
from penult.console import say, silence
from penult.export.config import no_effect
from penult.export.config.known_networks import preprocess
from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.certifying import set_aside
from penult.export.data.dataset import Splits, load_splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.outliers import load_outliers
from penult.export.data.splitting import Photo
from penult.export.disk import resumable, writing
from penult.export.evaluation import svm, svm_cost, whitening
from penult.export.evaluation.choice import Plan, fit_and_choose
from penult.export.evaluation.diagnosis import diagnose
from penult.export.evaluation.folds import groups_of
from penult.export.evaluation.one_class_text import classes_text
from penult.export.evaluation.outputs import SplitOutputs, run_split
from penult.export.jobs import frozen_descriptors, one_class
from penult.export.jobs.abstaining import wanted_by
from penult.export.jobs.finished import finished_run
from penult.export.jobs.near_copy_groups import near_copies, recorded_groups
from penult.export.jobs.one_class import Choice
from penult.export.jobs.packaging import HISTORY_NAME, Candidate, Result, libraries, publish_bundle
from penult.export.jobs.preflight import UNFINISHED, check_places
from penult.export.networks import architectures
from penult.export.networks.network import Normalise, PenultNet, Weights, build, copy_weights, parameter_groups
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.parity import Parity, check_parity
from penult.export.onnx.runtime import ExportedModel
from penult.export.report.report_data import TrainingSummary
from penult.export.training.checkpoint import NOTHING_TO_RESUME, Checkpoint
from penult.export.training.distributed import ProcessGroup, started
from penult.export.training.finetune import Described, FineTuner, OnEpoch
from penult.export.training.history import History
from penult.export.training.pace import Pace
from penult.export.training.tensorboard import TensorBoardWriter


@dataclass(frozen=True)
class Run:
    """What every step of a run shares: its processes, its photos, and what reads them."""

    processes: ProcessGroup
    splits: Splits
    reader: PhotoReader


@dataclass(frozen=True)
class Prepared:
    """A candidate that can be published, and its training for the report."""

    candidate: Candidate
    learning: TrainingSummary


def train(settings: TrainSettings) -> Result:
    """Fine-tune on a folder of photos and publish a bundle; raise PenultError.

    Under torchrun, all processes learn together, the first one publishes, and all return its result.
    """
    checkpoint = settings.out / UNFINISHED / "checkpoint.pt"
    with started_run(settings) as run:
        processes = run.processes
        if settings.resume:
            published = _published_before(settings, run.splits, checkpoint) if processes.is_first else None
            if published := processes.same(published):
                return published
        if len(run.splits.classes) == 1:
            found = processes.same(_train_one_class(settings, run) if processes.is_first else None)
            assert found is not None  # the first process has published
            return found
        with TensorBoardWriter(settings.tensorboard if processes.is_first else None) as writer:
            tuner, initial, history = fine_tune(settings, run, checkpoint, writer.add)
        result = None
        if processes.is_first:
            net = tuner.net.to("cpu").to(memory_format=torch.contiguous_format).eval()
            noted = replace(run.splits, notes=(*run.splits.notes, *history.notes))
            with saved_weights(settings, net):
                result = publish(settings, noted, net, initial, run.reader, history)
        result = processes.same(result)
        if processes.is_first:
            Checkpoint.remove(checkpoint)
        assert result is not None  # the first process has published
        return result


def splits_of(settings: TrainSettings) -> Splits:
    """Read and split the photos of a run; raise PenultError.

    If near-copies are to stay together, they are found with the weights that the run starts from.
    """
    grouped = near_copies(
        settings.group_by, lambda: frozen_descriptors.of_weights(settings.arch, settings.weights, preprocess(settings))
    )
    splits = load_splits(PhotoSource.of(settings), settings.out, settings.val, settings.test, settings.seed, grouped)
    return set_aside(splits, settings.seed) if settings.max_error and len(splits.classes) > 1 else splits


@contextmanager
def started_run(settings: TrainSettings, networks: str = "") -> Iterator[Run]:
    """Join the processes, check the places to write to, and read the photos once for all processes.

    `networks` is printed in place of the network of the settings.
    """
    name_to_publish(settings.out)
    with started(settings.device) as processes, resumable():
        if processes.is_first:
            check_places(settings)
        else:
            silence()
        splits = None
        if processes.is_first:
            splits = splits_of(settings)
        splits = processes.same(splits)
        assert splits is not None  # the first process has read them
        no_effect.refuse_for(settings, len(splits.classes))
        counts = splits.counts()
        say(
            f"{classes_text(splits.classes)}; {counts['train']} training, {counts['val']} validation and "
            f"{counts['test']} test photos; {networks or settings.arch} on {processes.device.type}"
            + (f", {processes.size} processes" if processes.are_joined else "")
        )
        for note in (*idle_notes(settings, splits), *splits.notes):
            say(f"note: {note}")
        yield Run(
            processes, splits, PhotoReader(preprocess(settings), Cache(settings.cache_mb << 20), settings.batch_size)
        )


def _published_before(settings: TrainSettings, splits: Splits, checkpoint: Path) -> Result | None:
    """Return the version that an earlier run of these settings published; None if there is something to train."""
    if checkpoint.is_file():
        return None
    choice = one_class_choice(settings).as_json() if len(splits.classes) == 1 else None
    published = finished_run(settings, splits.sha256, choice)
    if published is None:
        say(NOTHING_TO_RESUME)
        return None
    say(f"already finished: {published.folder}; to train again, omit --resume")
    if settings.save_weights and not settings.save_weights.exists():
        say(f"note: --save-weights {settings.save_weights} is not written, because this run does not train")
    return published


def idle_notes(settings: TrainSettings, splits: Splits) -> tuple[str, ...]:
    """Return notes on options that are unused in this run."""
    return no_effect.notes_for_one_class(settings) if len(splits.classes) == 1 else no_effect.notes(settings)


def one_class_choice(settings: TrainSettings) -> Choice:
    """Return what a model with one class serves."""
    return Choice(settings.novelty, settings.false_alarms, settings.seed)


def untrained(settings: TrainSettings) -> PenultNet:
    """Return the network with given weights, and a head of one class that gives 0."""
    net = build(architectures.get(settings.arch), settings, 1).eval()
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.zero_()
    return net


def _train_one_class(settings: TrainSettings, run: Run) -> Result:
    """Export the network as it is, fit the measures of novelty, and publish the bundle; raise PenultError."""
    splits, reader, (name,) = run.splits, run.reader, run.splits.classes
    outliers: tuple[Photo, ...] = ()
    if settings.outliers:
        outliers, notes = load_outliers(settings.outliers, name)
        for note in notes:
            say(f"note: {note}")
        splits = replace(splits, notes=(*splits.notes, *notes))
    net = untrained(settings)
    with saved_weights(settings, net):
        draft = _draft(settings, splits, net, reader)
        exported, outputs, parity = _exported(net, draft, splits, reader)
        candidate = one_class.Candidate(
            draft, splits, exported, outputs, outliers, one_class.describe_outliers(exported, reader, outliers),
            {"parity": asdict(parity)}, {},
        )  # fmt: skip
        shown = reader if settings.report_photos else None
        return one_class.publish_one_class(settings.out, candidate, one_class_choice(settings), shown, settings)


def fine_tune(
    settings: TrainSettings,
    run: Run,
    checkpoint: Path,
    on_epoch: OnEpoch = lambda epoch: None,
    pace: Pace | None = None,
    described: Described | None = None,
) -> tuple[FineTuner, Weights, History]:
    """Fine-tune a network; return its trainer, its initial weights, and the history. `pace` as in FineTuner."""
    architecture = architectures.get(settings.arch)
    net = build(architecture, settings, len(run.splits.classes))
    check_svm(settings, run.splits, net)
    initial = copy_weights(net)
    tuner = FineTuner(net, architecture, settings, run.splits, run.reader, run.processes, on_epoch, pace, described)
    return tuner, initial, tuner.run(checkpoint)


def check_svm(settings: TrainSettings, splits: Splits, net: PenultNet) -> svm_cost.Counts:
    """Return the counts that the SVM is fitted on; raise SettingsError if it, or whitening before it, cannot work."""
    whitening.check(settings.whiten, net.served_length, len(splits.train))
    photos = (*splits.train, *splits.val) if settings.freezes_all else splits.train
    labels = np.array([photo.label for photo in photos])
    counts = svm.counts_of(labels, settings.whiten or net.served_length, groups_of(photos))
    svm_cost.check(settings.svm, counts)
    return counts


def publish(
    settings: TrainSettings, splits: Splits, net: PenultNet, initial: Weights, reader: PhotoReader, history: History
) -> Result:
    """Export the network, compare the ONNX model with it, fit the SVM, and publish the bundle; raise PenultError."""
    return publish_prepared(settings, prepare(settings, splits, net, initial, reader, history), reader)


def publish_prepared(settings: TrainSettings, prepared: Prepared, reader: PhotoReader) -> Result:
    """Publish the bundle of a prepared candidate; raise PenultError."""
    crops = reader.stack if settings.report_photos else None
    return publish_bundle(settings.out, prepared.candidate, crops, settings, prepared.learning)


def prepare(
    settings: TrainSettings, splits: Splits, net: PenultNet, initial: Weights, reader: PhotoReader, history: History
) -> Prepared:
    """Export the network, compare the ONNX model with it, and fit the SVM; raise PenultError."""
    metrics: dict[str, Any] = {}
    if settings.whiten:
        train, val = (
            reader.crops(getattr(splits, part), f"describing {part} photos, raw") for part in ("train", "val")
        )
        whitened = whitening.whiten(net, Normalise(reader.spec), settings.whiten, train, val).as_json()
        metrics["whitening"] = whitened
    draft = _draft(settings, splits, net, reader, **metrics)
    exported, outputs, parity = _exported(net, draft, splits, reader)
    plan = Plan.of(
        settings.as_json(), settings.arch, settings.svm, settings.class_weight, settings.seed,
        is_same=True, reads_descriptor=draft.head_reads_descriptor,
    )  # fmt: skip
    fitted, choice = fit_and_choose(plan, outputs, groups_of((*splits.train, *splits.val)), has_dense=True)
    diagnosis = diagnose(history, len(splits.classes), settings.schedule, len(splits.val))
    metrics |= {"parity": asdict(parity), "verdict": diagnosis.as_json()}
    metrics |= recorded_groups(splits, settings.group_by)
    architecture = architectures.get(settings.arch)
    learning = TrainingSummary(
        architecture=architecture,
        history=history,
        diagnosis=diagnosis,
        initial=initial,
        final=net.state_dict(),
        rates={
            str(group["name"]): group["lr"] * history.rate_factor
            for group in parameter_groups(net, architecture, settings)
        },
        dropout=architecture.dropout if settings.dropout is None else settings.dropout,
    )
    files, wanted = {HISTORY_NAME: history.to_csv()}, wanted_by(settings)
    candidate = Candidate(draft, splits, exported, outputs, fitted, choice, metrics, files, wanted)
    return Prepared(candidate, learning)


def _draft(settings: TrainSettings, splits: Splits, net: PenultNet, reader: PhotoReader, **more: object) -> Manifest:
    """Return the manifest without what measuring adds; `more` are further entries of the record of the training."""
    record = {"settings": settings.as_json(), "data_sha256": splits.sha256, "photos": splits.counts()}
    return Manifest(
        architecture=settings.arch,
        classes=splits.classes,
        preprocess=reader.spec,
        descriptor_length=settings.whiten or net.served_length,
        default_scorer=DENSE,
        temperatures={},
        libraries=libraries(),
        training=record | more,
    )


def _exported(
    net: PenultNet, draft: Manifest, splits: Splits, reader: PhotoReader
) -> tuple[ExportedModel, dict[str, SplitOutputs], Parity]:
    """Export the network, compare the ONNX model with it, and return its outputs by split; raise ParityError."""
    say("exporting to ONNX")
    exported = ExportedModel(to_onnx(net, draft), draft)
    parity = check_parity(net, Normalise(reader.spec), exported, reader.crops(splits.val, "comparing with ONNX"))
    worst = max(parity.logits_difference, parity.descriptor_difference)
    bound = 10.0 ** math.ceil(math.log10(worst)) if worst else 0.0
    say(f"parity: {parity.photos} photos, all labels identical, values within {bound:.0e} of the largest")
    outputs = {
        part: run_split(exported, reader.crops(getattr(splits, part), f"describing {part} photos"))
        for part in splits.parts
    }
    return exported, outputs, parity


@contextmanager
def saved_weights(settings: TrainSettings, net: PenultNet) -> Iterator[None]:
    """Publish inside; --save-weights FILE is written before and moves to its place after.

    If the disk is full, the run fails before it publishes. So --resume publishes one bundle and not two.
    """
    if not settings.save_weights:
        yield
        return
    target = settings.save_weights.resolve()  # the file that a link leads to, not the link
    scratch = target.with_name(f".{target.name[:99]}.tmp")
    try:
        save_weights(net, scratch)
        yield
        with writing(target):
            scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def save_weights(net: PenultNet, path: Path) -> None:
    """Write a state dict that `--weights FILE` takes, with torchvision's names; raise DiskError."""
    head = {f"head.{key}": value for key, value in net.head.state_dict().items()}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:  # given a path, torch would not report why it cannot be written
            torch.save(net.body.state_dict() | head, file)
