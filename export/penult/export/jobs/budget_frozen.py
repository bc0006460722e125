"""What frozen networks say under `--budget`: which is best, how photos are to be shown, whether copies help.

An SVM on frozen descriptors answers by cross-validation on training and validation photos. Networks are ranked on few
photos first, then the better half on more (successive halving).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from penult.bundle.scores import Floats
from penult.console import say
from penult.export.config import known_networks
from penult.export.config.known_networks import preprocess
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.evaluation import svm_cost
from penult.export.evaluation.folds import groups_of
from penult.export.evaluation.frozen_trials import Answers, Lead, cross_validate, lead, learning_copies
from penult.export.evaluation.svm import counts_of
from penult.export.jobs import budget_plan
from penult.export.jobs.budget_journal import COPIES, RANKING, SIZE, VIEWS, Journal, Tried
from penult.export.jobs.budget_plan import Look
from penult.export.jobs.train import Run
from penult.export.networks import architectures
from penult.export.networks.network import build
from penult.export.networks.weights_at_hand import AtHand
from penult.export.training.trainer import Trainer, class_weights

_PROBED = 8
# Seconds of exporting a network and of drawing a report on the machine of svm_cost's constants.
_EXPORT_S, _REPORT_S = 6.0, 6.0
# Most searches of the SVM end before this share of their longest time.
_LIKELY = 0.5
_BUSIEST = 8.0
# Views of make_views(): the photo and its mirror image, then both turned.
_MIRRORED, _TURNED = (1,), (2, 3)
_VIEWS = 4


def chosen(settings: TrainSettings, **options: Any) -> TrainSettings:
    """Return the settings of one training: the given ones, with `options` for those that are not pinned."""
    free = {name: value for name, value in options.items() if name not in settings.pinned or name == "weights"}
    return replace(settings, budget="", budget_plan=None, pinned=(), **free)


@dataclass
class Described:
    """Descriptors of the pool's photos by one network and look, [N, views, length]; rows that are there are `known`."""

    rows: Floats
    known: np.ndarray


