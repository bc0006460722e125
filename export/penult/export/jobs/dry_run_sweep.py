"""List the trials of a sweep and estimate their time; a batch is measured at every depth of freezing."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from penult.export.config.known_networks import layers_of
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.loader import PhotoReader
from penult.export.evaluation import svm, svm_cost
from penult.export.jobs import estimate, sweep
from penult.export.jobs.sweep_view import place
from penult.export.networks.architectures import Architecture
from penult.export.networks.layers import layer_of
from penult.export.networks.network import PenultNet, build, freeze_stages


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
    by_layer = settings.sweep == "layers"
    if by_layer:  # one training and one pass over the photos for all layers of a mode
        tried = list({trial.mode: trial for trial in tried}.values())
    runs = [(trial, *sweep.plan(settings, splits, trial)) for trial in tried]
    # The time of a step does not depend on the weights. Depths are measured in rising order.
    net = build(
        architecture,
        replace(settings, weights="none", freeze=0, reinit=False, sweep="no", repeats=1),
        len(splits.classes),
    )
    lengths = _lengths(net, architecture) if by_layer else (net.descriptor_length,)
    at_depth = {settings.freeze: batch, FREEZE_ALL: batch}
    for chosen in sorted((chosen for _, chosen, _ in runs), key=lambda chosen: chosen.freeze):
        if chosen.freeze not in at_depth:
            freeze_stages(net, architecture, chosen.freeze)
            measured = estimate.measure(net, architecture, chosen, splits, reader, device)
            at_depth[chosen.freeze] = replace(batch, learn_s=measured.learn_s)

    def most_s(chosen: TrainSettings, fewer: Splits) -> float:
        learning_s = estimate.durations(fewer, chosen, at_depth[chosen.freeze], needed_bytes, device.type == "cpu")[1]
        labels = np.array([photo.label for photo in fewer.train])
        return learning_s + sum(svm_cost.here_s(chosen.svm, svm.counts_of(labels, length)) for length in lengths)

    return tuple(
        TrialPlan(
            trial.mode, "all" if by_layer else place(settings.sweep, trial.at), len(fewer.train), settings.repeats,
            settings.repeats * most_s(chosen, fewer),
        )
        for trial, chosen, fewer in runs
    )  # fmt: skip


def _lengths(net: PenultNet, architecture: Architecture) -> tuple[int, ...]:
    """Return how many numbers each layer gives."""
    layers = [layer for layer in (layer_of(architecture, name) for name in layers_of(architecture)) if layer]
    crop = architecture.preprocess.crop
    with torch.no_grad():
        read, taken = net.eval().describe_layers(torch.zeros(1, 3, crop, crop), layers)
    return tuple(rows.shape[1] for rows in (*taken.values(), read))
