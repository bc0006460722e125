"""The fine-tunings of a run under `--budget`: short trials, then one that ends when the time ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from penult.console import say
from penult.export.config.known_networks import preprocess
from penult.export.config.train import TrainSettings
from penult.export.data.loader import Cache, PhotoReader
from penult.export.evaluation.frozen_trials import Lead, lead
from penult.export.jobs import budget_plan, estimate
from penult.export.jobs.budget_journal import TRIAL, Journal, Tried
from penult.export.jobs.budget_plan import Costs
from penult.export.jobs.train import Run, fine_tune
from penult.export.networks import architectures
from penult.export.networks.network import Weights, build, freeze_stages
from penult.export.training.finetune import Described, FineTuner
from penult.export.training.history import Epoch, History
from penult.export.training.pace import Pace, Round
from penult.export.training.trainer import steps_of

_MIN_MEASURED = 200


@dataclass
class Clocked:
    """A pace that follows the clock: the training ends at `end_s`, or after `wanted` epochs."""

    journal: Journal
    costs: Costs
    steps: int
    wanted: float
    end_s: float
    took_s: list[float] = field(default_factory=list)
    done: Sequence[Round] = ()
    _last_s: float = 0.0

    def next_round(self, done: Sequence[Round]) -> Round | None:
        """Return the next round; the first process decides for all."""
        now = self.journal.now_s()
        if len(done) > len(self.took_s):
            # The time of rounds before an interruption is not known.
            self.took_s = [now - self._last_s] if self._last_s else [self._expected_s(done[-1])]
            self.took_s = [self.took_s[-1]] * len(done)
        self._last_s, self.done = now, tuple(done)
        left = self.end_s - now
        found = budget_plan.next_round(done, self.took_s, self.costs, self.steps, self.wanted, left)
        return self.journal.processes.same(found)

    def is_over(self) -> bool:
        """Return True if the time has ended."""
        return self.journal.now_s() + self.costs.measure_s > self.end_s

    def _expected_s(self, each: Round) -> float:
        return each.taken * self.costs.step_s + self.costs.measure_s


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned network.

    Attributes:
        losses: The loss of the dense head on each validation photo, [N].
        right: Whether its answer was correct, [N].
    """

    settings: TrainSettings
    tuner: FineTuner
    initial: Weights
    history: History
    losses: NDArray[np.float64]
    right: NDArray[np.float64]


@dataclass
class Tuning:
    """Fine-tunes networks on the photos of a run.

    `described` keeps the descriptors of frozen networks, which every training starts with.
    """

    run: Run
    journal: Journal
    folder: Path
    described: Described = field(default_factory=dict)
    _reader: PhotoReader | None = None

    def steps(self, settings: TrainSettings) -> int:
        """Return the steps of an epoch."""
        return steps_of(len(self.run.splits.train), settings.batch_size)

    def costs(self, settings: TrainSettings) -> Costs:
        """Measure a batch, and return what a training costs; the first process measures for all."""

        def measured() -> list[float]:
            if not self.run.processes.is_first:
                return []
            architecture, splits = architectures.get(settings.arch), self.run.splits
            net = build(architecture, settings, len(splits.classes))
            freeze_stages(net, architecture, settings.freeze)
            with net.single_view():
                batch = estimate.measure(
                    net, architecture, settings, splits, self.reader(settings), self.run.processes.device
                )
            size, of = self.run.processes.size, settings.batch_size
            step_s = (batch.learn_s + batch.cut_s) / size
            count = len(splits.val) + min(len(splits.train), max(len(splits.val), _MIN_MEASURED))
            measure_s = estimate.batches(count, of) * batch.describe_s / size
            passes = estimate.batches(len(splits.train) + len(splits.val), of)
            around_s = passes * (batch.describe_s + 2 * max(batch.read_s - batch.cut_s, 0.0)) / size
            return [step_s, measure_s, around_s]

        name = f"costs {settings.arch} {settings.freeze} {settings.crop} {settings.train_crop}"
        return Costs(*self.journal.fact(name, measured))

    def reader(self, settings: TrainSettings) -> PhotoReader:
        """Return what reads photos for these settings; photos decoded for others are forgotten."""
        spec = preprocess(settings)
        if self._reader is None or self._reader.spec != spec or self._reader.batch_size != settings.batch_size:
            self._reader = PhotoReader(spec, Cache(settings.cache_mb << 20), settings.batch_size)
        return self._reader

    def tune(self, settings: TrainSettings, name: str, pace: Pace | None, keeps_rounds: bool = False) -> Tuned:
        """Fine-tune, or train the head alone if all layers are frozen; return the best network of the run."""

        def after_epoch(epoch: Epoch) -> None:
            if isinstance(pace, Clocked) and keeps_rounds and epoch.phase == "all":
                self.journal.note("rounds", [vars(each) for each in pace.done])

        run = Run(self.run.processes, self.run.splits, self.reader(settings))
        tuner, initial, history = fine_tune(
            settings, run, self.folder / f"{name}.pt", after_epoch, pace, self.described
        )
        with tuner.net.single_view():
            descriptors, labels = tuner.trainer.describe_all(self.run.splits.val, "describing validation photos")
        with torch.no_grad():
            logits = tuner.net.head.eval()(descriptors).float()
            losses = F.cross_entropy(logits, labels, reduction="none").double()
        right = (logits.argmax(1) == labels).double()
        return Tuned(settings, tuner, initial, history, losses.cpu().numpy(), right.cpu().numpy())

    def trial(
        self, settings: TrainSettings, network: str, what: str, base: Tried | None, epochs: float, end_s: float
    ) -> Tried:
        """Return what a short fine-tuning gave, from the journal if it is there.

        Args:
            settings: How to train.
            network: What the network is called.
            what: What is special about it.
            base: The trial to compare it with on each validation photo.
            epochs: How many, if there is time enough.
            end_s: When it must end.
        """

        def work() -> list[Tried]:
            began = self.journal.now_s()
            pace = Clocked(self.journal, self.costs(settings), self.steps(settings), epochs, end_s)
            tuned = self.tune(settings, name, pace)
            better = lead(np.array(base.more["losses"]), tuned.losses) if base else None
            return [self._tried(tuned, network, what, began, better, pace)]

        name = f"trial {network} {what}".replace(" ", "-").replace("/", "-")
        (found,) = self.journal.stage(name, work)
        (self.folder / f"{name}.pt").unlink(missing_ok=True)
        return found

    def _tried(
        self, tuned: Tuned, network: str, what: str, began_s: float, better: Lead | None, pace: Clocked
    ) -> Tried:
        epochs = sum(each.taken for each in pace.done) / pace.steps
        loss = float(tuned.losses.mean())
        tried = Tried(
            TRIAL, network, what, len(tuned.right), float(tuned.right.mean()), loss=loss, epochs=epochs,
            lead=better.difference if better else None, lead_error=better.error if better else None, at_s=began_s,
            seconds=self.journal.now_s() - began_s, more={"losses": [round(float(each), 5) for each in tuned.losses]},
        )  # fmt: skip
        say(f"trial: {tried.arch}, {what}, {epochs:.1f} epochs: validation loss {loss:.3f} ({tried.seconds:.0f} s)")
        return tried
