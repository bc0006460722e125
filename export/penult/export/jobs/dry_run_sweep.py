"""What a sweep would try, and how long it would take: a batch is measured at every depth of freezing."""

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
    """One way to learn, `photos` from all classes, with `repeats` seeds: `most_s` is the time of all of them.

    That is if nothing stops them early, as in a plan of one run.
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
    """Return what `settings.sweep` would try, in its order.

    `batch` was measured at `settings.freeze`; reading and describing take as long at every depth.
    """
    tried = sweep.trials(replace(settings, repeats=1), splits)
    runs = [(trial, *sweep.plan(settings, splits, trial)) for trial in tried]
    # Weights do not change how long a step takes; these are thrown away. A module stays frozen, so depth only grows.
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
