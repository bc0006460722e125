"""List the trials of a sweep and estimate their time; a batch is measured at every depth of freezing."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.loader import PhotoReader
from penult.export.evaluation import svm, svm_cost
from penult.export.jobs import estimate, sweep
from penult.export.jobs.sweep_view import place
from penult.export.networks.architectures import Architecture
from penult.export.networks.network import build, freeze_stages


@dataclass(frozen=True)
class TrialPlan:
    """A trial with `repeats` seeds on `photos` training photos.

    `most_s` is the time of all repeats in seconds without early stopping.
    """

    mode: str
    at: str
    photos: int
    repeats: int
    most_s: float


def trial_plans(
    settings: TrainSettings,
    splits: Splits,
    architecture: Architecture,
    reader: PhotoReader,
    batch: estimate.Seconds,
    needed_bytes: int,
    device: torch.device,
) -> tuple[TrialPlan, ...]:
    """Return the trials of `settings.sweep` in order.

    `batch` was measured at `settings.freeze`. Reading and describing take the same time at every depth.
    """
    tried = sweep.trials(replace(settings, repeats=1), splits)
    runs = [(trial, *sweep.plan(settings, splits, trial)) for trial in tried]
    # The time of a step does not depend on the weights. Depths are measured in rising order.
    net = build(
        architecture,
        replace(settings, weights="none", freeze=0, reinit=False, sweep="no", repeats=1),
        len(splits.classes),
    )
    at_depth = {settings.freeze: batch, FREEZE_ALL: batch}
    for chosen in sorted((chosen for _, chosen, _ in runs), key=lambda chosen: chosen.freeze):
        if chosen.freeze not in at_depth:
            freeze_stages(net, architecture, chosen.freeze)
            measured = estimate.measure(net, architecture, chosen, splits, reader, device)
            at_depth[chosen.freeze] = replace(batch, learn_s=measured.learn_s)

    def most_s(chosen: TrainSettings, fewer: Splits) -> float:
        learning_s = estimate.durations(fewer, chosen, at_depth[chosen.freeze], needed_bytes, device.type == "cpu")[1]
        counts = svm.counts_of(np.array([photo.label for photo in fewer.train]), net.descriptor_length)
        return learning_s + svm_cost.here_s(chosen.svm, counts)

    return tuple(
        TrialPlan(
            trial.mode, place(settings.sweep, trial.at), len(fewer.train), settings.repeats,
            settings.repeats * most_s(chosen, fewer),
        )
        for trial, chosen, fewer in runs
    )  # fmt: skip
