"""`--lr auto`: a short range test finds what the given rates should be multiplied by (Smith 2017, section 3.3).

The rate rises geometrically over some fifty steps; where the loss is lowest it is already too high, and a tenth of that
still learns fast without shaking. Ten times too low a rate cost 13 points in research/learning.md.
"""

import math
from dataclasses import dataclass
from itertools import count

import torch

from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Photo
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
    settings: TrainSettings,
) -> float:
    """Return what to multiply the optimizer's rates by; the network is left as it was, the optimizer is used up."""
    before, scale = copy_weights(trainer.net), trainer.scaler.state_dict()
    ramp = _Ramp(optimizer, [group["lr"] for group in optimizer.param_groups])
    forward = trainer.workers.wrap(trainer.net)
    losses: list[float] = []
    torch.manual_seed(settings.seed)
    for turn in count():
        seed, bounds = f"{settings.seed} rates {turn}", trainer.workers.bounds
        batches = trainer.reader.augmented(photos, augmentation, seed, "trying rates", bounds, settings.train_crop)
        losses += trainer.epoch(batches, optimizer, ramp, forward, most_steps=_STEPS - len(losses))
        if len(losses) >= _STEPS:
            break
    trainer.net.load_state_dict(before)
    trainer.scaler.load_state_dict(scale)
    return choose(losses)


def factor_of(step: int) -> float:
    """Return the factor of step 0 … 49: 0.01 to 1000."""
    return float(_LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1)))


def choose(losses: list[float]) -> float:
    """Return a tenth of the factor where the smoothed loss of the steps is lowest; raise SettingsError if none fell."""
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
            "DIVERGED", "--lr auto: the loss is no number at any rate; check --weights, or set the rates"
        )
    return factor_of(best) / _BACK_FROM_LOWEST
