"""Choose the default scorer, and say how sure the choice is.

If all layers are frozen, no label has shaped the descriptors, and repeated cross-validation decides. It uses training
and validation photos, and trains a new dense head in every fold. If the network was fine-tuned, its training photos
are already apart by class, so every fold would look too easy. Then validation photos decide.

In both cases the SVM is the default unless the dense head is clearly better. The reasons and the measurements behind
them are in bench/RESULTS.md ("photos before learning").
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from penult.bundle.manifest import DENSE, SVM
from penult.bundle.scores import Floats
from penult.console import progress
from penult.export.config.known_networks import find
from penult.export.config.train import FREEZE_ALL, freeze_text
from penult.export.evaluation import svm_cost
from penult.export.evaluation.dense_head import HeadRecipe, fit_head
from penult.export.evaluation.folds import Labels, Rows, Split, hits_by_repeat, repeated, seed_of
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.evaluation.paired import paired_difference
from penult.export.evaluation.svm import TRAINING_AND_VALIDATION, FittedSvm, counts_of, fit, fit_again
from penult.interrupts import pool

CROSS_VALIDATION, VALIDATION = "cross-validation", "validation"
NO_DIFFERENCE = "no difference seen"
# What the rules are, in words, for the report.
RULES = {
    CROSS_VALIDATION: (
        "All layers but the head are frozen, so photos can be held out again and again, and both scorers are trained "
        "without them each time."
    ),
    VALIDATION: (
        "The photos that the network or its dense head learnt from would look too easy, so only validation photos "
        "decide. If the photos do not show a difference, the SVM is the default, because it also learns from them "
        "afterwards."
    ),
}
_SURE = 0.95
# Of an inner division into training and validation photos, as many folds at most.
_MAX_INNER = 10


@dataclass(frozen=True)
class Plan:
    """How an SVM is fitted, and what is known of the network.

    Attributes:
        kernel: "linear", "rbf" or "auto".
        class_weight: None or "balanced".
        seed: Decides folds.
        is_frozen: True if no label of any photo has shaped the descriptors.
        head: How the dense head was trained on these very photos; None if it cannot be trained again in a fold.
    """

    kernel: str
    class_weight: str | None
    seed: int
    is_frozen: bool = False
    head: HeadRecipe | None = None

    @classmethod
    def of(
        cls,
        trained: Mapping[str, Any],
        architecture: str,
        kernel: str,
        class_weight: str | None,
        seed: int,
        is_same: bool,
        reads_descriptor: bool,
    ) -> "Plan":
        """Make the plan for a network from the recorded settings of its training.

        Args:
            trained: The settings; only `freeze` = "all" says that no label has shaped the descriptors.
            architecture: Its name; the dropout of its head is known.
            kernel: As in Plan.
            class_weight: As in Plan.
            seed: As in Plan.
            is_same: True if the dense head was trained on these very photos, divided in the same way. Of other photos
                it may have learnt from some, and penult cannot know from which.
            reads_descriptor: True if the dense head reads the descriptors. It does not if they are whitened, or of
                another layer.
        """
        is_frozen, network = trained.get("freeze") == freeze_text(FREEZE_ALL), find(architecture)
        can_train = is_frozen and is_same and reads_descriptor and network is not None
        head = HeadRecipe.of(trained, network.dropout) if can_train and network else None
        return cls(kernel, class_weight, seed, is_frozen, head)


@dataclass(frozen=True)
class Choice:
    """The default scorer and the evidence for it.

    Attributes:
        rule: CROSS_VALIDATION or VALIDATION.
        photos: How many photos decided.
        difference: The accuracy of the SVM minus that of the dense head.
        interval: Its 95 % interval.
        by_repeat: The difference of each repeat of the cross-validation.
    """

    rule: str
    photos: int
    folds: int
    difference: float
    interval: tuple[float, float]
    by_repeat: tuple[float, ...] = ()

    @property
    def scorer(self) -> str:
        """The default scorer: the SVM unless the dense head is clearly better."""
        return DENSE if self.interval[1] < 0 else SVM

    @property
    def verdict(self) -> str:
        """SVM or DENSE if one of them is clearly better, else NO_DIFFERENCE."""
        low, high = self.interval
        return NO_DIFFERENCE if low <= 0 <= high else self.scorer

    def as_json(self) -> dict[str, Any]:
        """Return the entry "choice" of metrics.json."""
        return {
            "rule": self.rule,
            "photos": self.photos,
            "repeats": len(self.by_repeat),
            "folds": self.folds,
            "difference": self.difference,
            "interval_95": list(self.interval),
            "difference_by_repeat": list(self.by_repeat),
            "verdict": self.verdict,
            "default_scorer": self.scorer,
            "sentence": self.sentence,
        }

    @property
    def sentence(self) -> str:
        """The choice in words."""
        low, high = (f"{100 * value:+.1f}" for value in self.interval)
        found = f"{100 * self.difference:+.1f} points of accuracy (95 % interval {low} to {high})"
        how = f"on the {self.photos} validation photos"
        if self.rule == CROSS_VALIDATION:
            times = f", repeated {len(self.by_repeat)} times," if len(self.by_repeat) > 1 else ""
            how = f"in {self.folds}-fold cross-validation{times} on the {self.photos} training and validation photos"
        said = {
            SVM: "The SVM is clearly better, so it is the default scorer",
            DENSE: "The dense head is clearly better, so it is the default scorer",
            NO_DIFFERENCE: "No difference seen between SVM and dense head, so the SVM is the default scorer",
        }[self.verdict]
        return f"{said}: SVM minus dense head is {found} {how}."


def by_cross_validation(svm: NDArray[np.bool_], dense: NDArray[np.bool_], repeats: Sequence[Sequence[Split]]) -> Choice:
    """Compare correct answers [repeats, N] on held-out photos.

    The interval is that of the corrected resampled t-test (Nadeau and Bengio 2003; Bouckaert and Frank 2004). Folds
    share their training photos, so the variance of their mean is larger than that of independent measurements. One
    further photo counts as different, because equal answers to a few photos do not show that there is no difference.
    """
    lead = svm.astype(float) - dense
    held = [(repeat, rows) for repeat, splits in enumerate(repeats) for _, rows in splits]
    of_fold = np.array([lead[repeat, rows].mean() for repeat, rows in held])
    seen = np.zeros(lead.shape, dtype=bool)
    for repeat, rows in held:
        seen[repeat, rows] = True
    difference, photos = float(lead[seen].mean()), int(seen.any(axis=0).sum())
    folds = len(held) / len(repeats)
    variance = of_fold.var(ddof=1) + folds / photos**2
    error = math.sqrt((1 / len(held) + 1 / max(folds - 1, 1)) * variance)
    half = float(student.ppf((1 + _SURE) / 2, len(held) - 1)) * error
    by_repeat = tuple(float(row[kept].mean()) for row, kept in zip(lead, seen, strict=True))
    return Choice(CROSS_VALIDATION, photos, round(folds), difference, _bounded(difference, half), by_repeat)


def by_validation(svm: NDArray[np.bool_], dense: NDArray[np.bool_], groups: Rows | None = None) -> Choice:
    """Compare correct answers [N] on validation photos; photos of a group count as one observation."""
    found, interval = paired_difference(dense, svm, groups)
    return Choice(VALIDATION, len(svm), 0, found, interval)


def _bounded(middle: float, half: float) -> tuple[float, float]:
    return max(middle - half, -1.0), min(middle + half, 1.0)


def fit_and_choose(
    plan: Plan, measured: Mapping[str, SplitOutputs], groups: Rows, has_dense: bool
) -> tuple[FittedSvm, Choice | None]:
    """Search and fit the SVM, and choose the default scorer; test photos are not used.

    Args:
        plan: The options.
        measured: The network's outputs of "train" and "val".
        groups: The group number of each training photo, then of each validation photo.
        has_dense: False if the SVM is the only scorer.

    Returns:
        The SVM, fitted on the training photos alone, and the choice; None if there is nothing to choose from.
    """
    train, val = measured["train"], measured["val"]
    of_train, of_val = groups[: len(train.labels)], groups[len(train.labels) :]
    if not plan.is_frozen:
        svm = fit(
            train.descriptors, train.labels, plan.seed, plan.kernel, plan.class_weight, of_train, is_fine_tuned=True
        )
        return svm, _on_validation(svm, val, of_val) if has_dense else None
    descriptors, labels = (
        np.concatenate([getattr(m, name) for m in (train, val)]) for name in ("descriptors", "labels")
    )
    counts, head = counts_of(labels, descriptors.shape[1], groups), plan.head if has_dense else None
    repeats = svm_cost.repeats(plan.kernel, counts, head.head_epochs if head else 0)
    found = fit(descriptors, labels, plan.seed, plan.kernel, plan.class_weight, groups, max(repeats, 1))
    svm = replace(fit_again(found, train.descriptors, train.labels), parts=TRAINING_AND_VALIDATION)
    if not has_dense:
        return svm, None
    chosen = found.searches[0]
    if not (head and repeats and len(chosen.rows) == len(labels)):
        return svm, _on_validation(svm, val, of_val)
    splits = repeated(labels, groups, plan.seed, repeats)
    dense = _dense_hits(head, descriptors, labels, groups, splits, len(val.labels) / len(labels), plan.seed)
    return svm, by_cross_validation(chosen.unbiased_hits(splits), dense, splits)


def _on_validation(svm: FittedSvm, val: SplitOutputs, groups: Rows) -> Choice:
    of_svm, of_dense = (scores.argmax(axis=1) == val.labels for scores in (svm.scores(val.descriptors), val.logits))
    return by_validation(of_svm, of_dense, groups)


def _dense_hits(
    head: HeadRecipe,
    descriptors: Floats,
    labels: Labels,
    groups: Rows,
    repeats: Sequence[Sequence[Split]],
    val_share: float,
    seed: int,
) -> NDArray[np.bool_]:
    """Return the correct answers [repeats, N] of dense heads, each trained as `penult train` does without one fold.

    As in training, a share of the photos is set aside for learning rate and early stopping.
    """
    classes, inner = int(labels.max()) + 1, int(np.clip(round(1 / val_share), 2, _MAX_INNER))
    splits = [split for repeat in repeats for split in repeat]

    def answers(numbered: tuple[int, Split]) -> Labels:
        number, (known, held_out) = numbered
        own = seed_of(seed, number)
        divided = repeated(labels[known], groups[known], own, 1, inner)[0]
        train, val = (known[rows] for rows in divided[0]) if divided else (known, known)
        parts = [(descriptors[rows], labels[rows]) for rows in (train, val)]
        logits = fit_head(head, parts[0], parts[1], classes, own).logits(descriptors[held_out])
        return np.asarray(logits.argmax(axis=1))

    with pool(min(len(splits), os.cpu_count() or 1)) as threads:
        found = threads.map(answers, enumerate(splits))
        return hits_by_repeat(labels, repeats, progress(found, "training a dense head for each fold", len(splits)))
