"""`--lr auto`: a learning-rate range test finds the factor for the given rates (Smith 2017, section 3.3).

The rate rises geometrically over 50 steps. The rate at the lowest loss is already too high; a tenth of it learns fast
and stays stable. A rate ten times too low cost 13 points of accuracy (research/learning.md).
"""

import math
from dataclasses import dataclass
from itertools import count

import torch

from penult.export.data.splitting import Photo
from penult.export.data.transforms import Augmentation
from penult.export.errors import SettingsError
from penult.export.networks.network import copy_weights
from penult.export.training.trainer import Trainer

_STEPS = 50
_LOWEST, _HIGHEST = 1e-2, 1e3
_SMOOTHING = 0.9
_BACK_FROM_LOWEST = 10


@dataclass
class _Ramp:
    """Rates that rise geometrically from step to step."""

    optimizer: torch.optim.Optimizer
    targets: list[float]
    step: int = 0

    def before_step(self) -> None:
        factor = factor_of(self.step)
        self.step += 1
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target * factor


def find_factor(
    trainer: Trainer,
    optimizer: torch.optim.Optimizer,
    photos: tuple[Photo, ...],
    augmentation: Augmentation,
    seed: int,
    train_crop: int = 0,
) -> float:
    """Return the factor for the optimizer's rates.

    The network is restored afterwards; the optimizer must not be used again.

    Args:
        trainer: Holds the network.
        optimizer: Has the rates to scale.
        photos: The training photos.
        augmentation: How they are cropped.
        seed: Decides order and crops.
        train_crop: Side of the crops in pixels; 0 is the size of serving.

    Raises:
        SettingsError: The loss was not finite at any rate.
    """
    before, scale = copy_weights(trainer.net), trainer.scaler.state_dict()
    ramp = _Ramp(optimizer, [group["lr"] for group in optimizer.param_groups])
    forward = trainer.processes.wrap(trainer.net)
    losses: list[float] = []
    torch.manual_seed(seed)
    for turn in count():
        batches = trainer.reader.augmented(
            photos, augmentation, f"{seed} rates {turn}", "trying rates", trainer.processes.bounds, train_crop
        )
        losses += trainer.epoch(batches, optimizer, ramp, forward, max_steps=_STEPS - len(losses))
        if len(losses) >= _STEPS:
            break
    trainer.net.load_state_dict(before)
    trainer.scaler.load_state_dict(scale)
    return choose(losses)


def factor_of(step: int) -> float:
    """Return the factor of step 0 … 49: 0.01 to 1000."""
    return float(_LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1)))


def choose(losses: list[float]) -> float:
    """Return a tenth of the factor at the lowest smoothed loss; raise SettingsError if it never was finite."""
    smooth, low, best = 0.0, math.inf, 0
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            break
        smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
        value = smooth / (1 - _SMOOTHING ** (step + 1))
        if value < low:
            low, best = value, step
    if math.isinf(low):
        raise SettingsError(
            "DIVERGED",
            "--lr auto: the loss is not finite at any rate; check --weights, or set --lr-head and --lr-backbone",
        )
    return factor_of(best) / _BACK_FROM_LOWEST
