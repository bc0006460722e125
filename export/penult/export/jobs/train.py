"""`penult train` from top to bottom: photos → network → fine-tuning → bundle."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from penult.bundle.naming import name_to_publish
from penult.console import say, silence
from penult.export.config import no_effect
from penult.export.config.known_networks import preprocess
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits, load_splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.disk import resumable, writing
from penult.export.evaluation import svm, svm_cost, whitening
from penult.export.jobs import sweep, sweep_view
from penult.export.jobs.early import UNFINISHED, sweep_folder, try_places
from penult.export.jobs.finished import finished_run
from penult.export.jobs.plot_sweep import sweep_picture
from penult.export.jobs.publish import Result, publish
from penult.export.jobs.sweep import Outcome, Sweep
from penult.export.networks import architectures
from penult.export.networks.network import PenultNet, Weights, build, copy_weights
from penult.export.training.checkpoint import NOTHING_TO_RESUME, Checkpoint
from penult.export.training.distributed import ProcessGroup, started
from penult.export.training.finetune import FineTuner, OnEpoch
from penult.export.training.history import History
from penult.export.training.tensorboard import TensorBoardWriter
from penult.export.training.trainer import Trainer


def train(settings: TrainSettings) -> Result:
    """Learn from a folder of photos and publish a bundle; raise PenultError with one line on what to do.

    Under torchrun, all processes learn together, the first one publishes, and all return its result.
    """
    name_to_publish(settings.out)
    with started(settings.device) as workers:
        if not workers.is_first:
            silence()
        else:
            try_places(settings)
        with resumable():
            return _train(settings, workers)


def _train(settings: TrainSettings, workers: ProcessGroup) -> Result:
    splits, photos = _prepare(settings, workers)
    checkpoint = settings.out / UNFINISHED / "checkpoint.pt"
    before = workers.same(_ended(settings, splits, checkpoint) if workers.is_first else None)
    if before:
        return before
    with TensorBoardWriter(settings.tensorboard if workers.is_first else None) as board:
        tuner, given, history = learn(settings, splits, photos, workers, checkpoint, board.add)
    result = workers.same(_finish(settings, splits, tuner.net, given, photos, history) if workers.is_first else None)
    Checkpoint(checkpoint, settings, splits.sha256, workers).remove()
    assert result is not None  # the first process has published
    return result


def _ended(settings: TrainSettings, splits: Splits, checkpoint: Path) -> Result | None:
    """Return what --resume finds published already, and say what it found; None if the run is to learn."""
    if not settings.resume or checkpoint.is_file():
        return None
    before = finished_run(settings, splits.sha256)
    if before is None:
        say(NOTHING_TO_RESUME)
        return None
    say(f"finished already: {before.folder}; to learn the same once more, leave --resume out")
    if settings.save_weights and not settings.save_weights.exists():
        say(f"note: --save-weights {settings.save_weights} is not written: only a run that learns has the weights")
    return before


def compare(settings: TrainSettings) -> Sweep:
    """Run `settings.sweep`; table and picture are written anew after every trial. Raises PenultError."""
    name_to_publish(settings.out)
    with started(settings.device) as workers:
        if not workers.is_first:
            silence()
        else:
            try_places(settings)

        def learn_one(trial: TrainSettings, part: Splits, checkpoint: Path) -> tuple[PenultNet, Trainer, History]:
            tuner, _, history = learn(trial, part, photos, workers, checkpoint)
            return tuner.net, tuner.trainer, history

        folder = sweep_folder(settings)
        with resumable():
            splits, photos = _prepare(settings, workers)
            return sweep.run(settings, splits, workers, learn_one, folder, partial(_show, folder))


def _show(folder: Path, found: Sweep, latest: Outcome | None) -> None:
    with writing(folder):
        (folder / "table.csv").write_text(sweep_view.to_csv(found))
        (folder / "sweep.png").write_bytes(sweep_picture(found))
    if latest:
        say(sweep_view.told(found, latest))


def learn(
    settings: TrainSettings,
    splits: Splits,
    photos: PhotoReader,
    workers: ProcessGroup,
    checkpoint: Path,
    on_epoch: OnEpoch = lambda epoch: None,
) -> tuple[FineTuner, Weights, History]:
    """Fine-tune a network; return its trainer, the weights that it began with, and the history."""
    architecture = architectures.get(settings.arch)
    net = build(architecture, settings, len(splits.classes))
    check_svm(settings, splits, net)
    given = copy_weights(net)
    tuner = FineTuner(net, architecture, settings, splits, photos, workers, on_epoch)
    return tuner, given, tuner.run(checkpoint)


def check_svm(settings: TrainSettings, splits: Splits, net: PenultNet) -> svm_cost.Counts:
    """Return what the SVM will be fitted on; raise SettingsError where it, or whitening before it, cannot work."""
    whitening.check(settings.whiten, net.descriptor_length, len(splits.train))
    labels = np.array([photo.label for photo in splits.train])
    counts = svm.counts_of(labels, settings.whiten or net.descriptor_length)
    svm_cost.check(settings.svm, counts)
    return counts


def _prepare(settings: TrainSettings, workers: ProcessGroup) -> tuple[Splits, PhotoReader]:
    """Read the photos once, for all processes."""
    splits = workers.same(load_splits(settings) if workers.is_first else None)
    assert splits is not None  # the first process has read them
    _introduce(settings, splits, workers)
    return splits, PhotoReader(preprocess(settings), Cache(settings.cache_mb << 20), settings.batch_size)


def _finish(
    settings: TrainSettings, splits: Splits, net: PenultNet, given: Weights, photos: PhotoReader, history: History
) -> Result:
    net = net.to("cpu").to(memory_format=torch.contiguous_format).eval()
    noted = replace(splits, notes=(*splits.notes, *history.notes))
    if not settings.save_weights:
        return publish(settings, noted, net, given, photos, history)
    # Written before, for a full disk to be told while --resume still ends in one bundle and not two; there only after.
    target = settings.save_weights.resolve()  # what a link leads to, not the link
    scratch = target.with_name(f".{target.name[:99]}.tmp")
    try:
        save_weights(net, scratch)
        result = publish(settings, noted, net, given, photos, history)
        with writing(target):
            scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return result


def save_weights(net: PenultNet, path: Path) -> None:
    """Write a state dict that `--weights FILE` takes, with torchvision's names; raise DiskError."""
    head = {f"head.{key}": value for key, value in net.head.state_dict().items()}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:  # given a path, torch would not say why it cannot be written
            torch.save(net.body.state_dict() | head, file)


def _introduce(settings: TrainSettings, splits: Splits, workers: ProcessGroup) -> None:
    counts = splits.counts()
    say(
        f"{len(splits.classes)} classes; {counts['train']} photos to learn from, {counts['val']} to validate, "
        f"{counts['test']} to test; {settings.arch} on {workers.device.type}"
        + (f", {workers.size} processes" if workers.are_joined else "")
    )
    for note in (*no_effect.notes(settings), *splits.notes):
        say(f"note: {note}")
