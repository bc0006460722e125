"""`penult train --sweep`: the same photos learnt in many ways, as a table and a picture.

freeze   how many conv stages to keep (0 to 5, and all), with the rest continued or re-initialised: Yosinski et al.
         (2014) found early stages transfer and the middle ones fragile; here is what your photos say
labels   accuracy against labelled photos per class, from scratch, fine-tuned, and frozen + SVM: whether to label more

Nothing is published. Validation photos choose; the test photos are only reported. What is done is written after every
trial, and `--resume` goes on from there.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penult.bundle.manifest import DENSE, SVM
from penult.console import say
from penult.export.config.train import ALL_STAGES, FREEZE_ALL, TrainSettings, freeze_text
from penult.export.data.dataset import Splits
from penult.export.disk import writing
from penult.export.errors import SettingsError
from penult.export.evaluation import svm
from penult.export.jobs.early import UNFINISHED
from penult.export.networks.network import PenultNet
from penult.export.training.checkpoint import NOTHING_TO_RESUME
from penult.export.training.distributed import ProcessGroup
from penult.export.training.history import History
from penult.export.training.trainer import Trainer

CONTINUE, REINIT, FROZEN = "continue", "re-initialise", "frozen + SVM"
FINE_TUNED, SCRATCH = "fine-tuned", "from scratch"
_LABELS = (5, 10, 20, 50, 100, 200, 500, 1000)
# Few photos make few steps an epoch: epochs and patience grow as the photos shrink, up to this.
_MAX_TIMES_EPOCHS = 8

Learn = Callable[[TrainSettings, Splits, Path], tuple[PenultNet, Trainer, History]]


@dataclass(frozen=True)
class Trial:
    """One way to learn: `mode` is a line of the picture, `at` its place (stages kept, or photos per class)."""

    mode: str
    at: int
    repeat: int


@dataclass(frozen=True)
class Outcome:
    """What a trial gave. `scorer` is the better one on validation photos, whose accuracies these are."""

    mode: str
    at: int
    repeat: int
    photos: int
    scorer: str
    val_accuracy: float
    test_accuracy: float
    dense_test_accuracy: float
    svm_test_accuracy: float | None
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """All that a sweep found, in order; the intervals rest on `test_photos`, the choice on `val_photos`."""

    kind: str
    outcomes: tuple[Outcome, ...]
    test_photos: int
    val_photos: int = 0

    def points(self, mode: str) -> dict[int, list[Outcome]]:
        """Return the outcomes of one mode by place, each with its repeats."""
        found: dict[int, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.mode == mode:
                found.setdefault(outcome.at, []).append(outcome)
        return dict(sorted(found.items()))

    def modes(self) -> list[str]:
        """Return the modes, in the order of their first trial."""
        return list(dict.fromkeys(outcome.mode for outcome in self.outcomes))


def trials(settings: TrainSettings, splits: Splits) -> list[Trial]:
    """Return what the sweep will try, cheapest first where that does not matter."""
    repeats = range(settings.repeats)
    if settings.sweep == "freeze":
        modes = [(FROZEN, FREEZE_ALL)]
        modes += [(mode, count) for mode in (CONTINUE, REINIT) for count in reversed(range(ALL_STAGES + 1))]
    else:
        modes = [(mode, n) for n in _label_counts(splits) for mode in (FROZEN, FINE_TUNED, SCRATCH)]
    return [Trial(mode, at, repeat) for repeat in repeats for mode, at in modes]


def run(
    settings: TrainSettings,
    splits: Splits,
    workers: ProcessGroup,
    learn: Learn,
    folder: Path,
    on_outcome: Callable[[Sweep, Outcome | None], None],
) -> Sweep:
    """Run every trial that is not in `folder` yet; raise PenultError.

    `on_outcome` gets all that there is, and the trial that has just ended: None for those of a run before.
    """
    record = _Record(folder / "trials.json", settings, splits, workers)
    wanted = trials(settings, splits)
    if settings.resume:
        say(f"{len(record.done)} of {len(wanted)} trials were finished before" if record.done else NOTHING_TO_RESUME)
    if record.done and workers.is_first:
        on_outcome(record.sweep, None)  # a run cut off after a trial's record had not drawn it
    for number, trial in enumerate(wanted, 1):
        if trial in record.done:
            continue
        say(f"trial {number} of {len(wanted)}: {_title(settings, trial)}")
        checkpoint = folder / UNFINISHED / f"{number}.pt"
        outcome = _try(*plan(settings, splits, trial), trial, learn, checkpoint)
        record.add(outcome)
        if workers.is_first:
            checkpoint.unlink(missing_ok=True)
            on_outcome(record.sweep, outcome)
    return record.sweep


def plan(settings: TrainSettings, splits: Splits, trial: Trial) -> tuple[TrainSettings, Splits]:
    """Return the settings and photos of one trial."""
    # A plain run: a trial that freezes all is no sweep over labels that does, which is refused.
    seeded = replace(settings, sweep="no", repeats=1, seed=settings.seed + trial.repeat)
    frozen = replace(seeded, freeze=FREEZE_ALL, reinit=False, lr="fixed")
    if settings.sweep == "freeze":
        kept = replace(seeded, freeze=trial.at, reinit=trial.mode == REINIT) if trial.at <= ALL_STAGES else frozen
        return kept, splits
    fewer = _subset(splits, trial.at, seeded.seed)
    longer = _longer(seeded, len(splits.train) / len(fewer.train))
    scratch = replace(longer, weights="none", freeze=0, reinit=False, lr="fixed")
    return {FROZEN: frozen, FINE_TUNED: longer, SCRATCH: scratch}[trial.mode], fewer


def _try(settings: TrainSettings, splits: Splits, trial: Trial, learn: Learn, checkpoint: Path) -> Outcome:
    net, trainer, history = learn(settings, splits, checkpoint)
    vectors, truth = {}, {}
    for part in ("train", "val", "test"):
        found = trainer.describe_all(getattr(splits, part), f"describing {part} photos")
        vectors[part], truth[part] = (values.cpu() for values in found)
    labels = truth["train"].numpy()
    # Cross-validation of the SVM needs two photos of each class.
    has_svm = min(Counter(labels.tolist()).values()) >= 2
    fitted = None
    if has_svm:
        fitted = svm.fit(vectors["train"].numpy(), labels, settings.seed, settings.svm, settings.class_weight)
    head = net.head.cpu().eval()

    def accuracies(part: str) -> dict[str, float]:
        with torch.no_grad():
            answers = {DENSE: head(vectors[part]).argmax(1).numpy()}
        if fitted:
            answers[SVM] = fitted.scores(vectors[part].numpy()).argmax(1)
        return {name: float((answer == truth[part].numpy()).mean()) for name, answer in answers.items()}

    val, test = accuracies("val"), accuracies("test")
    scorer = SVM if fitted and (trial.mode == FROZEN or val[SVM] > val[DENSE]) else DENSE
    return Outcome(
        **asdict(trial), photos=len(splits.train), scorer=scorer, val_accuracy=val[scorer], test_accuracy=test[scorer],
        dense_test_accuracy=test[DENSE], svm_test_accuracy=test.get(SVM), epochs=len(history.epochs),
        seconds=sum(epoch.seconds for epoch in history.epochs),
    )  # fmt: skip


class _Record:
    """The trials done, in a file of their own; those of other settings or photos are refused on --resume."""

    def __init__(self, path: Path, settings: TrainSettings, splits: Splits, workers: ProcessGroup) -> None:
        self._path, self._workers = path, workers
        self._identity = [settings.as_json(), splits.sha256]
        self.sweep = Sweep(settings.sweep, (), len(splits.test), len(splits.val))
        before = workers.same(path.read_text() if workers.is_first and settings.resume and path.is_file() else "")
        if before:
            self._load(json.loads(before))

    @property
    def done(self) -> set[Trial]:
        return {Trial(outcome.mode, outcome.at, outcome.repeat) for outcome in self.sweep.outcomes}

    def _load(self, state: dict[str, Any]) -> None:
        if state["identity"] != json.loads(json.dumps(self._identity)):
            raise SettingsError(
                "RESUME", "--resume: the sweep begun here had other settings or photos; repeat those, or leave it out"
            )
        self.sweep = replace(self.sweep, outcomes=tuple(Outcome(**values) for values in state["outcomes"]))

    def add(self, outcome: Outcome) -> None:
        self.sweep = replace(self.sweep, outcomes=(*self.sweep.outcomes, outcome))
        if not self._workers.is_first:
            return
        scratch = self._path.with_suffix(".tmp")
        state = {"identity": self._identity, "outcomes": [asdict(o) for o in self.sweep.outcomes]}
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(state, indent=1))
            scratch.replace(self._path)


def _label_counts(splits: Splits) -> list[int]:
    most = max(Counter(photo.label for photo in splits.train).values())
    # A last step of few photos tells nothing but noise, and what a doubling brings is read off it.
    return [n for n in _LABELS if 1.4 * n < most] + [most]


def _subset(splits: Splits, per_class: int, seed: int) -> Splits:
    """Keep at most `per_class` training photos of each class, and as large a share of the validation photos.

    A smaller subset is part of a larger one. Who has five labels per class has no three hundred to validate with.
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
        settings, epochs=settings.epochs * factor, lr_patience=settings.lr_patience * factor,
        stop_patience=(settings.stop_patience + 2) * factor,
    )  # fmt: skip


def _title(settings: TrainSettings, trial: Trial) -> str:
    seed = f", seed {settings.seed + trial.repeat}" if settings.repeats > 1 else ""
    return f"{way(settings.sweep, trial)}{seed}"


def way(kind: str, trial: Trial | Outcome) -> str:
    """Name one way to learn, for a person."""
    if kind == "labels":
        return f"{trial.mode}, {trial.at} photos per class"
    return f"{trial.mode}, {freeze_text(trial.at)} stages frozen"
