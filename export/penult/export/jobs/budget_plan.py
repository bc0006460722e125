"""The decisions of `penult train --budget`, as functions of measured numbers and of the time on a clock.

None reads a clock or a file, so the same numbers give the same decisions. Times are seconds since the run began.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penult.export.config.known_networks import Network, get
from penult.export.config.train import CROP, ONE_CYCLE, STRETCH, TrainSettings
from penult.export.training.pace import Round

# The run aims at this share of its budget; what is left is for what was measured too low.
AIM = 0.96
# What publishing took for the frozen network, times this, is kept for the fine-tuned one.
RESERVE = 1.25
# Networks are ranked, and sizes and views are compared, in at most this share of the budget.
EXPLORING = 0.25
# Finishing a network as a bundle may take this share; if it takes longer, fewer views are served.
FINISHING = 0.25
# A fine-tuning that is worth its time has at least so many epochs, or so many steps.
MIN_EPOCHS, MIN_STEPS = 2, 30
# With so many steps MobileNetV2 has learnt TrashNet's photos by heart; more epochs gave nothing (bench/RESULTS.md).
_WANTED_STEPS, _LEAST_WANTED, _MOST_WANTED = 660, 12, 30
TRIAL_EPOCHS = 3
# The final training may be shortened to this share of its epochs for the sake of trials.
_FINAL_SHARE = 0.75
# Few photos rank many networks; more rank those that are left.
_FIRST_RANKED, _RANKED = 150, 600
FINALISTS = 2
# Copies are asked about on more photos, because the answer decides how long training takes to be wrong; at most in this
# share of the budget.
_COPIED = 1200
COPYING = 0.1
# Fewer photos answer nothing.
LEAST_ASKED = 80
# The sizes tried beside the network's own: an eighth more of each side, as 256 is of 224.
_LARGER = 8 / 7
# Crops that are learnt from, as a share of those that are served (Touvron et al. 2019: they look alike to the network).
_TRAIN_CROP = 0.7
_MULTIPLE = 16
# Crops of smaller networks are not made smaller.
_SMALL = 96


@dataclass(frozen=True)
class Look:
    """How photos become the input of a network: side of the crop, and --fit."""

    crop: int
    fit: str

    @property
    def text(self) -> str:
        """The look in words."""
        return f"{self.crop} px" + (", stretched" if self.fit == STRETCH else "")

    def settings(self) -> dict[str, Any]:
        """Return the options of `penult train`."""
        return {"crop": self.crop, "fit": self.fit}


def looks(network: Network, crop: int = 0, fit: str = "") -> tuple[Look, ...]:
    """Return the looks to compare, the network's own first; a `crop` or `fit` that is given is kept."""
    own = network.preprocess.crop
    larger = round(own * _LARGER / 32) * 32
    sides = [crop or own]
    if not crop and larger > own and not network.dense:
        sides.append(larger)
    fits = [fit] if fit else [CROP, STRETCH]
    return tuple(Look(side, how) for how in fits for side in sides)


def rungs(networks: int, photos: int) -> tuple[tuple[int, int], ...]:
    """Return the rounds of successive halving: photos, and networks that stay (Jamieson and Talwalkar 2016)."""
    found, count, kept = [], min(photos, _FIRST_RANKED), networks
    while kept > FINALISTS:
        kept = max(FINALISTS, math.ceil(kept / 2))
        found.append((count, kept))
        count = min(photos, 2 * count, _RANKED)
    if networks > 1:
        found.append((min(photos, _RANKED), min(kept, FINALISTS)))
    return tuple(found)


def compared_photos(photos: int) -> int:
    """Return on how many photos sizes and views are compared."""
    return min(photos, _RANKED)


def photos_that_fit(photos: int, each_s: float, left_s: float) -> int:
    """Return on how many photos to ask, at `each_s` for each; 0 if not even a few fit."""
    return _fitting(compared_photos(photos), photos, each_s, left_s)


def copied_photos(photos: int, each_s: float, left_s: float) -> int:
    """Return on how many photos to ask about copies; 0 if not even a few fit."""
    return _fitting(min(photos, _COPIED), photos, each_s, left_s)


def _fitting(count: int, photos: int, each_s: float, left_s: float) -> int:
    if each_s > 0:
        count = math.floor(min(count, max(left_s, 0) / each_s))
    return count if count >= min(photos, LEAST_ASKED) else 0


