"""Fine-tune the head on cached descriptors, then every layer that is not frozen on augmented photos.

All random numbers depend on seed, phase, epoch and photo alone. So a resumed run ends with the same weights as an
unbroken one, and several processes end with the same weights as one.
"""

import hashlib
import math
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from penult.console import say
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data import transforms
from penult.export.data.dataset import Splits
from penult.export.data.loader import PhotoReader
from penult.export.data.splitting import Photo
from penult.export.errors import SettingsError
from penult.export.networks.architectures import Architecture
from penult.export.networks.network import PenultNet, copy_weights, freeze_stages, parameter_groups
from penult.export.training import lr_finder, schedule
from penult.export.training.checkpoint import Checkpoint, run_identity
from penult.export.training.distributed import ProcessGroup, share_batch_norm
from penult.export.training.history import Epoch, History
from penult.export.training.pace import Pace, Paced
from penult.export.training.trainer import EvalResult, Tensors, Trainer, class_weights, steps_of

# The training loss is measured again in eval mode, on at least so many photos; dropout would hide the gap.
_MIN_MEASURED = 200
_HEAD_BATCH = 64
# With Adam's usual 1e-8, gradients of rounding noise become full steps, and runs of one and two processes diverge.
_EPSILON = 1e-6

# Rounds of a pace end when it says so.
_NO_LIMIT = 1_000_000

OnEpoch = Callable[[Epoch], None]
# Descriptors and labels that the same frozen network has given for the same photos, by all that they depend on.
Described = dict[str, Tensors]


@dataclass(frozen=True)
class Phase:
    """One phase of training with one optimizer.

    Attributes:
        train: Runs an epoch, given its number, and returns its mean loss.
        measure: Measures training photos, then validation photos.
        is_long: True if every epoch gets a checkpoint and a progress line.
    """

    name: str
    epochs: int
    optimizer: torch.optim.Optimizer
    schedule: schedule.Schedule
    train: Callable[[int], float]
    measure: Callable[[], tuple[EvalResult, EvalResult]]
    is_long: bool


