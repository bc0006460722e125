"""Fine-tuning: the head first, on cached descriptors; then every layer that is not frozen, on augmented photos.

All randomness is a function of (seed, phase, epoch, photo), so a run that was cut off and resumed ends with the same
weights as one that was not.
"""

import math
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from penult.bundle.preprocess import Preprocess
from penult.export import augment
from penult.export.architectures import Architecture
from penult.export.checkpoint import Checkpoint
from penult.export.data import Photo, Splits
from penult.export.errors import SettingsError
from penult.export.history import Epoch, History
from penult.export.model import PenultNet, copy_weights, freeze_stages, parameter_groups
from penult.export.photos import Batch, PhotoReader
from penult.export.progress import say
from penult.export.settings import FREEZE_ALL, TrainSettings
from penult.export.stopping import EarlyStopping

# The training loss is re-measured on this many photos at least, in eval mode: dropout would hide the gap otherwise.
_FEWEST_MEASURED = 200
_HEAD_BATCH = 64

Tensors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Phase:
    """One stretch of learning with one optimizer.

    `train` runs an epoch and returns its mean loss; `measure` returns training loss and accuracy, then validation's.
    Epochs of a long phase are worth a checkpoint and a line each.
    """

    name: str
    epochs: int
    optimizer: torch.optim.Optimizer
    train: Callable[[int], float]
    measure: Callable[[], tuple[float, float, float, float]]
    is_long: bool