def train_crop(served: int) -> int:
    """Return the side of the crops that a network learns from, in pixels."""
    if served < _SMALL:
        return served
    return min(served, max(_MULTIPLE, round(served * _TRAIN_CROP / _MULTIPLE) * _MULTIPLE))


def wanted_epochs(steps: int) -> int:
    """Return the epochs of a fine-tuning that has time enough, for epochs of `steps` steps."""
    return min(max(math.ceil(_WANTED_STEPS / max(steps, 1)), _LEAST_WANTED), _MOST_WANTED)


def size_of(arch: str) -> int:
    """Return the parameters of a network, by which networks that are not measured are compared."""
    return get(arch).parameters


def recipe(look: Look, augment: str, views: int, freeze: int = 2) -> dict[str, Any]:
    """Return the options of a fine-tuning; the rates are those that were best on TrashNet (bench/RESULTS.md)."""
    return look.settings() | {
        "augment": augment,
        "views": views,
        "freeze": freeze,
        "train_crop": train_crop(look.crop),
        "schedule": ONE_CYCLE,
        "lr_head": 2e-3,
        "lr_backbone": 7e-4,
        "lr_stage_decay": 0.7,
    }


def variations(usual: TrainSettings) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return what is tried beside a recipe, the most useful first: what it is called, and the options that differ.

    An option that is given is kept.
    """
    other = {"photo": "topdown", "topdown": "photo"}.get(usual.augment, "photo")
    found: list[tuple[str, dict[str, Any]]] = [("lower rates", {"lr_backbone": usual.lr_backbone * 0.3})]
    if usual.views <= 2:  # more views are turned copies, which the network must know
        found.append((f"augmentation {other}", {"augment": other}))
    found += [(f"{count} stages frozen", {"freeze": count}) for count in (3, 0) if count != usual.freeze]
    return tuple((what, options) for what, options in found)


@dataclass(frozen=True)
class Costs:
    """Seconds of a step of training, of measuring between rounds, and of all that comes before and after a training."""

    step_s: float
    measure_s: float
    around_s: float = 0.0

    def training_s(self, epochs: float, steps: int) -> float:
        """Return the seconds of a training."""
        return self.around_s + epochs * (steps * self.step_s + self.measure_s)


def affordable_views(views: int, cost_s: Callable[[int], float], allowed_s: float) -> int:
    """Return the most views, at most `views`, that cost no more than is allowed; at least one."""
    while views > 1 and cost_s(views) > allowed_s:
        views //= 2
    return views


def reserve_s(took_s: float, frozen_s: float, tuned_s: float) -> float:
    """Return what finishing a fine-tuned network takes.

    Args:
        took_s: What the frozen one took.
        frozen_s: What describing photos was expected to take of that.
        tuned_s: What describing photos by the fine-tuned one is expected to take.
    """
    describing_s = min(frozen_s, 0.8 * took_s)
    return took_s - describing_s + describing_s * (tuned_s / frozen_s if frozen_s > 0 else 1.0)


def deadline_s(budget_s: float, reserve_s: float) -> float:
    """Return when training must end, so that what `reserve_s` is kept for ends in time."""
    return AIM * budget_s - RESERVE * reserve_s


def exploring_ends_s(budget_s: float, begun_s: float, frozen_s: float) -> float:
    """Return when comparing frozen networks ends, so that one of them, which takes `frozen_s`, is finished in time."""
    return min(begun_s + EXPLORING * budget_s, AIM * budget_s - 1.3 * frozen_s)


def can_fine_tune(costs: Costs, steps: int, left_s: float) -> bool:
    """Return True if the time left is enough for a fine-tuning that is worth it."""
    epochs = min(MIN_EPOCHS, MIN_STEPS / max(steps, 1))
    return costs.training_s(epochs, steps) <= left_s


def trials_s(costs: Costs, steps: int, wanted: float, left_s: float) -> float:
    """Return the time for trials; the final training has half of it, and three quarters of its `wanted` epochs."""
    final_s = costs.training_s(_FINAL_SHARE * wanted, steps)
    return max(0.0, min(left_s - final_s, left_s / 2))


def fits(cost_s: float, left_s: float) -> bool:
    """Return True if something that takes so long can be started."""
    return cost_s <= left_s


def next_round(
    done: Sequence[Round], took_s: Sequence[float], costs: Costs, steps: int, wanted: float, left_s: float
) -> Round | None:
    """Return the next round of a training; None at its end.

    Args:
        done: The rounds before.
        took_s: How long each took.
        costs: What steps and measurements were expected to take.
        steps: Steps of an epoch.
        wanted: Epochs of the whole training if there is time enough.
        left_s: Seconds until the training must end.
    """
    progress = done[-1].end if done else 0.0
    if progress >= 1 or (done and done[-1].taken < done[-1].steps):
        return None
    expected = [each.taken * costs.step_s + costs.measure_s for each in done[-2:]]
    # Twice as slow as expected, so will the next rounds be.
    slower = sum(took_s[-2:]) / sum(expected) if done and sum(expected) > 0 else 1.0
    step_s, measure_s = costs.step_s * slower, costs.measure_s * slower
    size = done[0].steps if done else _round_steps(step_s, measure_s, steps, left_s)
    taken = sum(each.taken for each in done)
    round_s = size * step_s + measure_s
    in_time = math.floor(left_s / round_s + 1e-9) if round_s > 0 else _MOST_WANTED
    rounds = min(in_time, math.ceil((wanted * steps - taken) / size - 1e-9))
    if rounds >= 1:
        return Round(size, progress, progress + (1 - progress) / rounds, size)
    short = math.floor((left_s - measure_s) / step_s) if step_s > 0 else 0
    if wanted * steps <= taken or short < max(1, size // 10):
        return None
    return Round(short, progress, 1.0, short)


def _round_steps(step_s: float, measure_s: float, steps: int, left_s: float) -> int:
    """Return the steps of a round: an epoch, or less if not even four epochs fit."""
    in_quarter = math.floor((left_s / 4 - measure_s) / step_s) if step_s > 0 else steps
    return max(1, min(steps, in_quarter))


def least_budget(needed_s: float) -> str:
    """Return a budget that is enough, as --budget takes it."""
    rounded = math.ceil(1.2 * needed_s / 10) * 10
    return f"{rounded}s" if rounded <= 120 else f"{math.ceil(rounded / 60)}m"


def augmentation(
    mirrored: Mapping[str, float] | None, turned: Mapping[str, float] | None, turned_views: Mapping[str, float] | None
) -> str:
    """Return --augment, from what copies do to the accuracy of an SVM.

    Two answers say whether photos have an upright way: learning from turned copies, and the mean over turned views.
    Their sum was 3 points on photos from above, and 0.5 to 0.8 on upright ones (bench/RESULTS.md). It must be more than
    1.5 standard errors.

    Args:
        mirrored: `lead` of learning from mirrored copies too, over the photos alone, and `lead_error`; None: not asked.
        turned: The same of learning from turned copies too, over learning from mirrored ones.
        turned_views: The same of the mean over four views, of which two are turned, over that of two.
    """
    if mirrored is not None and mirrored["lead"] < -2 * mirrored["lead_error"]:
        return "gentle"
    answers = [each for each in (turned, turned_views) if each is not None]
    if sum(each["lead"] for each in answers) > 1.5 * math.hypot(*(each["lead_error"] for each in answers)):
        return "topdown"
    return "photo"


def views_of(augment: str, leads: Mapping[int, Mapping[str, float]]) -> int:
    """Return how many views to serve: as many as the augmentation has, unless they are worse than one.

    More views gained on every set that was measured, but by less than a few hundred photos show (bench/RESULTS.md).

    Args:
        augment: The network learns from such copies only.
        leads: `lead` and `lead_error` of 2 and 4 views over one, on frozen descriptors.
    """
    most = {"topdown": 4, "gentle": 1, "none": 1}.get(augment, 2)
    good = [count for count, each in leads.items() if count <= most and each["lead"] > -each["lead_error"]]
    return max(good, default=1)


def order_for_tuning(accuracies: Sequence[float], imagenet: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Return the places of networks in the order in which to fine-tune them.

    If frozen accuracies are near the best one, accuracy on ImageNet decides (Kornblith et al. 2019). It correlates with
    accuracy after fine-tuning by 0.96. `errors` are standard errors of the accuracies.
    """
    best = max(range(len(accuracies)), key=lambda n: accuracies[n])
    near = [n for n in range(len(accuracies)) if accuracies[best] - accuracies[n] <= 3 * errors[best]]
    known = all(imagenet[n] for n in near)
    first = sorted(near, key=lambda n: (-imagenet[n] if known else 0, -accuracies[n]))
    rest = sorted(set(range(len(accuracies))) - set(near), key=lambda n: -accuracies[n])
    return first + rest
