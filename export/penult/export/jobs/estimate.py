"""Estimate memory, disk and time of a run from one measured batch, counts and shapes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from penult.bundle.errors import ImageError
from penult.bundle.preprocess import STRETCH, Preprocess, open_image
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data import transforms
from penult.export.data.dataset import Splits
from penult.export.data.file_index import OWN_LIMITS
from penult.export.data.loader import LearningBatch, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.errors import DiskError
from penult.export.networks.architectures import Architecture
from penult.export.networks.network import PenultNet, parameter_groups
from penult.export.training.distributed import ALONE, ProcessGroup
from penult.export.training.trainer import Trainer, class_weights

# The run measures training loss on as many photos as there are for validation, but at least on so many.
_MIN_MEASURED = 200
_SIZES_SAMPLED = 100
_GOLDENS = 8
_REPORT_BYTES = 600_000
# A step that takes longer is not measured a second time without the work of the first call.
_LONG_S = 15.0

T = TypeVar("T")


@dataclass(frozen=True)
class Seconds:
    """Seconds for one batch: reading and decoding, cropping from memory, a training step, describing."""

    read_s: float
    cut_s: float
    learn_s: float
    describe_s: float


def batches(photos: int, batch_size: int) -> int:
    """Return how many batches that many photos make."""
    return -(-photos // batch_size)


def file_bytes(net: PenultNet, classes: int, spec: Preprocess) -> tuple[int, int]:
    """Estimate the bytes of the checkpoint (the network twice, AdamW's two moments) and of the bundle."""
    state = sum(value.nbytes for value in net.state_dict().values())
    learning = sum(p.nbytes for p in net.parameters() if p.requires_grad)
    network = sum(p.nbytes for p in net.parameters())
    svm = 8 * (1 if classes == 2 else classes) * (net.served_length + 1)
    goldens = _GOLDENS * (3 * spec.crop**2 + 4 * net.served_length)
    return 2 * (state + learning), network + svm + goldens + _REPORT_BYTES


def cache_bytes(splits: Splits, spec: Preprocess, learns_whole: bool) -> int:
    """Estimate the bytes of all decoded photos: a crop of each, and whole ones if training crops need them."""
    crops = sum(splits.counts().values()) * 3 * spec.crop**2
    return crops + (round(len(splits.train) * _mean_shrunk_bytes(splits.train, spec)) if learns_whole else 0)


def _mean_shrunk_bytes(photos: Sequence[Photo], spec: Preprocess) -> float:
    """Return the mean bytes of photos at the size that augmentation uses, from the headers of some of them."""
    sizes = []
    for photo in photos[:: max(1, len(photos) // _SIZES_SAMPLED)]:
        try:
            size = open_image(photo.read(), OWN_LIMITS).size
        except (ImageError, DiskError):  # deleted since the check; the run itself will report it
            continue
        shrunk = math.prod(spec.resized_size(*size))
        sizes.append(3 * (shrunk if spec.fit == STRETCH else min(shrunk, math.prod(size))))
    return sum(sizes) / max(len(sizes), 1)


def durations(
    splits: Splits, settings: TrainSettings, batch: Seconds, needed_bytes: int, shares_cores: bool
) -> tuple[float, float]:
    """Estimate the seconds of an epoch and of a run without early stopping; the export is not included.

    A GPU trains while photos are read; a CPU does both in turn. Every photo is read once, and those that do not fit
    into memory again in each pass. All are described after the last epoch. If the head is trained first, training and
    validation photos are described before.
    """
    missing = max(0.0, 1 - (settings.cache_mb << 20) / max(needed_bytes, 1))
    count = splits.counts()

    def pass_s(photos: int, compute_s: float, ready_s: float, unread: float) -> float:
        fetch_s = ready_s + unread * max(batch.read_s - ready_s, 0.0)
        times = batches(photos, settings.batch_size)
        return times * (compute_s + fetch_s if shares_cores else max(compute_s, fetch_s))

    measured = count["val"] + min(count["train"], max(count["val"], _MIN_MEASURED))
    around = pass_s(sum(count.values()), batch.describe_s, 0, 1)
    if not settings.starts_fresh:
        around += pass_s(count["train"] + count["val"], batch.describe_s, 0, missing)
    if settings.freeze == FREEZE_ALL:
        return 0.0, around
    epoch = pass_s(count["train"], batch.learn_s, batch.cut_s, missing) + pass_s(measured, batch.describe_s, 0, missing)
    return epoch, around + pass_s(count["train"], 0, 0, 1) + settings.epochs * epoch


def measure(
    net: PenultNet,
    architecture: Architecture,
    settings: TrainSettings,
    splits: Splits,
    reader: PhotoReader,
    device: torch.device,
) -> Seconds:
    """Measure reading, training and describing one batch on the device; the network's weights change."""
    weights = class_weights(settings.class_weights, splits.train, net.classes)
    trainer = Trainer(net, reader, ProcessGroup(device), weights, settings.precision)
    photos = splits.train[:: max(1, len(splits.train) // settings.batch_size)][: settings.batch_size]
    augmentation = transforms.BY_NAME[settings.augment]

    def cut() -> list[LearningBatch]:
        batches = reader.augmented(photos, augmentation, "plan", "trying a batch", ALONE.bounds, settings.train_crop)
        return list(batches)

    read_s, _ = _timed(cut, device)
    cut_s, batches = _timed(cut, device)
    optimizer = torch.optim.AdamW(parameter_groups(net, architecture, settings))
    crops = torch.from_numpy(reader.stack(photos)).to(device)

    def describe() -> None:
        with torch.inference_mode():
            net.eval().describe(trainer.normalise(crops))

    learn_s = 0.0
    if settings.freeze < FREEZE_ALL:
        learn_s = _settled_s(lambda: trainer.epoch(batches, optimizer, _ConstantRates(), net), device)
    return Seconds(read_s, cut_s, learn_s, _settled_s(describe, device))


class _ConstantRates:
    """Constant learning rates."""

    def before_step(self) -> None:
        pass


def _settled_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the second call, because the first one includes preparation; of the first if it is long."""
    first_s, _ = _timed(work, device)
    return first_s if first_s > _LONG_S else _timed(work, device)[0]


def _timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result
