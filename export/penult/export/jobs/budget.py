"""`penult train --budget`: choose, train and publish within a time.

1. Networks whose weights are at hand are ranked by an SVM on frozen descriptors, on few photos first.
2. The same SVM says how photos are shown, and whether mirrored or turned copies and views help.
3. The best frozen network is finished as a bundle, so that there is one whatever happens. Its times are the reserve.
4. Short fine-tunings choose network, frozen stages, rates and augmentation by validation loss.
5. The best one is trained until the time ends. It is published if it beats the frozen network on validation photos.

Test photos decide nothing.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penult.bundle.errors import PenultError
from penult.bundle.manifest import DENSE
from penult.bundle.naming import model_name, versions
from penult.bundle.writer import move
from penult.console import say
from penult.export.config import known_networks
from penult.export.config.budget import seconds_of
from penult.export.config.train import FREEZE_ALL, TrainSettings, freeze_text
from penult.export.disk import writing
from penult.export.errors import SettingsError
from penult.export.evaluation.frozen_trials import lead
from penult.export.jobs import budget_plan, budget_view
from penult.export.jobs.budget_choice import Chooser, Finding
from penult.export.jobs.budget_frozen import chosen
from penult.export.jobs.budget_journal import FINAL, FROZEN, Journal, Tried
from penult.export.jobs.budget_record import (
    PLAN_NAME,
    finished_before,
    identity_of,
    plan_of,
    read_plan,
    rounds_of,
    run_of,
    settings_of,
    sha256_of,
)
from penult.export.jobs.budget_tuning import Clocked, Tuned, Tuning
from penult.export.jobs.packaging import Result
from penult.export.jobs.preflight import UNFINISHED, budget_folder
from penult.export.jobs.train import Run, prepare, publish_prepared, saved_weights, started_run
from penult.export.networks import weights_at_hand
from penult.export.networks.weights_at_hand import AtHand
from penult.export.training.pace import Recorded

_FROZEN_KIND, _TUNED_KIND = "frozen", "fine-tuned"


def run_budget(settings: TrainSettings, began: float | None = None) -> Result:
    """Choose, train and publish within `settings.budget`; raise PenultError.

    Args:
        settings: The options that are given.
        began: When the time began, by time.monotonic(); None: now.
    """
    began = time.monotonic() if began is None else began
    networks = _networks(settings)
    first = networks[0]
    named = replace(settings, arch=first.arch, weights=first.weights)
    with started_run(named, f"{len(networks)} networks at hand") as run:
        if len(run.splits.classes) == 1:
            raise SettingsError("BUDGET", "--budget chooses how to train, and one class trains nothing: omit it")
        identity = identity_of(named, networks, run.splits)
        published = None
        if (
            settings.resume
            and run.processes.is_first
            and not _journal_folder(settings).joinpath("journal.json").exists()
        ):
            published = finished_before(settings.out, run_of(identity))
        if published := run.processes.same(published):
            say(f"already finished: {published.folder}; to train again, omit --resume")
            return published
        journal = Journal(_journal_folder(settings), identity, run.processes, began, settings.resume)
        return _Budget(named, run, journal, networks, identity).result()


def replay(settings: TrainSettings) -> Result:
    """Repeat the final training of `settings.budget_plan` and publish it; raise PenultError."""
    assert settings.budget_plan is not None  # the caller has checked it
    plan = read_plan(settings.budget_plan)
    final = settings_of(settings, plan)
    with started_run(final) as run:
        if run.splits.sha256 != plan["data_sha256"]:
            say("note: photos or splits differ from those of the plan, so the weights will differ, too")
        tuning = Tuning(run, Journal(_journal_folder(final), [], run.processes, 0.0, False), _journal_folder(final))
        rounds = rounds_of(plan)
        tuned = tuning.tune(final, "replay", Recorded(rounds) if rounds else None)
        result = None
        if run.processes.is_first:
            prepared = _with_plan(_prepared(tuned, run, tuning), plan)
            with saved_weights(final, prepared.net):
                result = publish_prepared(final, prepared.prepared, tuning.reader(final))
            _remove(_journal_folder(final))
        result = run.processes.same(result)
        assert result is not None  # the first process has published
        return result


def _networks(settings: TrainSettings) -> tuple[AtHand, ...]:
    """Return the networks to choose from; the one of --arch with a download if none is at hand."""
    arch = settings.arch if "arch" in settings.pinned else ""
    given = settings.weights if "weights" in settings.pinned else ""
    if given.startswith("imagenet"):
        return (AtHand(settings.arch, given, name=settings.arch),)
    found = weights_at_hand.find(given, arch)
    if not found:
        say(f"note: no weights are at hand, so those of {settings.arch} are downloaded; --weights FILE names others")
        return (AtHand(settings.arch, settings.weights, name=settings.arch),)
    return _suitable(settings, found)


def _suitable(settings: TrainSettings, networks: tuple[AtHand, ...]) -> tuple[AtHand, ...]:
    """Return the networks that take the given options; raise SettingsError if none does."""
    found, problems = [], []
    for network in networks:
        try:
            named = replace(settings, arch=network.arch)
            known_networks.preprocess(named)
            known_networks.check_layers(named)
            found.append(network)
        except SettingsError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    for problem in problems:
        say(f"note: {problem.message}")
    return tuple(found)


def _journal_folder(settings: TrainSettings) -> Path:
    return settings.out / UNFINISHED / "budget"


def _remove(folder: Path) -> None:
    """Remove what a finished run has kept, and the folder around it if that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


