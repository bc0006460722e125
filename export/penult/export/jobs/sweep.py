"""The trials of `penult train --sweep`, and what they result in.

freeze   accuracy by the number of frozen conv stages (0 to 5, and all), with the others continued or re-initialised.
         Yosinski et al. (2014) found that early stages transfer well and middle ones poorly.
labels   accuracy by labelled photos per class: from scratch, fine-tuned, and frozen + SVM. It shows whether to label
         more.
layers   accuracy of an SVM on each layer, from the first conv stage to the penultimate one, of the network as given and
         after fine-tuning. Yosinski et al. (2014) found that first layers are general and last ones specific to a task.

Validation photos choose; the test photos are only reported.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from penult.export.config import known_networks
from penult.export.config.known_networks import layers_of
from penult.export.config.train import ALL_STAGES, FREEZE_ALL, LAYERS, TrainSettings, freeze_text
from penult.export.data.dataset import Splits

CONTINUE, REINIT, FROZEN = "continue", "re-initialise", "frozen + SVM"
FINE_TUNED, SCRATCH = "fine-tuned", "from scratch"
# Of a sweep over layers; the last two with --weights none.
AS_GIVEN, RANDOM, TRAINED = "as given", "random weights", "trained"
_LABELS = (5, 10, 20, 50, 100, 200, 500, 1000)
# With fewer photos an epoch has fewer steps. Epochs and patience grow by the same factor, at most this one.
_MAX_TIMES_EPOCHS = 8


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. `mode` is a line of the plot, `at` its place: frozen stages, photos per class, or layer."""

    mode: str
    at: int
    repeat: int


@dataclass(frozen=True)
class Outcome:
    """The result of a trial. `scorer` is the better one on validation photos; the accuracies are its own.

    The dense head is measured unless the sweep is over layers, which have an SVM each.
    """

    mode: str
    at: int
    repeat: int
    photos: int
    scorer: str
    val_accuracy: float
    test_accuracy: float
    dense_test_accuracy: float | None
    svm_test_accuracy: float | None
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """The outcomes of a sweep in order; its intervals depend on `test_photos`, its choice on `val_photos`."""

    kind: str
    outcomes: tuple[Outcome, ...]
    test_photos: int
    val_photos: int = 0

    def points(self, mode: str) -> dict[int, list[Outcome]]:
        """Return the outcomes of one mode by place; each place has one per repeat."""
        found: dict[int, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.mode == mode:
                found.setdefault(outcome.at, []).append(outcome)
        return dict(sorted(found.items()))

    def modes(self) -> list[str]:
        """Return the modes, in the order of their first trial."""
        return list(dict.fromkeys(outcome.mode for outcome in self.outcomes))


def trials(settings: TrainSettings, splits: Splits) -> list[Trial]:
    """Return the trials of a sweep, the quickest first."""
    repeats = range(settings.repeats)
    if settings.sweep == "freeze":
        modes = [(FROZEN, FREEZE_ALL)]
        modes += [(mode, count) for mode in (CONTINUE, REINIT) for count in reversed(range(ALL_STAGES + 1))]
    elif settings.sweep == "layers":
        modes = [(mode, at) for mode in _layer_modes(settings) for at in places_of(settings.arch)]
    else:
        modes = [(mode, n) for n in _label_counts(splits) for mode in (FROZEN, FINE_TUNED, SCRATCH)]
    return [Trial(mode, at, repeat) for repeat in repeats for mode, at in modes]


def plan(settings: TrainSettings, splits: Splits, trial: Trial) -> tuple[TrainSettings, Splits]:
    """Return the settings and photos of one trial."""
    # sweep="no": settings reject a sweep over labels that freezes all stages, and one trial does.
    seeded = replace(settings, sweep="no", repeats=1, seed=settings.seed + trial.repeat)
    frozen = seeded
    if settings.weights != "none":
        frozen = replace(seeded, freeze=FREEZE_ALL, reinit=False, lr="fixed", dropout_channels=0.0)
    if settings.sweep == "freeze":
        kept = replace(seeded, freeze=trial.at, reinit=trial.mode == REINIT) if trial.at <= ALL_STAGES else frozen
        return kept, splits
    if settings.sweep == "layers":
        return frozen if trial.mode == AS_GIVEN else seeded, splits
    fewer = _subset(splits, trial.at, seeded.seed)
    longer = _longer(seeded, len(splits.train) / len(fewer.train))
    scratch = replace(longer, weights="none", freeze=0, reinit=False, lr="fixed")
    return {FROZEN: frozen, FINE_TUNED: longer, SCRATCH: scratch}[trial.mode], fewer


def _layer_modes(settings: TrainSettings) -> tuple[str, ...]:
    if settings.freezes_all:
        return (AS_GIVEN,)
    return (RANDOM, TRAINED) if settings.weights == "none" else (AS_GIVEN, FINE_TUNED)


def places_of(arch: str) -> tuple[int, ...]:
    """Return the places of a network's layers on the axis, from the input."""
    return tuple(LAYERS.index(name) for name in layers_of(known_networks.get(arch)))


def _label_counts(splits: Splits) -> list[int]:
    most = max(Counter(photo.label for photo in splits.train).values())
    # The gain of more labels is read off the last step; a small step would show only noise.
    return [n for n in _LABELS if 1.4 * n < most] + [most]


def _subset(splits: Splits, per_class: int, seed: int) -> Splits:
    """Keep at most `per_class` training photos of each class, and the same share of the validation photos.

    A smaller subset is part of a larger one. With few labels there would be few validation photos too.
    """
    kept, val = [], []
    for label in range(len(splits.classes)):
        group = [photo for photo in splits.train if photo.label == label]
        held = [photo for photo in splits.val if photo.label == label]
        order = np.random.default_rng([seed, label]).permutation(len(group))[:per_class]
        kept += [group[index] for index in sorted(order)]
        val += held[: max(1, round(len(held) * len(order) / len(group)))] if group else held
    return replace(splits, train=tuple(kept), val=tuple(val))


def _longer(settings: TrainSettings, times: float) -> TrainSettings:
    factor = math.ceil(min(times, _MAX_TIMES_EPOCHS))
    if settings.schedule != "plateau":
        return replace(settings, epochs=settings.epochs * factor)
    return replace(
        settings,
        epochs=settings.epochs * factor,
        lr_patience=settings.lr_patience * factor,
        stop_patience=(settings.stop_patience + 2) * factor,
    )


def trial_name(kind: str, trial: Trial | Outcome) -> str:
    """Return the name of a trial for progress lines."""
    if kind == "labels":
        return f"{trial.mode}, {trial.at} photos per class"
    if kind == "layers":
        return f"{trial.mode}, {LAYERS[trial.at]}"
    return f"{trial.mode}, {freeze_text(trial.at)} stages frozen"
