"""Learning-rate schedules and early stopping.

- plateau: Validation loss alone lowers the rate and stops the run.
- onecycle: The rate rises, then falls to almost 0 over all epochs (Smith 2018). There is no early stopping.

Both keep track of the best epoch, whose weights are kept.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from penult.export.config.train import ONE_CYCLE, TrainSettings

T = TypeVar("T")

_RISING_SHARE = 0.25
_START_DIVISOR = 10
_END_DIVISOR = 1000


@dataclass
class EarlyStopping:
    """Stop after `patience` epochs without a validation loss below the phase's `lowest`.

    `best` may come from an earlier phase. A phase whose loss is still above it is not stopped while its own loss falls,
    because its rate must have had the time to fall first.
    """

    patience: int
    best: float = math.inf
    best_epoch: int = 0
    epoch: int = 0
    lowest: float = math.inf
    lowest_epoch: int = 0

    def improved(self, val_loss: float) -> bool:
        """Record an epoch; return True if it is the best so far (NaN never is)."""
        self.epoch += 1
        if val_loss < self.lowest:
            self.lowest, self.lowest_epoch = val_loss, self.epoch
        if val_loss < self.best:
            self.best, self.best_epoch = val_loss, self.epoch
            return True
        return False

    @property
    def should_stop(self) -> bool:
        """True if patience has run out."""
        return self.epoch - self.lowest_epoch >= self.patience


class Schedule:
    """Rates and end of one phase: rates rise over the first `warm_steps` steps, then validation loss lowers them."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        best: float,
        *,
        stop_patience: int,
        warm_steps: int = 0,
        lr_factor: float = TrainSettings.lr_factor,
        lr_patience: int = TrainSettings.lr_patience,
    ) -> None:
        """Start from the optimizer's rates.

        Args:
            optimizer: Its rates are the targets of the warm-up.
            best: The validation loss that an epoch must beat to be the best.
            stop_patience: Epochs without a better validation loss before the phase ends.
            warm_steps: Steps over which the rates rise.
            lr_factor: Multiplies the rates when validation loss stalls.
            lr_patience: Epochs without a better validation loss before that.
        """
        self.optimizer = optimizer
        self.warm_steps = warm_steps
        self.targets = [group["lr"] for group in optimizer.param_groups]
        self.stopping = EarlyStopping(stop_patience, best=best)
        self.step = 0
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=lr_factor, patience=lr_patience)

    def batches(self, given: Iterable[T]) -> Iterator[T]:
        """Yield the batches of an epoch that are learnt from: all."""
        yield from given

    def before_step(self) -> None:
        """Set the rates of the optimizer's next step."""
        self.step += 1
        if self.step <= self.warm_steps:
            for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
                group["lr"] = target * self.step / self.warm_steps

    def after_epoch(self, val_loss: float) -> bool:
        """Record an epoch; return True if it is the best so far."""
        self.plateau.step(val_loss)
        return self.stopping.improved(val_loss)

    @property
    def is_over(self) -> bool:
        """True if the phase ends here."""
        return self.stopping.should_stop

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return {"step": self.step, "stopping": vars(self.stopping), "rates": self.plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.step = state["step"]
        vars(self.stopping).update(state["stopping"])
        self.plateau.load_state_dict(state["rates"])


class OneCycle(Schedule):
    """The rate rises over a quarter of the steps, then falls along a cosine."""

    def __init__(self, optimizer: torch.optim.Optimizer, best: float, steps: int, epochs: int) -> None:
        """Spread the cycle over `epochs` epochs of `steps` steps."""
        super().__init__(optimizer, best, stop_patience=epochs)
        self.total = steps * epochs

    def before_step(self) -> None:
        """Set the rates of the optimizer's next step."""
        factor = one_cycle(self.step / max(self.total - 1, 1))
        self.step += 1
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target * factor

    def after_epoch(self, val_loss: float) -> bool:
        """Record an epoch; return True if it is the best so far."""
        return self.stopping.improved(val_loss)


def one_cycle(progress: float) -> float:
    """Return the share of the highest rate: 0.1 at progress 0, 1 at 0.25 and 0.001 at 1."""
    if progress < _RISING_SHARE:
        low, reached = 1 / _START_DIVISOR, progress / _RISING_SHARE
    else:
        low, reached = 1 / _END_DIVISOR, (1 - progress) / (1 - _RISING_SHARE)
    return low + (1 - low) * (1 - math.cos(math.pi * reached)) / 2


def make(optimizer: torch.optim.Optimizer, settings: TrainSettings, best: float, steps: int) -> Schedule:
    """Return the schedule that the settings name, for epochs of `steps` steps."""
    if settings.schedule == ONE_CYCLE:
        return OneCycle(optimizer, best, steps, settings.epochs)
    return plateau(optimizer, settings, best, warm_steps=steps)


def plateau(optimizer: torch.optim.Optimizer, settings: TrainSettings, best: float, warm_steps: int = 0) -> Schedule:
    """Return the plateau schedule with the patience of the settings."""
    return Schedule(
        optimizer,
        best,
        stop_patience=settings.stop_patience,
        warm_steps=warm_steps,
        lr_factor=settings.lr_factor,
        lr_patience=settings.lr_patience,
    )
