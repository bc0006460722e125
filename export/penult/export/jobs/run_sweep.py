"""`penult train --sweep`: run every trial, and write its record, the table and the plot after each.

Nothing is published. `--resume` skips the trials that are on record.
"""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from penult.bundle.manifest import DENSE, SVM
from penult.console import say
from penult.export.config.train import TrainSettings
from penult.export.data.split_folders import PARTS
from penult.export.disk import writing
from penult.export.errors import SettingsError
from penult.export.evaluation import svm
from penult.export.evaluation.choice import by_validation
from penult.export.jobs import sweep_view
from penult.export.jobs.layer_sweep import layer_outcomes
from penult.export.jobs.plot_sweep import plot_sweep
from penult.export.jobs.preflight import UNFINISHED, sweep_folder
from penult.export.jobs.sweep import FROZEN, Outcome, Sweep, Trial, plan, trial_name, trials
from penult.export.jobs.train import Run, fine_tune, started_run
from penult.export.training.checkpoint import NOTHING_TO_RESUME, run_identity


def run_sweep(settings: TrainSettings) -> Sweep:
    """Run every trial of `settings.sweep` and return the outcomes; raise PenultError."""
    folder = sweep_folder(settings)
    with started_run(settings) as run:
        record = _Record(folder / "trials.json", settings, run)
        wanted = trials(settings, run.splits)
        if settings.resume:
            say(f"{len(record.done)} of {len(wanted)} trials are done" if record.done else NOTHING_TO_RESUME)
        if record.done and run.processes.is_first:
            _draw(folder, record.sweep)  # the run may have been cut off between a trial's record and its plot
        for number, trial in enumerate(wanted, 1):
            if trial in record.done:
                continue
            seed = f", seed {settings.seed + trial.repeat}" if settings.repeats > 1 else ""
            say(f"trial {number} of {len(wanted)}: {trial_name(settings.sweep, trial)}{seed}")
            # All layers of a mode are of one network, and so of one checkpoint, which a resumed run finds again.
            of_mode = next(n for n, one in enumerate(wanted, 1) if (one.mode, one.repeat) == (trial.mode, trial.repeat))
            by_layer = settings.sweep == "layers"
            checkpoint = folder / UNFINISHED / f"{of_mode if by_layer else number}.pt"
            found = (
                layer_outcomes(settings, run, trial, checkpoint, record.sweep.outcomes)
                if by_layer
                else (_run_trial(settings, run, trial, checkpoint),)
            )
            for outcome in found:
                record.add(outcome)
                if run.processes.is_first:
                    _draw(folder, record.sweep)
                    say(sweep_view.outcome_line(record.sweep, outcome))
            if run.processes.is_first:
                checkpoint.unlink(missing_ok=True)
        return record.sweep


def _draw(folder: Path, sweep: Sweep) -> None:
    with writing(folder):
        (folder / "table.csv").write_text(sweep_view.to_csv(sweep))
        (folder / "sweep.png").write_bytes(plot_sweep(sweep))


def _run_trial(settings: TrainSettings, run: Run, trial: Trial, checkpoint: Path) -> Outcome:
    """Fine-tune as the trial says, fit an SVM, and measure both scorers."""
    chosen, splits = plan(settings, run.splits, trial)
    tuner, _, history = fine_tune(chosen, replace(run, splits=splits), checkpoint)
    vectors, truth = {}, {}
    for part in PARTS:
        found = tuner.trainer.describe_all(getattr(splits, part), f"describing {part} photos")
        vectors[part], truth[part] = (values.cpu() for values in found)
    labels = truth["train"].numpy()
    fitted = None
    if min(Counter(labels.tolist()).values()) >= 2:  # cross-validation needs two photos of each class
        fitted = svm.fit(
            vectors["train"].numpy(), labels, chosen.seed, chosen.svm, chosen.class_weight,
            is_fine_tuned=not chosen.freezes_all,
        )  # fmt: skip
    head = tuner.net.head.cpu().eval()

    def hits(part: str) -> dict[str, NDArray[np.bool_]]:
        with torch.no_grad():
            answers = {DENSE: head(vectors[part]).argmax(1).numpy()}
        if fitted:
            answers[SVM] = fitted.scores(vectors[part].numpy()).argmax(1)
        return {name: answer == truth[part].numpy() for name, answer in answers.items()}

    of_val, of_test = hits("val"), hits("test")
    val, test = ({name: float(found.mean()) for name, found in of_part.items()} for of_part in (of_val, of_test))
    scorer = DENSE
    if fitted:
        scorer = SVM if trial.mode == FROZEN else by_validation(of_val[SVM], of_val[DENSE]).scorer
    return Outcome(
        **asdict(trial),
        photos=len(splits.train),
        scorer=scorer,
        val_accuracy=val[scorer],
        test_accuracy=test[scorer],
        dense_test_accuracy=test[DENSE],
        svm_test_accuracy=test.get(SVM),
        epochs=len(history.epochs),
        seconds=sum(epoch.seconds for epoch in history.epochs),
    )


class _Record:
    """The finished trials, in trials.json; --resume rejects those of other settings or photos."""

    def __init__(self, path: Path, settings: TrainSettings, run: Run) -> None:
        self._path = path
        self._processes = run.processes
        self._identity = run_identity(settings, run.splits.sha256)
        self.sweep = Sweep(settings.sweep, (), len(run.splits.test), len(run.splits.val))
        is_there = run.processes.is_first and settings.resume and path.is_file()
        if before := run.processes.same(path.read_text() if is_there else ""):
            state = json.loads(before)
            if state["identity"] != json.loads(json.dumps(self._identity)):
                raise SettingsError(
                    "RESUME",
                    "--resume: the interrupted sweep had other settings or photos; repeat those, or omit --resume",
                )
            self.sweep = replace(self.sweep, outcomes=tuple(Outcome(**values) for values in state["outcomes"]))

    @property
    def done(self) -> set[Trial]:
        return {Trial(outcome.mode, outcome.at, outcome.repeat) for outcome in self.sweep.outcomes}

    def add(self, outcome: Outcome) -> None:
        self.sweep = replace(self.sweep, outcomes=(*self.sweep.outcomes, outcome))
        if not self._processes.is_first:
            return
        scratch = self._path.with_suffix(".tmp")
        state = {"identity": self._identity, "outcomes": [asdict(o) for o in self.sweep.outcomes]}
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(state, indent=1))
            scratch.replace(self._path)