@dataclass(frozen=True)
class _Ready:
    """A network that can be published, and whether its default scorer was right on each validation photo."""

    net: Any
    prepared: Any  # Prepared; None in the other processes
    right: np.ndarray


def _prepared(tuned: Tuned, run: Run, tuning: Tuning) -> _Ready:
    """Export and measure a network; called by the first process only."""
    net = tuned.tuner.net.to("cpu").to(memory_format=torch.contiguous_format).eval()
    splits = replace(run.splits, notes=(*run.splits.notes, *tuned.history.notes))
    made = prepare(tuned.settings, splits, net, tuned.initial, tuning.reader(tuned.settings), tuned.history)
    candidate = made.candidate
    val, choice = candidate.outputs["val"], candidate.choice
    is_dense = choice is not None and choice.scorer == DENSE
    scores = val.logits if is_dense else candidate.svm.scores(val.descriptors)
    return _Ready(net, made, (scores.argmax(axis=1) == val.labels).astype(float))


def _with_plan(ready: _Ready, plan: Mapping[str, Any]) -> _Ready:
    """Add the plan to the record of the training, and to the files."""
    candidate = ready.prepared.candidate
    draft = replace(candidate.draft, training={**candidate.draft.training, "budget": dict(plan)})
    files = candidate.files | {PLAN_NAME: budget_view.plan_json(plan)}
    return replace(ready, prepared=replace(ready.prepared, candidate=replace(candidate, draft=draft, files=files)))