class FineTuner:
    """Trains a network in place, alone or together with the other processes of the run."""

    def __init__(
        self,
        net: PenultNet,
        architecture: Architecture,
        settings: TrainSettings,
        splits: Splits,
        reader: PhotoReader,
        processes: ProcessGroup,
        on_epoch: OnEpoch = lambda epoch: None,
        pace: Pace | None = None,
        described: Described | None = None,
    ) -> None:
        """Move the network to the device; run() trains it.

        Args:
            net: The network.
            architecture: What it is.
            settings: How it is trained.
            splits: The photos.
            reader: Reads them.
            processes: The processes of the run.
            on_epoch: Called after each epoch.
            pace: Decides on the rounds of the phase of all layers; None: the settings do.
            described: Kept descriptors, of runs with the same seed and weights, for the phase of the head.
        """
        share_batch_norm(net, processes)
        weights = class_weights(settings.class_weights, splits.train, net.classes)
        self.trainer = Trainer(net, reader, processes, weights, settings.precision)
        self.net = self.trainer.net
        self.architecture = architecture
        self.settings = settings
        self.splits = splits
        self.reader = reader
        self.processes = processes
        self.on_epoch = on_epoch
        self.pace = pace
        self.described = described

    def run(self, checkpoint_path: Path) -> History:
        """Run both phases, each of which ends with its best weights; return the history.

        Raises:
            SettingsError: The loss diverged, or the checkpoint belongs to another run.
        """
        settings = self.settings
        identity = run_identity(settings, self.splits.sha256)
        checkpoint = Checkpoint(checkpoint_path, identity, settings.resume, self.processes)
        history = checkpoint.history
        if checkpoint.state:
            say(f"resuming after {len(history.epochs)} epochs")
            self.net.load_state_dict(checkpoint.state["net"])
        phases = [] if settings.starts_fresh else [self._run_head]
        if not settings.freezes_all:
            phases.append(self._run_whole)
        for number, run in enumerate(phases):
            if not checkpoint.finished(number):
                # Convolutions that learn run again in every epoch, so one view must do; frozen ones run once.
                with nullcontext() if settings.freezes_all else self.net.single_view():
                    run(number, history, checkpoint)
        freeze_stages(self.net, self.architecture, settings.freeze)
        return history

    def _run_head(self, number: int, history: History, checkpoint: Checkpoint) -> None:
        """Train the head alone: all processes run the body once per photo, then the first one trains the head."""
        freeze_stages(self.net, self.architecture, FREEZE_ALL)
        train = self._describe(self.splits.train, "describing training photos")
        val = self._describe(self.splits.val, "describing validation photos")
        if self.processes.is_first:
            self._run_phase(number, self._head_phase(train, val, history), history, checkpoint)
        self.processes.copy(self.net)
        history.epochs[:] = self.processes.same(history.epochs)

    def _describe(self, photos: Sequence[Photo], what: str) -> Tensors:
        """Return descriptors and labels of photos by the network as given, kept ones if there are."""
        if self.described is None:
            return self.trainer.describe_all(photos, what)
        names = " ".join(photo.sha256 for photo in photos)
        settings, reader = self.settings, self.reader
        weights = f"{settings.arch} {settings.weights} {settings.descriptor} {settings.seed}"
        depends = f"{weights} {reader.spec} {reader.batch_size} {self.net.views} {names}"
        key = hashlib.sha256(depends.encode()).hexdigest()
        if key not in self.described:
            self.described[key] = self.trainer.describe_all(photos, what)
        return self.described[key]

    def _run_whole(self, number: int, history: History, checkpoint: Checkpoint) -> None:
        """Train every layer that is not frozen."""
        phase = self._whole_phase(history, is_new=not checkpoint.is_within(number))
        self._run_phase(number, phase, history, checkpoint)

    def _run_phase(self, number: int, phase: Phase, history: History, checkpoint: Checkpoint) -> None:
        """Run the epochs of one phase; afterwards the network has the phase's best weights."""
        scaler = self.trainer.scaler
        best = checkpoint.restore(number, phase.optimizer, phase.schedule, scaler) or copy_weights(self.net)
        stopping = phase.schedule.stopping
        while stopping.epoch < phase.epochs and not phase.schedule.is_over:
            epoch = self._run_epoch(phase)
            improved = phase.schedule.after_epoch(epoch.val_loss)
            if improved:
                best = copy_weights(self.net)
            history.epochs.append(epoch)
            self.on_epoch(epoch)
            if phase.is_long or epoch.epoch % 10 == 0 or phase.schedule.is_over:
                say(history.last_line(improved))
            if phase.is_long:
                checkpoint.save(number, self.net, phase.optimizer, phase.schedule, scaler, best, history)
        self.net.load_state_dict(best)
        checkpoint.save_finished(number, self.net, history)

    def _run_epoch(self, phase: Phase) -> Epoch:
        """Train and measure one epoch; raise SettingsError if the loss is not finite."""
        number, started = phase.schedule.stopping.epoch + 1, time.monotonic()
        torch.manual_seed(zlib.crc32(f"{self.settings.seed} {phase.name} {number}".encode()))
        running = phase.train(number)
        train, val = phase.measure()
        if not (math.isfinite(running) and math.isfinite(val.loss)):
            raise SettingsError("DIVERGED", "the loss is not finite; lower --lr-head and --lr-backbone")
        rate = phase.optimizer.param_groups[0]["lr"]
        return Epoch(
            phase=phase.name,
            epoch=number,
            learning_rate=rate,
            running_loss=running,
            train_loss=train.loss,
            val_loss=val.loss,
            train_accuracy=train.accuracy,
            val_accuracy=val.accuracy,
            seconds=time.monotonic() - started,
            val_loss_error=val.error,
        )

    def _head_phase(
        self, train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor], history: History
    ) -> Phase:
        """Make the phase of the head alone, on descriptors and labels; its epochs take almost no time."""
        head, trainer, alone = self.net.head, self.trainer, ProcessGroup(self.processes.device)
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=self.settings.lr_head, weight_decay=self.settings.weight_decay, eps=_EPSILON
        )

        def run_epoch(epoch: int) -> float:
            head.train()
            total = 0.0
            for rows in torch.randperm(len(train[1]), device=trainer.device).split(_HEAD_BATCH):
                inputs, labels = train[0][rows], train[1][rows]
                weight = float(trainer.weights[labels].sum())
                total += float(trainer.step(optimizer, lambda: head(inputs), labels, 1 / weight))  # noqa: B023
            return total / float(trainer.weights[train[1]].sum())

        def measure() -> tuple[EvalResult, EvalResult]:
            return trainer.evaluate(*train, alone), trainer.evaluate(*val, alone)

        plan = schedule.plateau(optimizer, self.settings, history.best_loss)
        return Phase("head", self.settings.head_epochs, optimizer, plan, run_epoch, measure, is_long=False)

    def _whole_phase(self, history: History, is_new: bool = True) -> Phase:
        """Make the phase of every layer that is not frozen, on augmented photos."""
        settings, splits, trainer = self.settings, self.splits, self.trainer
        freeze_stages(self.net, self.architecture, settings.freeze)
        measured = _sample(splits, settings.seed)
        augmentation = transforms.BY_NAME[settings.augment]
        optimizer = self._optimizer(history.rate_factor)  # of the interrupted run, if there was one
        if settings.lr == "auto" and is_new:
            factor = lr_finder.find_factor(
                trainer, optimizer, splits.train, augmentation, settings.seed, settings.train_crop
            )
            optimizer = self._optimizer(factor)
            history.rate_factor = factor
            history.notes.append(f"--lr auto: the given rates were multiplied by {factor:.2g}")
            say(history.notes[-1])
        forward = self.processes.wrap(self.net)
        steps = steps_of(len(splits.train), settings.batch_size)
        best = history.best_loss
        plan = Paced(optimizer, best, self.pace) if self.pace else schedule.make(optimizer, settings, best, steps)

        def run_epoch(epoch: int) -> float:
            seed = f"{settings.seed} {epoch}"
            batches = self.reader.augmented(
                splits.train, augmentation, seed, f"epoch {epoch}", self.processes.bounds, settings.train_crop
            )
            losses = trainer.epoch(plan.batches(batches), optimizer, plan, forward)
            return sum(losses) / len(losses)

        def measure() -> tuple[EvalResult, EvalResult]:
            return trainer.measure(measured, "measuring"), trainer.measure(splits.val, "validating")

        epochs = _NO_LIMIT if self.pace else settings.epochs
        return Phase("all", epochs, optimizer, plan, run_epoch, measure, is_long=True)

    def _optimizer(self, factor: float) -> torch.optim.Optimizer:
        groups = parameter_groups(self.net, self.architecture, self.settings)
        scaled = [group | {"lr": group["lr"] * factor} for group in groups]
        return torch.optim.AdamW(scaled, weight_decay=self.settings.weight_decay, eps=_EPSILON)


def _sample(splits: Splits, seed: int) -> tuple[Photo, ...]:
    """Draw the training photos that the training loss is measured on: as many as validation photos, or 200 if more."""
    count = min(len(splits.train), max(len(splits.val), _MIN_MEASURED))
    rows = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))[:count]
    return tuple(splits.train[row] for row in sorted(rows.tolist()))
