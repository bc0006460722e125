"""What the learning curves say: under-fit, good, over-fit, or validation photos that do not represent the others.

The shapes are those of Brownlee, "How to use Learning Curves to Diagnose Machine Learning Model Performance" (2019);
the thresholds that make them a rule are ours, and stand below. Nothing is decided by this: early stopping has chosen
the weights by then. It tells a person what to change in the next run.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from penult.bundle.scores import wilson
from penult.export.config.train import ONE_CYCLE, PLATEAU
from penult.export.evaluation.accuracy import HALF_WIDTH, between, is_rough
from penult.export.training.history import Epoch, History

UNDER_FIT, GOOD, OVER_FIT = "under-fit", "good", "over-fit"
UNREPRESENTATIVE, UNSTABLE, TOO_SHORT, TOO_FEW = "unrepresentative", "unstable", "too short", "too few photos"
ZONES = (UNDER_FIT, GOOD, OVER_FIT)

# A loss that changes by a smaller share than this stands still.
TOLERANCE = 0.02
# Validation loss counts as lower than training loss where it is so by this many standard errors of their difference.
EASIER_ERRORS = 2.0
# Training loss is measured on about as many photos as validation loss, so their difference errs this much more.
DIFFERENCE = math.sqrt(2)
# Validation loss jumps where the median jump is larger than this many of its standard errors. Where the training loss
# jumps at least this share of that, the weights jump, and the validation photos are not to blame.
JUMP_ERRORS, JUMP_SHARE = 2.0, 0.5
# Fewer epochs show no jumps; fewer than the other show nothing at all.
MIN_FOR_JUMPS, MIN_EPOCHS = 8, 3
# Losses are still falling if they fell over so many last epochs.
LAST_EPOCHS = 5
# A training loss above this share of an even guess's means that nothing was learnt.
GUESSING = 0.9

RULE = (
    "Losses are smoothed by a running median of three epochs. The noise of the validation loss is its standard error, "
    f"and at least {TOLERANCE:.0%} of its lowest value. "
    "Under-fit: before the best epoch, where both losses are still above their values at the best epoch, the "
    f"validation loss by more than the noise, the training loss by more than {TOLERANCE:.0%}; or still falling like "
    f"that over the last {LAST_EPOCHS} epochs; or the training loss at the kept epoch is above {GUESSING:.0%} of a "
    "guess's. "
    "Over-fit: after the best epoch, where the validation loss has risen above its value there by more than the noise "
    f"while the training loss fell by more than {TOLERANCE:.0%}; the run is, if most epochs after the best are. "
    "Unrepresentative validation photos: at the kept epoch the validation loss is below the training loss by more "
    f"than {EASIER_ERRORS:g} standard errors of the difference; or it jumps from epoch to epoch by more than "
    f"{JUMP_ERRORS:g} standard errors (median) and the training loss by less than {JUMP_SHARE:.0%} of that; where the "
    "training loss jumps along, the run is unstable instead. Under one-cycle, losses jump while the rate is high and "
    "fall until it is nothing: jumps count once it is below half its height, and that losses still fall is no finding. "
    "Nothing can be said: none of these, but the accuracy on the validation photos is known to no better than "
    f"±{100 * HALF_WIDTH:g} points (95 % interval). Good: none of these, and more validation photos. The rule is about "
    "the shape of the curves; how accurate the model is, only the test photos show."
)
RULE_IN_SHORT = (
    "under-fit: both losses still falling to the best epoch · over-fit: validation loss up by more than its noise, "
    "training loss still falling · good: the rest"
)


@dataclass(frozen=True)
class Finding:
    """One thing that the curves show, and what to do about it."""

    verdict: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What the curves of a run say: `findings`, the gravest first, and the zone of every epoch by phase."""

    findings: tuple[Finding, ...]
    kept_phase: str
    kept_epoch: int
    zones: dict[str, tuple[str, ...]]

    @property
    def conclusion(self) -> str:
        """The gravest finding in a word."""
        return self.findings[0].verdict

    @property
    def sentence(self) -> str:
        """The findings as running text."""
        return " ".join(finding.sentence for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return what metrics.json tells, the rule included."""
        values = asdict(self)
        # Lists, as JSON gives them back.
        values["findings"] = [dict(finding) for finding in values["findings"]]
        values["zones"] = {name: list(zones) for name, zones in values["zones"].items()}
        return values | {"conclusion": self.conclusion, "sentence": self.sentence, "rule": RULE}


def diagnose(history: History, classes: int, schedule: str = PLATEAU, val_photos: int | None = None) -> Verdict:
    """Judge a run of at least one epoch that told `classes` classes apart, by RULE.

    `schedule` is that of the phase in which more than the head learnt; `val_photos` is how many photos the validation
    loss is of (None: unknown, and taken for enough).
    """
    kept = min(history.epochs, key=lambda epoch: epoch.val_loss)
    phases = {name: history.phase(name) for name in dict.fromkeys(epoch.phase for epoch in history.epochs)}
    zones = {name: zones_of(epochs) for name, epochs in phases.items()}
    last = history.phase(history.epochs[-1].phase)
    # The head alone always learns by plateau.
    cycles = {name for name in phases if schedule == ONE_CYCLE and name != "head"}
    found = [
        *_guessing(kept, classes),
        *_easier(kept),
        *_jumping(_calm(phases[kept.phase]) if kept.phase in cycles else phases[kept.phase]),
        *([] if kept.phase in cycles else _still_falling(last, kept)),
        *_over_fit(last, zones[last[0].phase], kept),
    ]
    return Verdict(tuple(found or [_nothing_wrong(last, kept, val_photos)]), kept.phase, kept.epoch, zones)


def zones_of(epochs: list[Epoch]) -> tuple[str, ...]:
    """Return the zone of every epoch of one phase: UNDER_FIT, GOOD or OVER_FIT."""
    best = min(range(len(epochs)), key=lambda row: epochs[row].val_loss)
    train, val = (_smoothed([getattr(epoch, name) for epoch in epochs]) for name in ("train_loss", "val_loss"))
    noise, step = _noise(epochs[best]), TOLERANCE * train[best]

    def zone(row: int) -> str:
        if val[row] <= val[best] + noise:
            return GOOD
        if row < best and train[row] > train[best] + step:
            return UNDER_FIT
        return OVER_FIT if row > best and train[row] < train[best] - step else GOOD

    return tuple(zone(row) for row in range(len(epochs)))


def _guessing(kept: Epoch, classes: int) -> list[Finding]:
    guess = math.log(classes)
    if kept.train_loss <= GUESSING * guess:
        return []
    return [
        Finding(
            UNDER_FIT,
            f"Under-fit: even on the training photos the loss ({kept.train_loss:.2f}) is hardly below that of guessing "
            f"({guess:.2f}). Freeze fewer stages, raise --lr-head, or look at whether the labels are right.",
        )
    ]


def _easier(kept: Epoch) -> list[Finding]:
    error = _error(kept)
    if not error or kept.train_loss - kept.val_loss <= EASIER_ERRORS * DIFFERENCE * error:
        return []
    return [
        Finding(
            UNREPRESENTATIVE,
            f"The validation photos do not represent the others: their loss ({kept.val_loss:.3f} ± {error:.3f}) is "
            f"well below that of the training photos ({kept.train_loss:.3f}). They are easier, or copies of photos "
            "learnt from; set others aside with --val or another --seed.",
        )
    ]


def _calm(epochs: list[Epoch]) -> list[Epoch]:
    """Return the end of a cycle, where the rate is below half its height."""
    highest = max(range(len(epochs)), key=lambda row: epochs[row].learning_rate)
    return [epoch for epoch in epochs[highest:] if 2 * epoch.learning_rate < epochs[highest].learning_rate]


def _jumping(epochs: list[Epoch]) -> list[Finding]:
    if len(epochs) < MIN_FOR_JUMPS or not (error := float(np.median([_error(epoch) for epoch in epochs]))):
        return []
    train, val = (_jump([getattr(epoch, name) for epoch in epochs]) for name in ("train_loss", "val_loss"))
    if val <= JUMP_ERRORS * error:
        return []
    size = f"jumps from epoch to epoch by {val:.3f}, much more than its standard error ({error:.3f}) explains"
    if train >= JUMP_SHARE * val:
        return [
            Finding(
                UNSTABLE,
                f"Unstable: the validation loss {size}, and the training loss jumps along ({train:.3f}). "
                "Lower --lr-head and --lr-backbone.",
            )
        ]
    return [
        Finding(
            UNREPRESENTATIVE,
            f"The validation photos may not represent the others: their loss {size}, while the training loss does "
            f"not ({train:.3f}). Set more photos aside with --val.",
        )
    ]


def _still_falling(last: list[Epoch], kept: Epoch) -> list[Finding]:
    if kept is not last[-1] or len(last) < 2:
        return []
    before = last[-min(LAST_EPOCHS, len(last))]
    fell = before.val_loss - kept.val_loss > _noise(kept)
    if not fell or before.train_loss <= kept.train_loss * (1 + TOLERANCE):
        return []
    option = "--head-epochs" if kept.phase == "head" else "--epochs"
    return [
        Finding(
            UNDER_FIT,
            f"Under-fit: the validation loss was still falling when the epochs ran out, from {before.val_loss:.3f} at "
            f"epoch {before.epoch} to {kept.val_loss:.3f} at epoch {kept.epoch}. Raise {option}.",
        )
    ]


def _over_fit(last: list[Epoch], zones: tuple[str, ...], kept: Epoch) -> list[Finding]:
    best = min(range(len(last)), key=lambda row: last[row].val_loss)
    after = zones[best + 1 :]
    if 2 * after.count(OVER_FIT) <= len(after):
        return []
    first = last[zones.index(OVER_FIT)].epoch
    where = f"epoch {kept.epoch}" if kept.phase == last[0].phase else f"epoch {kept.epoch} of the head alone"
    return [
        Finding(
            OVER_FIT,
            f"Over-fit from epoch {first} on: the validation loss rose from {last[best].val_loss:.3f} to "
            f"{last[-1].val_loss:.3f} while the training loss went on falling. The weights of {where}, before that, "
            "were kept. More photos, more frozen stages or a higher --dropout would let it learn for longer.",
        )
    ]


def _nothing_wrong(last: list[Epoch], kept: Epoch, val_photos: int | None) -> Finding:
    if len(last) < MIN_EPOCHS:
        epochs = "1 epoch" if len(last) == 1 else f"{len(last)} epochs"
        return Finding(TOO_SHORT, f"Too short to say: the last phase had only {epochs}. Raise --epochs.")
    kept_at = f"epoch {kept.epoch}" if kept.phase == last[0].phase else f"epoch {kept.epoch} of the head alone"
    more = "" if kept.phase == last[0].phase else " Learning in more layers did not beat that."
    if val_photos and is_rough(*(interval := wilson(kept.val_accuracy, val_photos))):
        return Finding(
            TOO_FEW,
            "Nothing can be said of the fit: the learning curves show no under-fitting and no over-fitting, but they "
            f"are of {val_photos} validation photos (accuracy {between(*interval)}), too few to show it. "
            f"Kept: {kept_at}.{more}",
        )
    return Finding(
        GOOD,
        "The learning curves show no under-fitting and no over-fitting: the validation loss levelled off at "
        f"{kept.val_loss:.3f} ({kept_at}, kept; training loss there {kept.train_loss:.3f}) and did not rise beyond its "
        f"noise afterwards.{more} This is about the curves, not about how accurate the model is.",
    )


def _smoothed(losses: list[float]) -> list[float]:
    """Return the running median of three; the ends stay as they are."""
    inner = [float(np.median(losses[row - 1 : row + 2])) for row in range(1, len(losses) - 1)]
    return [losses[0], *inner, losses[-1]] if len(losses) > 1 else list(losses)


def _jump(losses: list[float]) -> float:
    """Return the median distance of a loss from the middle between its neighbours: 0 on a straight line."""
    values = np.array(losses)
    return float(np.median(np.abs(values[1:-1] - (values[:-2] + values[2:]) / 2)))


def _noise(best: Epoch) -> float:
    return max(_error(best), TOLERANCE * best.val_loss)


def _error(epoch: Epoch) -> float:
    """Return the standard error of the validation loss; 0 where the history does not know it."""
    return float(getattr(epoch, "val_loss_error", 0.0))
