"""Fine-tuning: the head first, on cached descriptors; then every layer that is not frozen, on augmented photos.

All randomness is a function of (seed, phase, epoch, photo), so a run that was cut off and resumed ends with the same
weights as one that was not, and several processes end where one would.
"""

import math
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from penult.console import say
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data import transforms
from penult.export.data.dataset import Photo, Splits
from penult.export.data.loader import PhotoReader
from penult.export.errors import SettingsError
from penult.export.networks.architectures import Architecture
from penult.export.networks.network import PenultNet, copy_weights, freeze_stages, parameter_groups
from penult.export.training import lr_finder, schedule
from penult.export.training.checkpoint import Checkpoint
from penult.export.training.distributed import ProcessGroup, share_batch_norm
from penult.export.training.history import Epoch, History
from penult.export.training.trainer import EvalResult, Trainer, steps_of

# The training loss is re-measured on this many photos at least, in eval mode: dropout would hide the gap otherwise.
_MIN_MEASURED = 200
_HEAD_BATCH = 64
# With Adam's usual 1e-8, gradients of rounding noise alone become full steps: runs of one and two processes would part.
_EPSILON = 1e-6

OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True)
class Phase:
    """One stretch of learning with one optimizer.

    `train` runs an epoch and returns its mean loss; `measure` measures training, then validation photos. Epochs of a
    long phase are worth a checkpoint and a line each.
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
        workers: ProcessGroup,
        on_epoch: OnEpoch = lambda epoch: None,
    ) -> None:
        """Move the network to the device; nothing learns yet."""
        share_batch_norm(net, workers)
        self.trainer = Trainer(net, settings, splits.train, reader, workers)
        self.net, self.architecture, self.settings, self.splits = self.trainer.net, architecture, settings, splits
        self.reader, self.workers, self.on_epoch = reader, workers, on_epoch

    def run(self, checkpoint_path: Path) -> History:
        """Train, restore the best weights of each phase, and return the history; raise SettingsError on divergence."""
        checkpoint = Checkpoint(checkpoint_path, self.settings, self.splits.sha256, self.workers)
        history = checkpoint.history
        if checkpoint.state:
            say(f"resuming after {len(history.epochs)} epochs")
            self.net.load_state_dict(checkpoint.state["net"])
        for number, run in enumerate(self._phases()):
            if not checkpoint.finished(number):
                with self._measuring():
                    run(number, history, checkpoint)
        freeze_stages(self.net, self.architecture, self.settings.freeze)
        return history

    def _measuring(self) -> AbstractContextManager[None]:
        """Where the convolutions learn they run anew in every epoch: one view decides; else all views cost one pass."""
        return self.net.looking_once() if self.settings.freeze < FREEZE_ALL else nullcontext()

    def _phases(self) -> list[Callable[[int, History, Checkpoint], None]]:
        phases: list[Callable[[int, History, Checkpoint], None]] = []
        if not self.settings.starts_fresh:
            phases.append(self._run_head)
        if self.settings.freeze < FREEZE_ALL:
            phases.append(self._run_whole)
        return phases

    def _run_head(self, number: int, history: History, checkpoint: Checkpoint) -> None:
        """Train the head alone. The body runs once per photo, shared out; what then remains is one process's work."""
        freeze_stages(self.net, self.architecture, FREEZE_ALL)
        train = self.trainer.describe_all(self.splits.train, "describing training photos")
        val = self.trainer.describe_all(self.splits.val, "describing validation photos")
        if self.workers.is_first:
            self._run_phase(number, self._head_phase(train, val, history), history, checkpoint)
        self.workers.copy(self.net)
        history.epochs[:] = self.workers.same(history.epochs)

    def _run_whole(self, number: int, history: History, checkpoint: Checkpoint) -> None:
        self._run_phase(
            number, self._whole_phase(history, is_new=not checkpoint.is_within(number)), history, checkpoint
        )

    def _run_phase(self, number: int, phase: Phase, history: History, checkpoint: Checkpoint) -> None:
        """Run one phase's epochs; at its end the network holds the phase's best weights."""
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
        """Learn and measure; raise SettingsError where the loss is no number any more."""
        number, started = phase.schedule.stopping.epoch + 1, time.monotonic()
        torch.manual_seed(zlib.crc32(f"{self.settings.seed} {phase.name} {number}".encode()))
        running = phase.train(number)
        train, val = phase.measure()
        if not (math.isfinite(running) and math.isfinite(val.loss)):
            raise SettingsError("DIVERGED", "the loss is no number any more; lower --lr-head and --lr-backbone")
        rate = phase.optimizer.param_groups[0]["lr"]
        return Epoch(
            phase.name, number, rate, running, train.loss, val.loss, train.accuracy, val.accuracy,
            time.monotonic() - started, val.error,
        )  # fmt: skip

    def _head_phase(
        self, train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor], history: History
    ) -> Phase:
        """Make the phase of the head alone on descriptors and labels: its epochs cost next to nothing."""
        head, trainer, alone = self.net.head, self.trainer, ProcessGroup(self.workers.device)
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
            return trainer.judge(*train, alone), trainer.judge(*val, alone)

        plan = schedule.Schedule(optimizer, self.settings, history.best_loss, warm_steps=0)
        return Phase("head", self.settings.head_epochs, optimizer, plan, run_epoch, measure, is_long=False)

    def _whole_phase(self, history: History, is_new: bool = True) -> Phase:
        """Make the phase of every layer that is not frozen, on augmented photos."""
        settings, splits, trainer = self.settings, self.splits, self.trainer
        freeze_stages(self.net, self.architecture, settings.freeze)
        measured = _sample(splits, settings.seed)
        augmentation = transforms.BY_NAME[settings.augment]
        optimizer = self._optimizer(history.rate_factor)  # resumed: what was found before the run was cut off
        if settings.lr == "auto" and is_new:
            factor = lr_finder.find_factor(trainer, optimizer, splits.train, augmentation, settings)
            optimizer, history.rate_factor = self._optimizer(factor), factor
            history.notes.append(f"--lr auto: the rates given were multiplied by {factor:.2g}")
            say(history.notes[-1])
        forward = self.workers.wrap(self.net)
        plan = schedule.make(optimizer, settings, history.best_loss, steps_of(len(splits.train), settings.batch_size))

        def run_epoch(epoch: int) -> float:
            seed = f"{settings.seed} {epoch}"
            batches = self.reader.augmented(
                splits.train, augmentation, seed, f"epoch {epoch}", self.workers.bounds, settings.train_crop
            )
            losses = trainer.epoch(batches, optimizer, plan, forward)
            return sum(losses) / len(losses)

        def measure() -> tuple[EvalResult, EvalResult]:
            return trainer.measure(measured, "measuring"), trainer.measure(splits.val, "validating")

        return Phase("all", settings.epochs, optimizer, plan, run_epoch, measure, is_long=True)

    def _optimizer(self, factor: float) -> torch.optim.Optimizer:
        groups = parameter_groups(self.net, self.architecture, self.settings)
        scaled = [group | {"lr": group["lr"] * factor} for group in groups]
        return torch.optim.AdamW(scaled, weight_decay=self.settings.weight_decay, eps=_EPSILON)


def _sample(splits: Splits, seed: int) -> tuple[Photo, ...]:
    """Draw the training photos on which the training loss is re-measured: as many as there are for validation."""
    count = min(len(splits.train), max(len(splits.val), _MIN_MEASURED))
    rows = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))[:count]
    return tuple(splits.train[row] for row in sorted(rows.tolist()))