@dataclass
class _Budget:
    """A run within a budget."""

    settings: TrainSettings
    run: Run
    journal: Journal
    networks: tuple[AtHand, ...]
    identity: list[Any]

    def __post_init__(self) -> None:
        """Prepare what the stages share."""
        self.budget_s = seconds_of(self.settings.budget) or math.inf
        self.folder = _journal_folder(self.settings)
        self.tuning = Tuning(self.run, self.journal, self.folder)
        self.chooser = Chooser(self.settings, self.run, self.journal, self.tuning, self.networks, self.budget_s)
        self.stash = self.folder / model_name(self.settings.out)
        self.ready: _Ready | None = None  # the frozen network, in the first process
        self.plan: dict[str, Any] = {}

    def result(self) -> Result:
        """Run all stages; return what is published."""
        finding = self.chooser.explore()
        frozen = self._frozen_settings(finding)
        right = self._finish_frozen(frozen)
        tuned = None
        if not math.isinf(self.budget_s) and not self.settings.asks_for_frozen:
            tuned = self._fine_tune(finding)
        result = None
        if self.run.processes.is_first:
            result = self._publish(frozen, right, tuned)
            budget_view.write(budget_folder(self.settings), self.plan)
            _remove(self.folder)
        result = self.run.processes.same(result)
        assert result is not None  # the first process has published
        return result

    # -- the frozen network --------------------------------------------------------------------------------------------

    def _frozen_settings(self, finding: Finding) -> TrainSettings:
        network, look = finding.networks[0], finding.looks[0]
        settings = chosen(
            self.settings, arch=network.arch, weights=network.weights, views=finding.frozen_views,
            augment=finding.augment, **look.settings(),
        )  # fmt: skip
        # Also if another depth is given: there is a bundle even if the time ends before that is trained.
        return replace(settings, freeze=FREEZE_ALL, dropout_channels=0.0)

    def _finish_frozen(self, settings: TrainSettings) -> list[float]:
        """Write the frozen network's bundle beside the journal, and note what that takes.

        Returns:
            Whether its default scorer is right on each validation photo, [N].
        """

        def work() -> list[Tried]:
            began = self.journal.now_s()
            right: list[float] = self.run.processes.same(self._frozen(settings).right.tolist())
            what = f"{settings.crop} px, {settings.fit}, views: {settings.views}"
            return [
                Tried(
                    FROZEN, settings.arch, what, len(right), float(np.mean(right)), at_s=began,
                    seconds=self.journal.now_s() - began, more={"right": right},
                )
            ]  # fmt: skip

        (tried,) = self.journal.stage("frozen", work)
        is_there = bool(versions(self.stash)) and "publish_s" in self.journal.facts
        if not self.run.processes.same(is_there):
            ready, began = self._frozen(settings), self.journal.now_s()
            if self.run.processes.is_first:
                made = _with_plan(ready, self._plan(_FROZEN_KIND, settings)).prepared
                shutil.rmtree(self.stash, ignore_errors=True)
                publish_prepared(replace(settings, out=self.stash), made, self.tuning.reader(settings))
            self.journal.note("stashed", len(self.journal.tried))
            self.journal.note("publish_s", self.journal.now_s() - began)
        self.journal.fact("reserve_s", lambda: tried.seconds + self.journal.facts["publish_s"])
        return list(tried.more["right"])

    def _frozen(self, settings: TrainSettings) -> "_Ready":
        """Return the frozen network, which may have been made before; other processes than the first have no export."""
        if self.ready is None:
            tuned = self.tuning.tune(settings, "frozen", None)
            is_first = self.run.processes.is_first
            self.ready = _prepared(tuned, self.run, self.tuning) if is_first else _Ready(None, None, np.empty(0))
        return self.ready

    # -- the fine-tuned network ----------------------------------------------------------------------------------------

    def _fine_tune(self, finding: Finding) -> Tuned | None:
        """Choose how to fine-tune, and do so until the time ends; None if there is no time for it."""
        finding = self.chooser.with_tuned_views(finding)
        end_s = budget_plan.deadline_s(self.budget_s, self.chooser.reserve_s(finding, finding.views))
        try:
            picked = self.journal.fact("final", lambda: self.chooser.choose(finding, end_s))
            if picked is None:
                return None
            settings = self.chooser.recipe(finding, picked["place"], picked["options"])
            steps = self.tuning.steps(settings)
            began = self.journal.now_s()
            pace = Clocked(self.journal, self.tuning.costs(settings), steps, settings.epochs, end_s)
            tuned = self.tuning.tune(settings, "final", pace, keeps_rounds=True)
        except SettingsError as error:
            if error.reason != "DIVERGED":
                raise
            self.journal.decide(f"fine-tuning: {error.message}")
            return None
        frozen = f"{freeze_text(settings.freeze)} stages frozen"
        tried = Tried(
            FINAL, settings.arch, f"{frozen}, {settings.augment}, crops of {settings.train_crop} px",
            len(tuned.right), float(tuned.right.mean()), loss=float(tuned.losses.mean()),
            epochs=sum(each.taken for each in self.journal.rounds()) / steps, at_s=began,
            seconds=self.journal.now_s() - began,
        )  # fmt: skip
        self.journal.stage("final", lambda: [tried])
        return tuned

    # -- the end -------------------------------------------------------------------------------------------------------

    def _publish(self, frozen: TrainSettings, right: list[float], tuned: Tuned | None) -> Result:
        """Publish the better network."""
        if tuned is None:
            return self._publish_frozen(frozen)
        settings = tuned.settings
        try:
            ready = _prepared(tuned, self.run, self.tuning)
        except PenultError as error:
            self.journal.decide(f"published: the frozen network; of the fine-tuned one, {error.message}")
            return self._publish_frozen(frozen)
        better = lead(ready.right, np.array(right))
        said = (
            f"fine-tuned minus frozen is {100 * better.difference:+.1f} ± {100 * better.error:.1f} points on "
            f"{len(right)} validation photos"
        )
        if not (better.is_better or "freeze" in self.settings.pinned):
            self.journal.decide(f"published: the frozen network; {said}")
            return self._publish_frozen(frozen)
        self.journal.decide(f"published: the fine-tuned network; {said}")
        self.plan = self._plan(_TUNED_KIND, settings)
        with saved_weights(settings, ready.net):
            return publish_prepared(settings, _with_plan(ready, self.plan).prepared, self.tuning.reader(settings))

    def _publish_frozen(self, settings: TrainSettings) -> Result:
        """Publish the frozen network, with all that was tried; as it was finished if the time is short."""
        self.plan = self._plan(_FROZEN_KIND, settings)
        is_short = self.journal.now_s() + self.journal.facts["publish_s"] > self.budget_s
        is_new = len(self.journal.tried) > self.journal.facts.get("stashed", 0)
        if self.ready is not None and is_new and not is_short:
            with saved_weights(settings, self.ready.net):
                made = _with_plan(self.ready, self.plan).prepared
                return publish_prepared(settings, made, self.tuning.reader(settings))
        (number,) = versions(self.stash)
        with writing(settings.out):
            folder = move(self.stash / str(number), settings.out)
        if settings.save_weights and self.ready is not None:
            with saved_weights(settings, self.ready.net):
                pass
        return Result(folder, json.loads((folder / "metrics.json").read_bytes()))

    def _plan(self, kind: str, settings: TrainSettings) -> dict[str, Any]:
        rounds = [vars(each) for each in self.journal.rounds()] if kind == _TUNED_KIND else []
        final = {"kind": kind, "settings": settings.as_json(), "weights_sha256": sha256_of(settings.weights)}
        return plan_of(self.settings, self.identity, self.run, self.journal, self.networks, {**final, "rounds": rounds})
