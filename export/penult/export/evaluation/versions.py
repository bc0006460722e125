"""Compare the answers of two versions of a model on the same photos: accuracy, what changed, and what chance explains.

The versions may know different classes. Photos of the classes that both know are compared. The answers are those of
the service, so a version that answers a class of its own is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.manifest import Manifest
from penult.bundle.scores import Floats, best_of, wilson
from penult.export.evaluation.accuracy import is_rough
from penult.export.evaluation.folds import Labels, Rows
from penult.export.evaluation.metrics import evaluate
from penult.export.evaluation.paired import (
    MIN_APART,
    SIGNIFICANCE,
    Hits,
    holm,
    kappa,
    leads,
    mcnemar,
    p_text,
    paired_difference,
)
from penult.folders.names import normalised

BETTER, WORSE, NO_DIFFERENCE, TOO_FEW, SAME = "better", "worse", "no difference seen", "too few photos differ", "same"
BECAME_WRONG, BECAME_RIGHT, STAYED_WRONG = CHANGES = ("right to wrong", "wrong to right", "wrong to other wrong")


@dataclass(frozen=True)
class Classes:
    """The classes of two versions: those that both know come first, then those of one.

    Attributes:
        names: All of them.
        common: How many both know.
        places: The place in `names` of each class of a version, int64 [classes], by version.
    """

    names: tuple[str, ...]
    common: int
    places: tuple[NDArray[np.int64], NDArray[np.int64]]

    @classmethod
    def of(cls, before: Sequence[str], after: Sequence[str]) -> "Classes":
        """Join the classes of two versions. Older bundles keep names in the Unicode form of their folders."""
        known = [[normalised(name) for name in classes] for classes in (before, after)]
        both = [name for name in known[1] if name in set(known[0])]
        only = [name for classes in known for name in classes if name not in set(both)]
        names = tuple(dict.fromkeys([*both, *only]))
        at = {name: place for place, name in enumerate(names)}
        places = tuple(np.array([at[name] for name in classes], dtype=np.int64) for classes in known)
        return cls(names, len(both), (places[0], places[1]))

    def only(self, which: int) -> list[str]:
        """Return the classes that the former (0) or the latter (1) version alone knows."""
        return [self.names[place] for place in sorted(self.places[which].tolist()) if place >= self.common]


@dataclass(frozen=True)
class Answers:
    """The answers of one version.

    Attributes:
        version: Its number.
        manifest: Its manifest.
        scorer: The scorer that answers.
        named: The answered classes, places in Classes.names, int64 [N].
        confidence: Their probabilities, float32 [N].
        figures: What evaluate() measures on the photos of the classes that both know.
    """

    version: int
    manifest: Manifest
    scorer: str
    named: Labels
    confidence: Floats
    figures: dict[str, Any]

    @classmethod
    def of(
        cls, version: int, manifest: Manifest, scorer: str, scores: Floats, labels: Labels, places: NDArray[np.int64]
    ) -> "Answers":
        """Measure scores [N, classes of the version] against labels, which are places in Classes.names, int64 [N].

        `places` are those of the version's classes.
        """
        named, confidence = best_of(scores, manifest.temperatures[scorer])
        own = np.full(int(max(places.max(), labels.max())) + 1, -1, dtype=np.int64)
        own[places] = np.arange(len(places))
        figures = evaluate(scores, own[labels], manifest.classes, manifest.temperatures[scorer])
        return cls(version, manifest, scorer, places[named], confidence, figures)


@dataclass(frozen=True)
class Comparison:
    """The answers of two versions on the same photos, in the same order.

    Attributes:
        classes: The classes of both.
        labels: The true classes, places in classes.names, int64 [N].
        groups: A number for each group of photos, [N]: photos of a group count as one observation.
        before: The former version.
        after: The latter version.
    """

    classes: Classes
    labels: Labels
    groups: Rows
    before: Answers
    after: Answers

    @cached_property
    def hits(self) -> tuple[Hits, Hits]:
        """Whether each version is correct, bool [N]."""
        return self.before.named == self.labels, self.after.named == self.labels

    @cached_property
    def changes(self) -> dict[str, NDArray[np.intp]]:
        """The photos of each of CHANGES, those with the most confident new answers first."""
        before, after = self.hits
        moved = ~before & ~after & (self.before.named != self.after.named)
        found = {BECAME_WRONG: before & ~after, BECAME_RIGHT: ~before & after, STAYED_WRONG: moved}
        rows = {name: np.flatnonzero(mask) for name, mask in found.items()}
        return {name: at[np.argsort(-self.after.confidence[at], kind="stable")] for name, at in rows.items()}

    @property
    def agreement(self) -> float:
        """The share of photos with the same answer."""
        return float((self.before.named == self.after.named).mean())

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """The entry "comparison" of the JSON answer."""
        found = self.tested(np.ones(len(self.labels), bool))
        return found | {"agreement": self.agreement, "kappa": kappa(self.before.named, self.after.named)}

    def tested(self, kept: Hits) -> dict[str, Any]:
        """Return McNemar's exact test and the difference on some photos, of a mask [N], at least one."""
        before, after = (hits[kept] for hits in self.hits)
        only_before, only_after = leads(before, after)
        led_by = leads(before, after, self.groups[kept])
        p_value = mcnemar(*led_by)
        points, interval = paired_difference(before, after, self.groups[kept])
        verdict = NO_DIFFERENCE
        if not only_before + only_after:
            verdict = SAME
        elif sum(led_by) < MIN_APART:
            verdict = TOO_FEW
        elif p_value < SIGNIFICANCE:
            verdict = BETTER if led_by[1] > led_by[0] else WORSE
        found = {
            "photos": int(kept.sum()),
            "both_right": int((before & after).sum()),
            "only_before": only_before,
            "only_after": only_after,
            "neither": int((~before & ~after).sum()),
            "difference": points,
            "difference_95": list(interval),
            "p_value": p_value,
            "verdict": verdict,
        }
        return found | {"sentence": self._sentence(found)}

    def _sentence(self, found: dict[str, Any]) -> str:
        """Return the outcome in words."""
        first, second = self.before.version, self.after.version
        low, high = (f"{100 * value:+.1f}" for value in found["difference_95"])
        points = f"{100 * found['difference']:+.1f} points of accuracy, 95 % interval {low} to {high}"
        if found["verdict"] == SAME:
            return f"Both versions are correct on exactly the same photos ({points})."
        said = {
            BETTER: f"version {second} is better by more than chance",
            WORSE: f"version {second} is worse by more than chance",
            NO_DIFFERENCE: "chance alone can explain the difference",
            TOO_FEW: "too few photos differ to say which version is better",
        }[found["verdict"]]
        only = found["only_after"]
        photos = "1 photo" if only == 1 else f"{only} photos"
        return (
            f"Only version {second} is correct on {photos}, only version {first} on {found['only_before']}: {said} "
            f"({points}; McNemar's exact test, {p_text(found['p_value'])})."
        )

    @cached_property
    def by_class(self) -> dict[str, dict[str, Any]]:
        """Photos, correct answers of both, and the adjusted p-value of every class that has photos."""
        rows = {}
        before, after = self.hits
        for place in np.unique(self.labels).tolist():
            own = self.labels == place
            first, second = before[own], after[own]
            only = leads(first, second)
            rows[self.classes.names[place]] = {
                "photos": int(own.sum()),
                "right_before": int(first.sum()),
                "right_after": int(second.sum()),
                "only_before": only[0],
                "only_after": only[1],
                "p_value": mcnemar(*leads(first, second, self.groups[own])),
            }
        adjusted = holm([row["p_value"] for row in rows.values()])
        return {name: row | {"p_value": p} for (name, row), p in zip(rows.items(), adjusted, strict=True)}

    def without(self, left_out: Hits) -> dict[str, Any]:
        """Return what is measured without some photos, of a mask [N]: accuracy of both, and the test."""
        kept = ~left_out
        if not kept.any():
            return {"photos": 0}
        shares = {name: float(hits[kept].mean()) for name, hits in zip(("before", "after"), self.hits, strict=True)}
        intervals = {name: wilson(share, int(kept.sum())) for name, share in shares.items()}
        accuracies = {
            name: {
                "photos": int(kept.sum()),
                "accuracy": share,
                "accuracy_95": list(intervals[name]),
                "few_photos": any(is_rough(*interval) for interval in intervals.values()),
            }
            for name, share in shares.items()
        }
        return self.tested(kept) | accuracies
