"""When to lower the learning rate and when to stop.

plateau   validation loss alone decides both: a rate that no longer helps falls, a run that no longer gains ends
onecycle  the rate rises, then falls to nothing over all epochs (Smith 2018); no early stop, which would cut the fall
Both remember the best epoch, whose weights are kept.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from penult.export.config.train import ONE_CYCLE, TrainSettings

_RISING_SHARE = 0.25
_START_DIVISOR = 10
_END_DIVISOR = 1000


@dataclass
class EarlyStopping:
    """Stops after `patience` epochs without a validation loss below the phase's `lowest`.

    `best` may be from before this phase. A phase that still comes down to it is not cut off: its rate must have had the
    time to fall first, and the rate, too, falls by what this phase reaches.
    """

    patience: int
    best: float = math.inf
    best_epoch: int = 0
    epoch: int = 0
    lowest: float = math.inf
    lowest_epoch: int = 0

    def improved(self, val_loss: float) -> bool:
        """Take note of one more epoch; return whether it is the best so far (NaN never is)."""
        self.epoch += 1
        if val_loss < self.lowest:
            self.lowest, self.lowest_epoch = val_loss, self.epoch
        if val_loss < self.best:
            self.best, self.best_epoch = val_loss, self.epoch
            return True
        return False

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.epoch - self.lowest_epoch >= self.patience


class Schedule:
    """Rates and end of one phase: rates rise over the first `warm_steps` steps, then validation loss decides."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainSettings, best: float, warm_steps: int) -> None:
        """Start from the optimizer's rates; an epoch must beat the loss `best` to count as better."""
        self.optimizer, self.warm_steps = optimizer, warm_steps
        self.targets = [group["lr"] for group in optimizer.param_groups]
        self.stopping = EarlyStopping(settings.stop_patience, best=best)
        self.step = 0
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=settings.lr_factor, patience=settings.lr_patience
        )

    def before_step(self) -> None:
        """Set the rates of the optimizer's next step."""
        self.step += 1
        if self.step <= self.warm_steps:
            for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
                group["lr"] = target * self.step / self.warm_steps

    def after_epoch(self, val_loss: float) -> bool:
        """Take note of an epoch; return whether it is the best so far."""
        self.plateau.step(val_loss)
        return self.stopping.improved(val_loss)

    @property
    def is_over(self) -> bool:
        """Whether another epoch would not help."""
        return self.stopping.should_stop

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return {"step": self.step, "stopping": vars(self.stopping), "rates": self.plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step = state["step"]
        vars(self.stopping).update(state["stopping"])
        self.plateau.load_state_dict(state["rates"])


class OneCycle(Schedule):
    """The rate as a fixed function of the step: a quarter of the way up, the rest down along a cosine."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainSettings, best: float, steps: int) -> None:
        """Spread the cycle over `settings.epochs` epochs of `steps` steps."""
        super().__init__(optimizer, settings, best, warm_steps=0)
        self.total = steps * settings.epochs
        self.stopping.patience = settings.epochs

    def before_step(self) -> None:
        """Set the rates of the optimizer's next step."""
        factor = one_cycle(self.step / max(self.total - 1, 1))
        self.step += 1
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target * factor

    def after_epoch(self, val_loss: float) -> bool:
        """Take note of an epoch; return whether it is the best so far."""
        return self.stopping.improved(val_loss)


def one_cycle(progress: float) -> float:
    """Return the share of the highest rate at `progress` 0…1: a tenth, up to 1 at a quarter, down to a thousandth."""
    if progress < _RISING_SHARE:
        low, reached = 1 / _START_DIVISOR, progress / _RISING_SHARE
    else:
        low, reached = 1 / _END_DIVISOR, (1 - progress) / (1 - _RISING_SHARE)
    return low + (1 - low) * (1 - math.cos(math.pi * reached)) / 2


def make(optimizer: torch.optim.Optimizer, settings: TrainSettings, best: float, steps: int) -> Schedule:
    """Return the schedule that the settings name, for epochs of `steps` steps."""
    kind = OneCycle if settings.schedule == ONE_CYCLE else Schedule
    return kind(optimizer, settings, best, steps)
