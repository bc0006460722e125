"""Choose under `--budget`: the network, how its photos are shown, and how it is fine-tuned.

Each choice is a function of budget_plan.py, asked with what was measured here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penult.console import duration
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError
from penult.export.jobs import budget_plan
from penult.export.jobs.budget_frozen import Explorer, chosen
from penult.export.jobs.budget_journal import COPIES, RANKING, VIEWS, Journal, Tried
from penult.export.jobs.budget_plan import Look
from penult.export.jobs.budget_tuning import Tuning
from penult.export.jobs.train import Run
from penult.export.networks.weights_at_hand import AtHand

_AUGMENTED = {
    "topdown": "photos are mirrored and turned, because turned copies help",
    "photo": "photos are mirrored but not turned, because turned copies do not help",
    "gentle": "photos are not mirrored, because mirrored copies hurt",
}


@dataclass(frozen=True)
class Finding:
    """What the frozen networks showed.

    Attributes:
        networks: The finalists, the best one first.
        looks: How each is shown its photos.
        augment: What suits the photos.
        views: How many views to serve.
        frozen_views: How many of them the frozen network serves.
        order: Places of the finalists, in the order in which they are fine-tuned.
    """

    networks: tuple[AtHand, ...]
    looks: tuple[Look, ...]
    augment: str
    views: int
    frozen_views: int
    order: tuple[int, ...]


@dataclass
class Chooser:
    """Asks the photos."""

    settings: TrainSettings
    run: Run
    journal: Journal
    tuning: Tuning
    networks: tuple[AtHand, ...]
    budget_s: float

    def __post_init__(self) -> None:
        """Start without a limit on the time to compare."""
        self.explorer = Explorer(self.settings, self.run, self.journal, math.inf)

    # -- frozen networks -----------------------------------------------------------------------------------------------

    def explore(self) -> Finding:
        """Rank networks, and ask how photos are shown; raise SettingsError if the budget is too small."""
        explorer = self.explorer
        smallest = min(self.networks, key=lambda each: budget_plan.size_of(each.arch))
        least_s = self.journal.fact("least_s", lambda: explorer.frozen_s(smallest, explorer.looks(smallest)[0], 1))
        begun_s = self.journal.fact("begun_s", self.journal.now_s)
        if begun_s + least_s > self.budget_s:
            least = budget_plan.least_budget(begun_s + least_s)
            raise SettingsError(
                "BUDGET",
                f"--budget {self.settings.budget} is too small: here a frozen network alone takes about "
                f"{duration(begun_s + least_s)}; give at least {least}",
            )
        explorer.until_s = budget_plan.exploring_ends_s(self.budget_s, begun_s, least_s)
        networks = explorer.rank(self.networks)
        ranked = {each.arch: each for each in self.journal.tried if each.stage == RANKING}
        accuracies = tuple(ranked[each.name].accuracy if ranked else 1.0 for each in networks)
        if ranked:
            self.journal.decide(f"network: frozen, {networks[0].name} is best")
        photos = max((each.photos for each in ranked.values()), default=len(explorer.pool))
        order = self._order(networks, accuracies, photos)
        looks, asked = self._asked(networks, order)
        augment, views = self._suited(asked)
        allowed_s = min(budget_plan.FINISHING * self.budget_s, self.budget_s - self.journal.now_s())
        frozen_views = self._fewer(
            "frozen views", views, lambda count: explorer.frozen_s(networks[0], looks[0], count), allowed_s
        )
        self.journal.decide(f"views: {views}" + (f", {frozen_views} if frozen" if frozen_views < views else ""))
        return Finding(networks, looks, augment, views, frozen_views, order)

    def _order(self, networks: Sequence[AtHand], accuracies: Sequence[float], photos: int) -> tuple[int, ...]:
        errors = [math.sqrt(max(a * (1 - a), 0.01) / photos) for a in accuracies]
        return tuple(budget_plan.order_for_tuning(accuracies, [each.imagenet for each in networks], errors))

    def _asked(self, networks: Sequence[AtHand], order: Sequence[int]) -> tuple[tuple[Look, ...], Sequence[Tried]]:
        """Return how each network is shown its photos, and what copies and views do.

        The network that is fine-tuned first is asked about copies, as it is shown them. Others may gain less from them.
        """
        explorer = self.explorer
        looks = [explorer.looks(each)[0] for each in networks]
        asked: Sequence[Tried] = ()
        if not math.isinf(self.budget_s):
            first = 0 if self.settings.asks_for_frozen else order[0]
            for place in sorted(range(len(networks)), key=lambda n: n != first):
                looks[place] = explorer.best_look(networks[place])
                self.journal.decide(f"size: {networks[place].name} is shown {looks[place].text}")
                if place == first:
                    asked = explorer.copies(networks[place], looks[place], budget_plan.COPYING * self.budget_s)
        return tuple(looks), asked

    def _fewer(self, name: str, views: int, cost_s: Callable[[int], float], allowed_s: float) -> int:
        """Return how many views can be paid for; those that are given are kept."""
        if "views" in self.settings.pinned:
            return views
        found: int = self.journal.fact(name, lambda: budget_plan.affordable_views(views, cost_s, allowed_s))
        return found

    def reserve_s(self, finding: Finding, views: int) -> float:
        """Return what finishing a fine-tuned network takes, from what the frozen one took."""
        explorer, took_s = self.explorer, float(self.journal.facts["reserve_s"])
        frozen_s = explorer.described_s(finding.networks[0], finding.looks[0], finding.frozen_views, is_frozen=True)
        tuned_s = max(
            explorer.described_s(network, look, views, is_frozen=False)
            for network, look in zip(finding.networks, finding.looks, strict=True)
        )
        return budget_plan.reserve_s(took_s, frozen_s, tuned_s)

    def with_tuned_views(self, finding: Finding) -> Finding:
        """Return the finding with as many views as a fine-tuned network can be measured with in time."""
        allowed_s = budget_plan.FINISHING * self.budget_s / budget_plan.RESERVE
        views = self._fewer("tuned views", finding.views, lambda count: self.reserve_s(finding, count), allowed_s)
        return replace(finding, views=views)

    def _suited(self, asked: Sequence[Tried]) -> tuple[str, int]:
        """Return augmentation and views that suit the photos; what is given is kept."""
        of = {each.what: each for each in asked if each.stage == COPIES}
        mirrored, turned = (_lead(of.get(f"{name} copies")) for name in ("mirrored", "turned"))
        pinned, given = self.settings.pinned, self.settings
        more_views = next((each.more["over_two"] for each in asked if "over_two" in each.more), None)
        augment = given.augment if "augment" in pinned else budget_plan.augmentation(mirrored, turned, more_views)
        if "augment" not in pinned and of:
            self.journal.decide(f"augmentation: {_AUGMENTED[augment]}")
        leads = {each.more["views"]: found for each in asked if each.stage == VIEWS and (found := _lead(each))}
        views = given.views if "views" in pinned else budget_plan.views_of(augment, leads)
        return ("topdown" if views > 2 else augment), views

    # -- fine-tuning ---------------------------------------------------------------------------------------------------

    def recipe(self, finding: Finding, place: int, options: Mapping[str, Any]) -> TrainSettings:
        """Return the settings of a fine-tuning of a finalist, with `options` in place of the usual ones."""
        network, look = finding.networks[place], finding.looks[place]
        usual = budget_plan.recipe(look, finding.augment, finding.views)
        found = chosen(self.settings, arch=network.arch, weights=network.weights, **{**usual, **options})
        if "epochs" in self.settings.pinned:
            return found
        return replace(found, epochs=budget_plan.wanted_epochs(self.tuning.steps(found)))

    def choose(self, finding: Finding, end_s: float) -> dict[str, Any] | None:
        """Return `place` and `options` of the final training, from trials; None if there is no time for training."""
        order = finding.order
        place = order[0]
        first = self.recipe(finding, place, {})
        costs, steps = self.tuning.costs(first), self.tuning.steps(first)
        left_s = end_s - self.journal.now_s()
        if not budget_plan.can_fine_tune(costs, steps, left_s):
            rest_s = budget_plan.AIM * self.budget_s - self.journal.now_s()
            finishing = duration(max(rest_s - left_s, 0))
            self.journal.decide(
                f"fine-tuning: none, because {duration(rest_s)} are left and finishing takes {finishing}"
            )
            return None
        wanted = budget_plan.trials_s(costs, steps, first.epochs, left_s)
        trials_end_s = self.journal.fact("trials_end_s", lambda: self.journal.now_s() + wanted)
        tried = {n: found for n in order if (found := self._trial(finding, n, {}, "as usual", None, trials_end_s))}
        if len(tried) > 1:
            place = min(tried, key=lambda n: tried[n].loss or math.inf)
        if len(order) > 1:
            self.journal.decide(f"network: {finding.networks[place].name} is fine-tuned")
        options = self._vary(finding, place, tried[place], trials_end_s) if place in tried else {}
        return {"place": place, "options": options}

    def _vary(self, finding: Finding, place: int, usual: Tried, end_s: float) -> dict[str, Any]:
        """Return the options that were better in trials than those of the usual recipe."""
        options: dict[str, Any] = {}
        best = usual
        for what, differs in budget_plan.variations(self.recipe(finding, place, {})):
            if set(differs) & set(self.settings.pinned):
                continue
            found = self._trial(finding, place, options | differs, what, best, end_s)
            if found and found.is_better:
                self.journal.decide(f"{what}: better, validation loss falls from {best.loss:.3f} to {found.loss:.3f}")
                options, best = options | differs, found
        return options

    def _trial(
        self, finding: Finding, place: int, options: Mapping[str, Any], what: str, base: Tried | None, end_s: float
    ) -> Tried | None:
        """Return a short fine-tuning, or None if there is no time for it."""
        settings = self.recipe(finding, place, options)
        name = finding.networks[place].name
        epochs, steps = min(budget_plan.TRIAL_EPOCHS, settings.epochs), self.tuning.steps(settings)

        def fits() -> bool:
            cost_s = self.tuning.costs(settings).training_s(epochs, steps)
            return budget_plan.fits(cost_s, end_s - self.journal.now_s())

        if not self.journal.fact(f"fits {name} {what}", fits):
            return None
        return self.tuning.trial(settings, name, what, base, epochs, end_s)


def _lead(tried: Tried | None) -> dict[str, float] | None:
    return None if tried is None else {"lead": tried.lead or 0.0, "lead_error": tried.lead_error or 0.0}