@dataclass
class Explorer:
    """Describes and compares, and keeps the descriptors of this process.

    Attributes:
        settings: The options that are given.
        until_s: When comparing ends, so that the frozen network is published in time.
        photo_s: Seconds for each view of a photo at the network's own size, by network.
        busy: How many times as long work takes because of other programs.
    """

    settings: TrainSettings
    run: Run
    journal: Journal
    until_s: float
    photo_s: dict[str, float] = field(default_factory=dict)
    busy: float = 1.0
    _described: dict[tuple[AtHand, Look, int], Described] = field(default_factory=dict)
    _net: tuple[AtHand, Any] | None = None

    def __post_init__(self) -> None:
        """Order the photos so that the first ones have all classes."""
        self.photo_s.update(self.journal.facts.get("photo_s", {}))
        splits = self.run.splits
        self.pool = (*splits.train, *splits.val)
        self.labels = np.array([photo.label for photo in self.pool])
        self.groups = groups_of(self.pool)
        random = np.random.default_rng([self.settings.seed, 23])
        turns = np.empty(len(self.pool))
        for label in range(len(splits.classes)):
            of_class = np.flatnonzero(self.labels == label)
            turns[of_class] = np.argsort(random.permutation(len(of_class))) / max(len(of_class), 1)
        self.order = np.argsort(turns, kind="stable")

    # -- stages --------------------------------------------------------------------------------------------------------

    def rank(self, networks: Sequence[AtHand]) -> tuple[AtHand, ...]:
        """Return the networks that stay, the best on frozen descriptors first."""
        alive = tuple(networks)
        for number, (count, kept) in enumerate(budget_plan.rungs(len(networks), len(self.pool))):
            found = self.journal.stage(f"ranking {number}", partial(self._ranked, alive, count))
            by_accuracy = sorted(found, key=lambda each: -each.accuracy)
            alive = tuple(alive[each.more["place"]] for each in by_accuracy[:kept])
        return alive

    def _ranked(self, networks: Sequence[AtHand], count: int) -> list[Tried]:
        for network in networks:
            self._probe(network)
        each_s = sum(self.expected_s(network, self.looks(network)[0], 1, 1) for network in networks)
        # The rest of the time is for questions about the photos.
        left_s = (self.until_s - self.journal.now_s()) / 2
        rows = self.rows(budget_plan.photos_that_fit(count, each_s, left_s) or budget_plan.LEAST_ASKED)
        found = []
        for place, network in enumerate(networks):
            began = self.journal.now_s()
            if place and not self._fits(network, self.looks(network)[0], len(rows), 1):
                say(f"note: {network.name} is not ranked, because it would take too long")
                continue
            answers = self._answers(network, self.looks(network)[0], 1, rows)
            found.append(self._tried(RANKING, network, f"on {len(rows)} photos", answers, began, more={"place": place}))
        return found

    def best_look(self, network: AtHand) -> Look:
        """Return how photos are shown to a network: another way than its own only if that is better."""
        options = self.looks(network)
        found = self.journal.stage(f"sizes {network.name}", lambda: [*self._sizes(network, options)])
        better = [each for each in found if each.is_better]
        best = max(better, key=lambda each: each.lead or 0.0, default=None)
        return options[best.more["place"]] if best else options[0]

    def _sizes(self, network: AtHand, options: Sequence[Look]) -> Iterator[Tried]:
        rows = self.rows(budget_plan.compared_photos(len(self.pool)))
        base: Answers | None = None
        for place, look in enumerate(options[1:], 1):
            if not self._fits(network, look, len(rows), 1):
                continue
            began = self.journal.now_s()
            if base is None:
                base = self._answers(network, options[0], 1, rows)
                yield self._tried(SIZE, network, options[0].text, base, began, more={"place": 0})
                began = self.journal.now_s()
            answers = self._answers(network, look, 1, rows)
            better = lead(answers.right, base.right)
            yield self._tried(SIZE, network, look.text, answers, began, better, more={"place": place})

    def copies(self, network: AtHand, look: Look, seconds: float) -> tuple[Tried, ...]:
        """Ask whether mirrored and turned copies of the photos hurt, and what the mean of several views is worth.

        At most `seconds` are spent on it.
        """
        return self.journal.stage("copies", lambda: [*self._copies(network, look, seconds)])

    def _copies(self, network: AtHand, look: Look, seconds: float) -> Iterator[Tried]:
        self._probe(network)
        began = self.journal.now_s()
        each_s = self.expected_s(network, look, 1, _VIEWS)
        count = budget_plan.copied_photos(len(self.pool), each_s, min(self.until_s - began, seconds))
        if not count:
            return
        rows = self.rows(count)
        views = self._describe(network, look, _VIEWS, rows)
        labels, groups, seed = self.labels[rows], self.groups[rows], self.settings.seed
        single = self._cross_validated(views[:, 0], rows)

        def learning(*copies: int) -> np.ndarray:
            found = learning_copies(views[:, 0], [views[:, n] for n in copies], labels, groups, single.c, seed)
            return np.asarray(found)

        if self.run.processes.is_first:
            alone, mirrored, turned = learning(), learning(*_MIRRORED), learning(*_MIRRORED, *_TURNED)
        else:
            alone = mirrored = turned = single.right
        for what, ours, theirs in (("mirrored copies", mirrored, alone), ("turned copies", turned, mirrored)):
            yield self._tried(COPIES, network, what, Answers(ours, single.c), began, lead(ours, theirs))
            began = self.journal.now_s()
        fewer = None
        for count in (2, _VIEWS):
            answers = self._cross_validated(views[:, :count].mean(1), rows)
            better, more = lead(answers.right, single.right), dict[str, Any](views=count)
            if fewer is not None:
                over = lead(answers.right, fewer.right)
                more["over_two"] = {"lead": over.difference, "lead_error": over.error}
            yield self._tried(VIEWS, network, f"{count} views", answers, began, better, more=more)
            began, fewer = self.journal.now_s(), answers

    # -- parts ---------------------------------------------------------------------------------------------------------

    def looks(self, network: AtHand) -> tuple[Look, ...]:
        """Return the looks to compare for a network; options that are given are kept."""
        given, facts = self.settings, known_networks.get(network.arch)
        crop = given.crop if "crop" in given.pinned else 0
        found = budget_plan.looks(facts, crop, given.fit if "fit" in given.pinned else "")
        return tuple(look for look in found if not given.resize or given.resize >= look.crop) or found[:1]

    def rows(self, count: int) -> np.ndarray:
        """Return the places of the first `count` photos of the pool's order; fewer are part of more."""
        return np.sort(self.order[:count])

    def expected_s(self, network: AtHand, look: Look, photos: int, views: int) -> float:
        """Return the seconds of describing so many photos; 0 if the network has not described any yet."""
        own = known_networks.get(network.arch).preprocess.crop
        return self.photo_s.get(network.name, 0.0) * (look.crop / own) ** 2 * photos * views

    def frozen_s(self, network: AtHand, look: Look, views: int) -> float:
        """Return the seconds of finishing a frozen network as a bundle, estimated from one batch."""
        self._probe(network)
        facts = known_networks.get(network.arch)
        counts = counts_of(self.labels, facts.descriptor_length, self.groups)
        slowness = svm_cost.slowness() * self.busy
        svm_s = svm_cost.search_here_s(self.settings.svm, counts, self.settings.head_epochs) * self.busy * _LIKELY
        return self.described_s(network, look, views, is_frozen=True) + svm_s + (_EXPORT_S + _REPORT_S) * slowness

    def described_s(self, network: AtHand, look: Look, views: int, is_frozen: bool) -> float:
        """Return the seconds of describing photos for a bundle.

        The exported model describes all, and PyTorch validation photos, to compare both. The head of a frozen network
        learns from descriptors by PyTorch.
        """
        splits = self.run.splits
        count = sum(splits.counts().values()) + 2 * len(splits.val) + (len(self.pool) if is_frozen else 0)
        return self.expected_s(network, look, count, views)

    def _probe(self, network: AtHand) -> None:
        """Describe a few photos by a network, to know its speed."""
        if network.name not in self.photo_s:
            self._describe(network, self.looks(network)[0], 1, self.rows(2 * _PROBED))

    def _fits(self, network: AtHand, look: Look, photos: int, views: int) -> bool:
        self._probe(network)
        left = self.until_s - self.journal.now_s()
        return self.run.processes.same(budget_plan.fits(self.expected_s(network, look, photos, views), left))

    def _answers(self, network: AtHand, look: Look, views: int, rows: np.ndarray) -> Answers:
        return self._cross_validated(self._describe(network, look, views, rows).mean(1), rows)

    def _cross_validated(self, descriptors: Floats, rows: np.ndarray) -> Answers:
        """Return the answers of the SVM; the first process computes them for all."""
        found = None
        if self.run.processes.is_first:
            found = cross_validate(descriptors, self.labels[rows], self.groups[rows], self.settings.seed)
        found = self.run.processes.same(found)
        assert found is not None  # the first process has them
        return found

    def _describe(self, network: AtHand, look: Look, views: int, rows: np.ndarray) -> Floats:
        """Return descriptors float32 [n, views, length] of the pool's photos at `rows`; only new ones are computed."""
        trainer = self._trainer(network, look)
        key = (network, look, views)
        if key not in self._described:
            empty = np.empty((len(self.pool), views, trainer.net.descriptor_length), np.float32)
            self._described[key] = Described(empty, np.zeros(len(self.pool), bool))
        held = self._described[key]
        new = rows[~held.known[rows]]
        is_unknown = network.name not in self.photo_s
        for part in (new[:_PROBED], new[_PROBED:]) if is_unknown else (new,):
            if not len(part):
                continue
            began, began_cpu = time.monotonic(), time.process_time()
            photos: list[Photo] = [self.pool[row] for row in part]
            what = f"describing {len(part)} photos by {network.name}, {look.text}"
            held.rows[part] = trainer.describe_views(photos, what, views).cpu().numpy()
            held.known[part] = True
            own = known_networks.get(network.arch).preprocess.crop
            scaled = (time.monotonic() - began) / (len(part) * views * (look.crop / own) ** 2)
            self.photo_s[network.name] = self.run.processes.same(scaled)
            self.journal.note("photo_s", dict(self.photo_s))
            cpu_s = time.process_time() - began_cpu
            if cpu_s > 0 and self.run.processes.device.type == "cpu":
                self.busy = min(max((time.monotonic() - began) * torch.get_num_threads() / cpu_s, 1.0), _BUSIEST)
        return np.asarray(held.rows[rows])

    def _trainer(self, network: AtHand, look: Look) -> Trainer:
        options = chosen(
            replace(self.settings, dropout_channels=0.0), arch=network.arch, weights=network.weights, freeze=FREEZE_ALL,
            **look.settings(),
        )  # fmt: skip
        if self._net is None or self._net[0] != network:
            self._net = network, build(architectures.get(network.arch), options, len(self.run.splits.classes))
        net = self._net[1]
        reader = PhotoReader(preprocess(options), Cache(0), options.batch_size)
        weights = class_weights("none", (), net.classes)
        return Trainer(net, reader, self.run.processes, weights, options.precision)

    def _tried(
        self, stage: str, network: AtHand, what: str, answers: Answers, began_s: float, better: Lead | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> Tried:  # fmt: skip
        seconds = self.journal.now_s() - began_s
        numbers = {"lead": better.difference, "lead_error": better.error} if better else {}
        more = {"photo_s": self.photo_s.get(network.name, 0.0), **(more or {})}
        tried = Tried(
            stage, network.name, what, len(answers.right), answers.accuracy, at_s=began_s, seconds=seconds, more=more,
            **numbers,
        )  # fmt: skip
        low, high = tried.interval
        say(f"{stage}: {network.name}, {what}: {100 * low:.1f} to {100 * high:.1f} % ({seconds:.1f} s)")
        return tried