class FineTuner:
    """Trains a network in place on one device."""

    def __init__(
        self,
        net: PenultNet,
        architecture: Architecture,
        settings: TrainSettings,
        splits: Splits,
        reader: PhotoReader,
        device: torch.device,
    ) -> None:
        """Move the network to the device; nothing learns yet."""
        self.net = net.to(device).to(memory_format=torch.channels_last)
        self.architecture, self.settings, self.splits, self.reader = architecture, settings, splits, reader
        self.device = device
        self.normalise = Normalise(architecture.preprocess).to(device)

    def run(self, checkpoint_path: Path) -> History:
        """Train, restore the best weights of each phase, and return the history; raise SettingsError on divergence."""
        checkpoint = Checkpoint(checkpoint_path, self.settings, self.splits.sha256)
        fresh = self.settings.reinit or self.settings.weights == "none"
        phases: list[Callable[[], Phase]] = [] if fresh else [self._head_phase]
        if self.settings.freeze < FREEZE_ALL:
            phases.append(self._whole_phase)
        history = checkpoint.history
        if checkpoint.state:
            say(f"resuming after {len(history.epochs)} epochs")
            self.net.load_state_dict(checkpoint.state["net"])
        for number, make_phase in enumerate(phases):
            if not checkpoint.finished(number):
                self._run_phase(number, make_phase(), history, checkpoint)
        freeze_stages(self.net, self.architecture, self.settings.freeze)
        return history

    def _run_phase(self, number: int, phase: Phase, history: History, checkpoint: Checkpoint) -> None:
        """Run one phase's epochs; at its end the network holds the phase's best weights."""
        settings = self.settings
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            phase.optimizer, factor=settings.lr_factor, patience=settings.lr_patience
        )
        # A phase must beat the one before it: where it does not, the earlier weights stay.
        stopping = EarlyStopping(settings.stop_patience, best=history.best_loss)
        best = checkpoint.restore(number, phase.optimizer, plateau, stopping) or copy_weights(self.net)
        while stopping.epoch < phase.epochs and not stopping.should_stop:
            epoch, started = stopping.epoch + 1, time.monotonic()
            torch.manual_seed(zlib.crc32(f"{settings.seed} {phase.name} {epoch}".encode()))
            rate = phase.optimizer.param_groups[0]["lr"]
            running = phase.train(epoch)
            train_loss, train_accuracy, val_loss, val_accuracy = phase.measure()
            if not (math.isfinite(running) and math.isfinite(val_loss)):
                raise SettingsError("DIVERGED", "the loss is no number any more; lower --lr-head and --lr-backbone")
            improved = stopping.improved(val_loss)
            plateau.step(val_loss)
            if improved:
                best = copy_weights(self.net)
            seconds = time.monotonic() - started
            history.add(
                Epoch(phase.name, epoch, rate, running, train_loss, val_loss, train_accuracy, val_accuracy, seconds)
            )
            if phase.is_long or epoch % 10 == 0 or stopping.should_stop:
                say(history.last_line(improved))
            if phase.is_long:
                checkpoint.save(number, self.net, phase.optimizer, plateau, stopping, best, history)
        self.net.load_state_dict(best)
        checkpoint.save_finished(number, self.net, history)

    def _head_phase(self) -> Phase:
        """Make the phase of the head alone: the body runs once per photo, then epochs cost next to nothing."""
        freeze_stages(self.net, self.architecture, FREEZE_ALL)
        train = self._describe(self.splits.train, "describing training photos")
        val = self._describe(self.splits.val, "describing validation photos")
        head = self.net.head
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=self.settings.lr_head, weight_decay=self.settings.weight_decay
        )

        def run_epoch(epoch: int) -> float:
            head.train()
            order = torch.randperm(len(train[1]), device=self.device)
            batches = ((train[0][rows], train[1][rows]) for rows in order.split(_HEAD_BATCH))
            return self._learn(batches, optimizer, head)

        def measure() -> tuple[float, float, float, float]:
            head.eval()
            with torch.no_grad():
                return *_loss_and_accuracy(head(train[0]), train[1]), *_loss_and_accuracy(head(val[0]), val[1])

        return Phase("head", self.settings.head_epochs, optimizer, run_epoch, measure, is_long=False)

    def _whole_phase(self) -> Phase:
        """Make the phase of every layer that is not frozen, on augmented photos, with a warm-up in the first epoch."""
        settings = self.settings
        freeze_stages(self.net, self.architecture, settings.freeze)
        optimizer = torch.optim.AdamW(
            parameter_groups(self.net, self.architecture, settings), weight_decay=settings.weight_decay
        )
        targets = [group["lr"] for group in optimizer.param_groups]
        steps = -(-len(self.splits.train) // settings.batch_size)
        measured = _sample(self.splits, settings.seed)
        augmentation = augment.BY_NAME[settings.augment]

        def warm(batches: Iterable[Batch]) -> Iterable[Tensors]:
            for step, batch in enumerate(batches):
                for group, target in zip(optimizer.param_groups, targets, strict=True):
                    group["lr"] = target * (step + 1) / steps
                yield self._to_device(batch)

        def run_epoch(epoch: int) -> float:
            self.net.train()
            batches = self.reader.augmented(
                self.splits.train, augmentation, f"{settings.seed} {epoch}", f"epoch {epoch}"
            )
            on_device = warm(batches) if epoch == 1 else map(self._to_device, batches)
            return self._learn(on_device, optimizer, lambda pixels: self.net(self.normalise(pixels))[0])

        def measure() -> tuple[float, float, float, float]:
            return *self._measure(measured, "measuring"), *self._measure(self.splits.val, "validating")

        return Phase("all", settings.epochs, optimizer, run_epoch, measure, is_long=True)

    def _learn(
        self,
        batches: Iterable[Tensors],
        optimizer: torch.optim.Optimizer,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> float:
        """Take one optimizer step per batch; return the mean loss per photo."""
        total, seen = 0.0, 0
        for inputs, labels in batches:
            if len(labels) == 1 and seen and self.settings.batch_size > 1:
                continue  # batch norm cannot learn from a single photo
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss = F.cross_entropy(logits_of(inputs), labels)
            loss.backward()
            optimizer.step()
            total, seen = total + loss.item() * len(labels), seen + len(labels)
        return total / max(seen, 1)

    def _describe(self, photos: tuple[Photo, ...], what: str) -> Tensors:
        """Run the body in eval mode; return descriptors [N, length] and labels [N]."""
        self.net.eval()
        descriptors, labels = [], []
        with torch.inference_mode():
            for batch in self.reader.crops(photos, what):
                pixels, truth = self._to_device(batch)
                descriptors.append(self.net.body(self.normalise(pixels)))
                labels.append(truth)
        return torch.cat(descriptors).clone(), torch.cat(labels).clone()

    def _measure(self, photos: tuple[Photo, ...], what: str) -> tuple[float, float]:
        """Return loss and accuracy in eval mode, on the pixels that serving would see."""
        descriptors, labels = self._describe(photos, what)
        with torch.no_grad():
            return _loss_and_accuracy(self.net.head(descriptors), labels)

    def _to_device(self, batch: Batch) -> Tensors:
        pixels, labels = batch
        return torch.from_numpy(pixels).to(self.device), torch.from_numpy(labels).to(self.device)

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


class Normalise(nn.Module):
    """Scale and normalise: uint8 [N, H, W, 3] → float [N, 3, H, W]. Part of the exported graph."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: Preprocess) -> None:
        """Take mean and std from the preprocessing values."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean) * 255)
        self.register_buffer("std", torch.tensor(spec.std) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise per channel, then put channels first."""
        return ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def _loss_and_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    loss = F.cross_entropy(logits.float(), labels).item()
    return loss, (logits.argmax(1) == labels).float().mean().item()


def _sample(splits: Splits, seed: int) -> tuple[Photo, ...]:
    """Draw the training photos on which the training loss is re-measured: as many as there are for validation."""
    count = min(len(splits.train), max(len(splits.val), _FEWEST_MEASURED))
    rows = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))[:count]
    return tuple(splits.train[row] for row in sorted(rows.tolist()))
