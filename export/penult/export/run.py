"""`penult train` from top to bottom: photos → network → fine-tuning → bundle."""

from pathlib import Path

import torch

from penult.bundle.manifest import check_model_name
from penult.export import architectures
from penult.export.board import Board
from penult.export.checkpoint import Checkpoint
from penult.export.data import Splits, load_splits
from penult.export.finetune import FineTuner
from penult.export.history import History
from penult.export.model import PenultNet, Weights, build, copy_weights
from penult.export.photos import Cache, PhotoReader
from penult.export.progress import say, silence
from penult.export.publish import Result, publish
from penult.export.settings import TrainSettings
from penult.export.workers import Workers, started


def train(settings: TrainSettings) -> Result:
    """Learn from a folder of photos and publish a bundle; raise PenultError with one line on what to do.

    Under torchrun, all processes learn together, the first one publishes, and all return its result.
    """
    check_model_name(settings.out.resolve().name)
    with started(settings.device) as workers:
        if not workers.is_first:
            silence()
        return _train(settings, workers)


def _train(settings: TrainSettings, workers: Workers) -> Result:
    architecture = architectures.get(settings.arch)
    splits = workers.same(load_splits(settings) if workers.is_first else None)
    assert splits is not None  # the first process has read them
    _introduce(settings, splits, workers)
    net = build(architecture, settings, len(splits.classes))
    given = copy_weights(net)
    photos = PhotoReader(architecture.preprocess, Cache(settings.cache_mb << 20), settings.batch_size)
    checkpoint = settings.out / ".training" / "checkpoint.pt"
    with Board(settings.tensorboard if workers.is_first else None) as board:
        tuner = FineTuner(net, architecture, settings, splits, photos, workers, board.add)
        history = tuner.run(checkpoint)
    result = workers.same(_finish(settings, splits, net, given, photos, history) if workers.is_first else None)
    Checkpoint(checkpoint, settings, splits.sha256, workers).remove()
    assert result is not None  # the first process has published
    return result


def _finish(
    settings: TrainSettings, splits: Splits, net: PenultNet, given: Weights, photos: PhotoReader, history: History
) -> Result:
    net = net.to("cpu").to(memory_format=torch.contiguous_format).eval()
    result = publish(settings, splits, net, given, photos, history)
    if settings.save_weights:
        save_weights(net, settings.save_weights)
    return result


def save_weights(net: PenultNet, path: Path) -> None:
    """Write a state dict that `--weights FILE` takes, with torchvision's names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {f"head.{key}": value for key, value in net.head.state_dict().items()}
    torch.save(net.body.state_dict() | head, path)


def _introduce(settings: TrainSettings, splits: Splits, workers: Workers) -> None:
    counts = splits.counts()
    say(
        f"{len(splits.classes)} classes; {counts['train']} photos to learn from, {counts['val']} to validate, "
        f"{counts['test']} to test; {settings.arch} on {workers.device.type}"
        + (f", {workers.size} processes" if workers.are_joined else "")
    )
    for note in splits.notes:
        say(f"note: {note}")
