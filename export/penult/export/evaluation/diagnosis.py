"""Diagnose learning curves: under-fit, good, over-fit, or unrepresentative validation photos.

The shapes follow Brownlee, "How to use Learning Curves to Diagnose Machine Learning Model Performance" (2019). The
thresholds below are penult's. The diagnosis decides nothing, because early stopping has chosen the weights already. It
helps the user to change the next run.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from penult.bundle.scores import wilson
from penult.export.config.train import ONE_CYCLE, PLATEAU
from penult.export.evaluation.accuracy import HALF_WIDTH, between, is_rough
from penult.export.training.history import Epoch, History

UNDER_FIT, GOOD, OVER_FIT = "under-fit", "good", "over-fit"
UNREPRESENTATIVE, UNSTABLE, TOO_SHORT, TOO_FEW = "unrepresentative", "unstable", "too short", "too few photos"
ZONES = (UNDER_FIT, GOOD, OVER_FIT)

# A loss that changes by less than this share counts as constant.
TOLERANCE = 0.02
# Validation loss is lower than training loss if it is so by this many standard errors of their difference.
EASIER_ERRORS = 2.0
# Both losses are measured on about as many photos, so the error of their difference is larger by this factor.
DIFFERENCE = math.sqrt(2)
# Validation loss jumps if the median jump is larger than this many of its standard errors. If training loss jumps by at
# least this share of that, the weights cause it and not the validation photos.
JUMP_ERRORS, JUMP_SHARE = 2.0, 0.5
# With fewer epochs, jumps or anything at all cannot be found.
MIN_FOR_JUMPS, MIN_EPOCHS = 8, 3
# Losses are still falling if they fell over the last so many epochs.
LAST_EPOCHS = 5
# A training loss above this share of the loss of guessing means that nothing was learnt.
GUESSING = 0.9

RULE = (
    "Losses are smoothed by a running median of three epochs. The noise of the validation loss is its standard error, "
    f"or {TOLERANCE:.0%} of its lowest value if that is more. "
    "Under-fit: epochs before the best one in which both losses are above their values at the best epoch, the "
    f"validation loss by more than the noise, the training loss by more than {TOLERANCE:.0%}. A run is under-fit if "
    f"both losses still fall by as much over the last {LAST_EPOCHS} epochs, or if the training loss at the kept epoch "
    f"is above {GUESSING:.0%} of the loss of guessing. "
    "Over-fit: epochs after the best one in which the validation loss is above its value there by more than the noise "
    f"while the training loss fell by more than {TOLERANCE:.0%}. A run is over-fit if more than half of the epochs "
    "after the best one are. "
    "Unrepresentative validation photos: at the kept epoch the validation loss is below the training loss by more "
    f"than {EASIER_ERRORS:g} standard errors of the difference, or it jumps from epoch to epoch by more than "
    f"{JUMP_ERRORS:g} standard errors (median) and the training loss by less than {JUMP_SHARE:.0%} of that. If the "
    "training loss jumps too, the run is unstable instead. With the one-cycle schedule, losses jump while the rate is "
    "high and fall until it is 0. So jumps count once the rate is below half its maximum, and falling losses are no "
    "finding. "
    "Too few photos: none of these, but the 95 % interval of the accuracy on the validation photos is wider than "
    f"±{100 * HALF_WIDTH:g} points. Good: none of these, and more validation photos. The rule describes the shape of "
    "the curves. Only the test photos show how accurate the model is."
)
RULE_IN_SHORT = (
    "under-fit: both losses fall until the best epoch · over-fit: validation loss rises by more than its noise while "
    "training loss falls · good: all other epochs"
)


@dataclass(frozen=True)
class Finding:
    """One finding in the curves, with what to do about it."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a run: `findings`, the most serious first, and the zone of every epoch by phase."""

    findings: tuple[Finding, ...]
    kept_phase: str
    kept_epoch: int
    zones: dict[str, tuple[str, ...]]

    @property
    def conclusion(self) -> str:
        """The kind of the most serious finding."""
        return self.findings[0].kind

    @property
    def sentence(self) -> str:
        """All findings as text."""
        return " ".join(finding.sentence for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the entry of metrics.json, with the rule."""
        return {
            "findings": [{"verdict": finding.kind, "sentence": finding.sentence} for finding in self.findings],
            "kept_phase": self.kept_phase,
            "kept_epoch": self.kept_epoch,
            "zones": {name: list(zones) for name, zones in self.zones.items()},
            "conclusion": self.conclusion,
            "sentence": self.sentence,
            "rule": RULE,
        }


def diagnose(history: History, classes: int, schedule: str = PLATEAU, val_photos: int | None = None) -> Diagnosis:
    """Diagnose a run of at least one epoch by RULE.

    Args:
        history: The epochs of the run.
        classes: The number of classes.
        schedule: The schedule of the phase that trains more than the head.
        val_photos: The number of validation photos; None is unknown and counts as enough.
    """
    kept = min(history.epochs, key=lambda epoch: epoch.val_loss)
    phases = {name: history.phase(name) for name in dict.fromkeys(epoch.phase for epoch in history.epochs)}
    zones = {name: zones_of(epochs) for name, epochs in phases.items()}
    last = history.phase(history.epochs[-1].phase)
    # The phase of the head always uses the plateau schedule.
    cycles = {name for name in phases if schedule == ONE_CYCLE and name != "head"}
    found = [
        *_guessing(kept, classes),
        *_easier(kept),
        *_jumping(_calm(phases[kept.phase]) if kept.phase in cycles else phases[kept.phase]),
        *([] if kept.phase in cycles else _still_falling(last, kept)),
        *_over_fit(last, zones[last[0].phase], kept),
    ]
    return Diagnosis(tuple(found or [_nothing_wrong(last, kept, val_photos)]), kept.phase, kept.epoch, zones)


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
            f"({guess:.2f}). Freeze fewer stages, raise --lr-head, or check the labels.",
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
            f"well below that of the training photos ({kept.train_loss:.3f}). They are easier, or copies of training "
            "photos. Set others aside with --val or another --seed.",
        )
    ]


def _calm(epochs: list[Epoch]) -> list[Epoch]:
    """Return the end of a cycle, when the rate is below half its maximum."""
    highest = max(range(len(epochs)), key=lambda row: epochs[row].learning_rate)
    return [epoch for epoch in epochs[highest:] if 2 * epoch.learning_rate < epochs[highest].learning_rate]


def _jumping(epochs: list[Epoch]) -> list[Finding]:
    if len(epochs) < MIN_FOR_JUMPS or not (error := float(np.median([_error(epoch) for epoch in epochs]))):
        return []
    train, val = (_jump([getattr(epoch, name) for epoch in epochs]) for name in ("train_loss", "val_loss"))
    if val <= JUMP_ERRORS * error:
        return []
    size = f"jumps from epoch to epoch by {val:.3f}, much more than its standard error ({error:.3f})"
    if train >= JUMP_SHARE * val:
        return [
            Finding(
                UNSTABLE,
                f"Unstable: the validation loss {size}, and the training loss jumps too ({train:.3f}). "
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
            f"Under-fit: the validation loss was still falling at the last epoch, from {before.val_loss:.3f} at "
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
            f"{last[-1].val_loss:.3f} while the training loss kept falling. The weights of {where}, before that, "
            "were kept. More photos, more frozen stages or a higher --dropout may help.",
        )
    ]


def _nothing_wrong(last: list[Epoch], kept: Epoch, val_photos: int | None) -> Finding:
    if len(last) < MIN_EPOCHS:
        epochs = "1 epoch" if len(last) == 1 else f"{len(last)} epochs"
        return Finding(TOO_SHORT, f"Too few epochs for a diagnosis: the last phase had only {epochs}. Raise --epochs.")
    kept_at = f"epoch {kept.epoch}" if kept.phase == last[0].phase else f"epoch {kept.epoch} of the head alone"
    more = "" if kept.phase == last[0].phase else " Training more layers did not improve on that."
    if val_photos and is_rough(*(interval := wilson(kept.val_accuracy, val_photos))):
        return Finding(
            TOO_FEW,
            "Too few validation photos for a diagnosis: the learning curves show no under-fitting and no over-fitting, "
            f"but {val_photos} validation photos (accuracy {between(*interval)}) would not show it. "
            f"The weights of {kept_at} were kept.{more}",
        )
    return Finding(
        GOOD,
        "The learning curves show no under-fitting and no over-fitting: the validation loss reached "
        f"{kept.val_loss:.3f} ({kept_at}, kept; training loss {kept.train_loss:.3f}) and did not rise by more than its "
        f"noise afterwards.{more} This describes the curves, not the accuracy of the model.",
    )


def _smoothed(losses: list[float]) -> list[float]:
    """Return the running median of three; both ends are unchanged."""
    inner = [float(np.median(losses[row - 1 : row + 2])) for row in range(1, len(losses) - 1)]
    return [losses[0], *inner, losses[-1]] if len(losses) > 1 else list(losses)


def _jump(losses: list[float]) -> float:
    """Return the median distance of a loss from the mean of its neighbours; 0 on a straight line."""
    values = np.array(losses)
    return float(np.median(np.abs(values[1:-1] - (values[:-2] + values[2:]) / 2)))


def _noise(best: Epoch) -> float:
    return max(_error(best), TOLERANCE * best.val_loss)


def _error(epoch: Epoch) -> float:
    """Return the standard error of the validation loss; 0 if the history has none."""
    return float(getattr(epoch, "val_loss_error", 0.0))
