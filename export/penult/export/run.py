"""`penult train` from top to bottom: photos → network → fine-tuning → bundle."""

from pathlib import Path

import torch

from penult.bundle.manifest import check_model_name
from penult.export import architectures
from penult.export.checkpoint import Checkpoint
from penult.export.data import Splits, load_splits
from penult.export.errors import SettingsError
from penult.export.finetune import FineTuner
from penult.export.model import PenultNet, build, copy_weights
from penult.export.photos import Cache, PhotoReader
from penult.export.progress import say
from penult.export.publish import Result, publish
from penult.export.settings import TrainSettings


def train(settings: TrainSettings) -> Result:
    """Learn from a folder of photos and publish a bundle; raise PenultError with one line on what to do."""
    check_model_name(settings.out.resolve().name)
    architecture = architectures.get(settings.arch)
    device = _device(settings.device)
    splits = load_splits(settings)
    _introduce(settings, splits, device)
    net = build(architecture, settings, len(splits.classes))
    given = copy_weights(net)
    photos = PhotoReader(architecture.preprocess, Cache(settings.cache_mb << 20), settings.batch_size)
    checkpoint = settings.out / ".training" / "checkpoint.pt"
    history = FineTuner(net, architecture, settings, splits, photos, device).run(checkpoint)
    net = net.to("cpu").to(memory_format=torch.contiguous_format).eval()
    result = publish(settings, splits, net, given, photos, history)
    if settings.save_weights:
        save_weights(net, settings.save_weights)
    Checkpoint(checkpoint, settings, splits.sha256).remove()
    return result


def save_weights(net: PenultNet, path: Path) -> None:
    """Write a state dict that `--weights FILE` takes, with torchvision's names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {f"head.{key}": value for key, value in net.head.state_dict().items()}
    torch.save(net.body.state_dict() | head, path)


def _introduce(settings: TrainSettings, splits: Splits, device: torch.device) -> None:
    counts = splits.counts()
    say(
        f"{len(splits.classes)} classes; {counts['train']} photos to learn from, {counts['val']} to validate, "
        f"{counts['test']} to test; {settings.arch} on {device.type}"
    )
    for note in splits.notes:
        say(f"note: {note}")


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "DEVICE", "--device cuda: PyTorch sees no CUDA device; check nvidia-smi, or use --device cpu"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
