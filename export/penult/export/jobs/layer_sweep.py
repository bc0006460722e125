"""The trials of `penult train --sweep layers`: one network, one pass over the photos, an SVM on each layer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from penult.bundle.manifest import SVM
from penult.export.config.known_networks import layers_of
from penult.export.config.train import LAYERS, PENULTIMATE, TrainSettings
from penult.export.data.split_folders import PARTS
from penult.export.evaluation import svm
from penult.export.jobs.sweep import AS_GIVEN, FINE_TUNED, RANDOM, Outcome, Trial, plan
from penult.export.jobs.train import Run, fine_tune
from penult.export.networks import architectures
from penult.export.networks.layers import layer_of
from penult.export.networks.network import build
from penult.export.training.finetune import FineTuner
from penult.export.training.history import History

# Layers whose outputs differ by no more than rounding are one: the mean of stage 5, and the penultimate layer.
_ROUNDING = 1e-5


def layer_outcomes(
    settings: TrainSettings, run: Run, trial: Trial, checkpoint: Path, known: Sequence[Outcome]
) -> Iterator[Outcome]:
    """Yield the outcome of each layer of the network of `trial`, without those that are `known`, from the input."""
    chosen, splits = plan(settings, run.splits, trial)
    tuner, history = _network(chosen, replace(run, splits=splits), trial, checkpoint)
    architecture = tuner.architecture
    names = layers_of(architecture)
    layers = [layer for layer in (layer_of(architecture, name) for name in names) if layer]
    rows, truth = dict[str, Any](), dict[str, Any]()
    for part in PARTS:
        found, labels = tuner.trainer.describe_layers(getattr(splits, part), f"describing {part} photos", layers)
        rows[part], truth[part] = {name: values.cpu().numpy() for name, values in found.items()}, labels.cpu().numpy()
    before = {(outcome.mode, outcome.at): outcome for outcome in known if outcome.repeat == trial.repeat}
    for name in names:
        at = LAYERS.index(name)
        if (trial.mode, at) in before:
            continue
        outcome = _same_as(settings, trial.mode, at, before, rows["train"])
        if outcome is None:
            fitted = svm.fit(
                rows["train"][name], truth["train"], chosen.seed, chosen.svm, chosen.class_weight,
                is_fine_tuned=trial.mode not in (AS_GIVEN, RANDOM),
            )  # fmt: skip
            val, test = (
                float((fitted.scores(rows[part][name]).argmax(1) == truth[part]).mean()) for part in ("val", "test")
            )
            outcome = Outcome(trial.mode, at, trial.repeat, len(splits.train), SVM, val, test, None, test, 0, 0.0)
        outcome = replace(
            outcome, mode=trial.mode, at=at, epochs=len(history.epochs),
            seconds=sum(epoch.seconds for epoch in history.epochs),
        )  # fmt: skip
        before[trial.mode, at] = outcome
        yield outcome


def _network(chosen: TrainSettings, run: Run, trial: Trial, checkpoint: Path) -> tuple[FineTuner, History]:
    """Return the trainer of the network as given, or after training, and the history of the training."""
    if trial.mode not in (AS_GIVEN, RANDOM):
        tuner, _, history = fine_tune(chosen, run, checkpoint)
        return tuner, history
    architecture = architectures.get(chosen.arch)
    net = build(architecture, chosen, len(run.splits.classes))
    return FineTuner(net, architecture, chosen, run.splits, run.reader, run.processes), History()


def _same_as(
    settings: TrainSettings, mode: str, at: int, before: dict[tuple[str, int], Outcome], rows: dict[str, Any]
) -> Outcome | None:
    """Return the outcome of a layer that gives the same numbers; None if there is none.

    Frozen stages are bit-identical before and after. In many networks the penultimate layer is the mean of stage 5.
    """
    if mode == FINE_TUNED and at < settings.freeze:
        return before.get((AS_GIVEN, at))
    last = LAYERS.index("stage5")
    if LAYERS[at] != PENULTIMATE or (mode, last) not in before or rows["stage5"].shape != rows[PENULTIMATE].shape:
        return None
    largest = abs(rows["stage5"] - rows[PENULTIMATE]).max()
    return before[mode, last] if largest <= _ROUNDING * abs(rows["stage5"]).max() else None
