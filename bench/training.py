"""What learning costs: an epoch against a plain hand-written torchvision loop, cached descriptors, memory.

    python bench/training.py [--data DIR] [--weights FILE] [--arch mobilenet_v2] [--freeze 3] [--rounds 3]

The two loops run in processes of their own, alternating, on the same photos with the same network, frozen stages,
batches, crops and optimizer; compared are CPU-seconds (children included) and seconds of epochs after the first, which
also fills caches. The plain loop is what torchvision's references and tutorials do: ImageFolder, a DataLoader with
processes, `requires_grad = False`, a training pass and a validation pass. penult's epoch also re-measures the training
loss and writes a checkpoint.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_EPOCHS = 3
_BATCH = 32
_MEMORY_EPOCHS = 6


def _cpu_seconds() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


class _Clock:
    """Seconds and CPU-seconds since the last tick."""

    def __init__(self) -> None:
        self._last = time.perf_counter(), _cpu_seconds()

    def tick(self) -> tuple[float, float]:
        now = time.perf_counter(), _cpu_seconds()
        passed = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return passed


def penult_epochs(options: argparse.Namespace, epochs: int, cache_mb: int = 2048) -> list[dict[str, float]]:
    """Fine-tune with penult; return seconds, CPU-seconds and memory per epoch of the phase of all layers."""
    from penult.export.config.known_networks import preprocess
    from penult.export.config.photos import PhotoSource
    from penult.export.config.train import TrainSettings
    from penult.export.data.dataset import load_splits
    from penult.export.data.loader import Cache, PhotoReader
    from penult.export.jobs.train import Run, fine_tune
    from penult.export.training.distributed import ALONE

    settings = TrainSettings(
        data=options.data,
        out=Path("bench-out"),
        arch=options.arch,
        weights=str(options.weights),
        freeze=options.freeze,
        epochs=epochs,
        head_epochs=1,
        batch_size=_BATCH,
        device="cpu",
    )
    clock, found = _Clock(), []

    def on_epoch(epoch) -> None:
        seconds, cpu = clock.tick()
        if epoch.phase == "all":
            found.append({"seconds": seconds, "cpu_seconds": cpu, "resident_mb": _resident_mb()})

    reader = PhotoReader(preprocess(settings), Cache(cache_mb << 20), _BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        splits = load_splits(PhotoSource(settings.data), settings.out, settings.val, settings.test, settings.seed)
        fine_tune(settings, Run(ALONE, splits, reader), Path(scratch) / "checkpoint.pt", on_epoch)
    return found


def plain_epochs(options: argparse.Namespace, epochs: int) -> list[dict[str, float]]:
    """Fine-tune as a tutorial would; return seconds and CPU-seconds per epoch."""
    import torch
    import torchvision
    from torch.nn import functional as F
    from torchvision import transforms as T

    from penult.export.networks.architectures import get

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    augment = T.Compose(
        [T.RandomResizedCrop(224, (0.35, 1)), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean, std)]
    )
    cut = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), T.Normalize(mean, std)])
    train, val = (
        torchvision.datasets.ImageFolder(options.data / part, how) for part, how in (("train", augment), ("val", cut))
    )
    net = torchvision.models.get_model(options.arch, weights=None)
    net.load_state_dict(torch.load(options.weights, weights_only=True))
    frozen = [net.get_submodule(path) for stage in get(options.arch).stages[: options.freeze] for path in stage]
    for module in frozen:
        module.requires_grad_(False)
    net.classifier[-1] = torch.nn.Linear(net.classifier[-1].in_features, len(train.classes))
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    batches = torch.utils.data.DataLoader(train, _BATCH, shuffle=True, num_workers=2)
    checks = torch.utils.data.DataLoader(val, _BATCH, num_workers=2)
    clock, found = _Clock(), []
    for _ in range(epochs):
        net.train()
        for pixels, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(pixels), labels)
            loss.backward()
            optimizer.step()
        net.eval()
        hits = 0
        with torch.no_grad():
            for pixels, labels in checks:
                hits += int((net(pixels).argmax(1) == labels).sum())
        seconds, cpu = clock.tick()
        found.append({"seconds": seconds, "cpu_seconds": cpu, "val_accuracy": hits / len(val)})
    return found


def head_epochs(options: argparse.Namespace) -> dict[str, float]:
    """Return the CPU-seconds of a head epoch on cached descriptors, and of one that runs the frozen body again."""
    import torch

    from penult.export.config.photos import PhotoSource
    from penult.export.config.train import FREEZE_ALL, TrainSettings
    from penult.export.data.dataset import load_splits
    from penult.export.data.loader import Cache, PhotoReader
    from penult.export.networks.architectures import get
    from penult.export.networks.network import build
    from penult.export.training.distributed import ALONE
    from penult.export.training.finetune import FineTuner
    from penult.export.training.history import History

    settings = TrainSettings(
        data=options.data, out=Path("bench-out"), arch=options.arch, weights=str(options.weights), freeze=FREEZE_ALL,
        batch_size=_BATCH, device="cpu",
    )  # fmt: skip
    splits = load_splits(PhotoSource(settings.data), settings.out, settings.val, settings.test, settings.seed)
    architecture = get(options.arch)
    net = build(architecture, settings, len(splits.classes))
    tuner = FineTuner(
        net, architecture, settings, splits, PhotoReader(architecture.preprocess, Cache(1 << 30), _BATCH), ALONE
    )
    vectors = [tuner.trainer.describe(part, "describing") for part in (splits.train, splits.val)]
    clock = _Clock()
    tuner.trainer.describe(splits.train, "describing")  # the crops are in memory by now
    tuner.trainer.describe(splits.val, "describing")
    again = clock.tick()[1]
    phase, repeats = tuner._head_phase(*vectors, History()), 10
    clock.tick()
    for epoch in range(repeats):
        phase.train(epoch)
        phase.measure()
    cached = clock.tick()[1] / repeats
    assert torch.isfinite(net.head[1].weight).all()
    return {"cached_cpu_seconds": cached, "again_cpu_seconds": again + cached}


_PARTS: dict[str, Callable[[argparse.Namespace], object]] = {
    "penult": lambda options: penult_epochs(options, _EPOCHS),
    "plain": lambda options: plain_epochs(options, _EPOCHS),
    "head": head_epochs,
    # A sixteenth of what the photos need decoded: nearly all are read and decoded anew in every epoch.
    "memory": lambda options: penult_epochs(options, _MEMORY_EPOCHS, cache_mb=16),
}


def _apart(options: argparse.Namespace, part: str):
    command = [sys.executable, __file__, "--part", part, *sys.argv[1:]]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    shared = Path(__file__).parent.parent.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train/ and val/ (default: half of TrashNet)")
    parser.add_argument("--arch", default="mobilenet_v2", help="a network with a `classifier`, such as mobilenet_v2")
    parser.add_argument("--weights", type=Path, default=shared / "mobilenet_v2.pth")
    parser.add_argument("--freeze", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=_PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(_PARTS[options.part](options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            options.data = half_of_trashnet(shared / "trashnet.zip", Path(scratch))
            sys.argv += ["--data", str(options.data)]
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    ratios: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for number in range(1, options.rounds + 1):
        found = {part: _apart(options, part)[1:] for part in ("penult", "plain")}
        medians = {
            (part, unit): statistics.median(epoch[unit] for epoch in epochs)
            for part, epochs in found.items()
            for unit in ratios
        }
        for unit, values in ratios.items():
            values.append(medians["penult", unit] / medians["plain", unit])
        print(
            f"round {number}: " + ", ".join(f"{part} {unit} {value:.1f}" for (part, unit), value in medians.items()),
            flush=True,
        )
    for unit, values in ratios.items():
        middle, spread = statistics.median(values), f"{min(values):.3f} … {max(values):.3f}"
        print(f"epoch, penult / plain, {unit}: median {middle:.3f} ({spread})")
    head = _apart(options, "head")
    cached, again = head["cached_cpu_seconds"], head["again_cpu_seconds"]
    print(f"head epoch on cached descriptors: {again / cached:.0f} times cheaper", flush=True)
    print(f"  {cached:.3f} against {again:.1f} CPU-s")
    memory = [round(epoch["resident_mb"]) for epoch in _apart(options, "memory")]
    print(f"resident memory after each epoch, 16 MiB of cache, MiB: {memory}")


def half_of_trashnet(archive: Path, folder: Path) -> Path:
    """Unpack every second photo of TrashNet's train and val."""
    import zipfile

    with zipfile.ZipFile(archive) as photos:
        names = [n for n in photos.namelist() if n.endswith(".jpg") and n.split("/")[1] in ("train", "val")]
        photos.extractall(folder, sorted(names)[::2])
    return folder / "trashnet"


if __name__ == "__main__":
    main()
