"""Which photo to label next.

A strategy is a function of a situation, a source of random numbers and a count. It returns at most `count` picks, best
first, from the open photos; none if it has nothing to ask. choose() mixes the strategies of STRATEGIES by turns.
docs/label.md, "Add a strategy", shows how to add one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from penult.bundle.scores import Floats
from penult.label.learner import RIDGE, Fit, Rows, kernel, kernel_width

TYPICAL, UNSURE, RANDOM, NEW, CHECK = "typical", "unsure", "random", "new", "check"
# So many labels are asked for typical photos, before the classifier decides.
COLD_START = 20
# Every so many answers, one photo is random, one is unlike anything labelled, one is a suspect label.
_RANDOM_EVERY, _NEW_EVERY, _CHECK_EVERY = 10, 25, 25
# Up to so many labels, the variance that a label takes away decides together with the margin; then the margin alone.
_VARIANCE_UNTIL = 250
# Photos are compared with so many random ones, and chosen among so many of these, the least sure ones.
_MAX_TARGETS, _MAX_CANDIDATES = 1000, 500
# By margin alone, photos are chosen among so many random ones, and so many of the least sure for each pick.
_MAX_SEARCHED, _AMONG = 20_000, 6
# A photo is new if it is farther than this share of labelled photos are from each other.
_NEW_QUANTILE = 0.995
# A label is checked if it has less than this probability.
_CHECK_BELOW = 0.2
# Photos above this cosine are probably near-copies. If all are, as with random weights, so many tries are enough.
_NEAR_COSINE, _TRIES = 0.95, 4


@dataclass(frozen=True)
class Situation:
    """What a strategy may know.

    Attributes:
        inputs: Descriptors of length 1, float32 [N, length].
        groups: A number for each photo that near-copies share, int64 [N].
        rows: The labelled photos, [n].
        labels: Their classes, int64 [n].
        classes: The names of the classes.
        fit: The last fit, which may lack the last labels; None before the first.
        open: The photos that may be asked.
        checked: Labelled photos whose label was looked at again.
    """

    inputs: Floats
    groups: NDArray[np.int64]
    rows: Rows
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    fit: Fit | None
    open: Rows
    checked: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Pick:
    """A photo to ask.

    Attributes:
        row: The photo.
        kind: The strategy's name.
        reason: Why it is asked, a phrase for the page.
    """

    row: int
    kind: str
    reason: str


Strategy = Callable[[Situation, np.random.Generator, int], list[Pick]]


def typical(situation: Situation, random: np.random.Generator, count: int) -> list[Pick]:
    """Pick photos that stand for many others and are unlike those labelled, by descriptors alone.

    A label takes variance away from the classifier's answers, most where photos are alike. Each pick takes away as much
    as possible (Cohn, Ghahramani and Jordan 1996).
    """
    targets = _some(situation.open, _MAX_TARGETS, random)
    weights = np.ones(len(targets), np.float32)
    places = _take_variance(situation, targets[:_MAX_CANDIDATES], targets, weights, weights[:_MAX_CANDIDATES], count)
    return [Pick(int(targets[place]), TYPICAL, "typical of many photos") for place in places]


def unsure(situation: Situation, random: np.random.Generator, count: int) -> list[Pick]:
    """Pick photos whose two most probable classes are close, and that stand for other such photos.

    With few labels, each pick takes away as much variance as possible from unsure photos. With more labels, picks are
    those of the smallest margins that are farthest from each other (k-center, Sener and Savarese 2018).
    """
    fit = situation.fit
    if fit is None or fit.classes < 2 or not len(situation.open):
        return []
    if len(situation.rows) < _VARIANCE_UNTIL:
        targets = _some(situation.open, _MAX_TARGETS + _MAX_CANDIDATES, random)
        doubts = 1 - _margins(fit, targets)
        least = np.argsort(-doubts, kind="stable")[:_MAX_CANDIDATES]
        rows, others = targets[least], targets[:_MAX_TARGETS]
        places = _take_variance(situation, rows, others, doubts[:_MAX_TARGETS], doubts[least], count)
    else:
        searched = _some(situation.open, _MAX_SEARCHED, random)
        margins = _margins(fit, searched)
        rows = searched[np.argsort(margins, kind="stable")[: max(1, _AMONG * count)]]
        places = _k_center(situation.inputs[rows], count)
    picks = []
    for row in rows[places].tolist():
        first, second = (situation.classes[label] for label in np.argsort(-fit.probabilities[row], kind="stable")[:2])
        picks.append(Pick(row, UNSURE, f"unsure between {first} and {second}"))
    return picks


def at_random(situation: Situation, random: np.random.Generator, count: int) -> list[Pick]:
    """Pick the next photos of the fixed random order, which measure the accuracy without bias."""
    is_open = np.zeros(len(situation.inputs), bool)
    is_open[situation.open] = True
    order = situation.fit.order if situation.fit is not None else random.permutation(len(is_open))
    return [Pick(row, RANDOM, "picked at random") for row in order[is_open[order]][:count].tolist()]


def new(situation: Situation, random: np.random.Generator, count: int) -> list[Pick]:
    """Pick the photos that are farther from all labelled ones than these usually are from each other."""
    fit, rows = situation.fit, situation.open
    if fit is None or not len(rows):
        return []
    bound = np.quantile(fit.usual_novelty, _NEW_QUANTILE)
    order = rows[np.argsort(-fit.novelty[rows], kind="stable")[:count]]
    return [Pick(row, NEW, "unlike anything labelled") for row in order.tolist() if fit.novelty[row] > bound]


class Suspect(NamedTuple):
    """A labelled photo whose label is improbable: its row, label, most probable class and that one's probability."""

    row: int
    label: int
    likely: int
    probability: float


def suspects(fit: Fit, labels: Mapping[int, int], confirmed: Set[int]) -> Iterator[Suspect]:
    """Yield labels that are improbable to a classifier without the photo, the least probable first.

    Args:
        fit: The last fit.
        labels: The labels now, by row; those that have changed since the fit are passed over.
        confirmed: Photos whose label is not doubted.
    """
    given = fit.left_out[np.arange(len(fit.rows)), fit.labels]
    for place in np.argsort(given, kind="stable").tolist():
        if not given[place] < _CHECK_BELOW:  # at the end, NaN: these were not left out
            return
        row, label, likely = int(fit.rows[place]), int(fit.labels[place]), int(fit.left_out[place].argmax())
        if row not in confirmed and labels.get(row) == label != likely:
            yield Suspect(row, label, likely, float(fit.left_out[place, likely]))


def check(situation: Situation, random: np.random.Generator, count: int) -> list[Pick]:
    """Pick labelled photos whose label is improbable to a classifier without them."""
    if situation.fit is None:
        return []
    now = dict(zip(situation.rows.tolist(), situation.labels.tolist(), strict=True))
    names = situation.classes
    return [
        Pick(each.row, CHECK, f"check: labelled {names[each.label]}, looks like {names[each.likely]}")
        for each in islice(suspects(situation.fit, now, situation.checked), count)
    ]


STRATEGIES: dict[str, Strategy] = {TYPICAL: typical, UNSURE: unsure, RANDOM: at_random, NEW: new, CHECK: check}


def choose(situation: Situation, random: np.random.Generator, count: int, asked: int) -> list[Pick]:
    """Return the next photos to ask, at most `count`, each once and no two near-copies of each other.

    Args:
        situation: What is known.
        random: Decides between equals.
        count: How many.
        asked: How many answers there are, which decides whose turn it is.
    """
    turns = [_turn(situation, asked + place) for place in range(count)]
    found: dict[str, list[Pick]] = {
        name: STRATEGIES[name](situation, random, 2 * turns.count(name)) for name in set(turns)
    }
    picks: list[Pick] = []
    groups: set[int] = set()
    for name in turns:
        pick = _first(found[name], groups, situation)
        for other in (UNSURE, TYPICAL, RANDOM):
            if pick is None:
                more = STRATEGIES[other](situation, random, count + len(groups))
                pick = _first(more, groups, situation)
        if pick is not None:
            picks.append(pick)
            groups.add(int(situation.groups[pick.row]))
    return picks


def choose_apart(
    situation: Situation, recent: Sequence[int], random: np.random.Generator, count: int, asked: int
) -> list[Pick]:
    """Return what choose() returns, without near-copies of photos that were asked lately, if others are left.

    Args:
        situation: What is known.
        recent: The photos that were asked lately.
        random: Decides between equals.
        count: How many.
        asked: How many answers there are.
    """
    picks = choose(situation, random, count, asked)
    for _ in range(_TRIES):
        near = [pick.row for pick in picks if pick.kind != CHECK and _is_near(situation.inputs, pick.row, recent)]
        rest = situation.open[~np.isin(situation.open, near)]
        if not near or len(rest) < count:
            break
        situation = replace(situation, open=rest)
        picks = choose(situation, random, count, asked)
    return picks


def _is_near(inputs: Floats, row: int, others: Sequence[int]) -> bool:
    return bool(len(others)) and float((inputs[list(others)] @ inputs[row]).max()) > _NEAR_COSINE


def _turn(situation: Situation, asked: int) -> str:
    """Return the strategy of the answer after `asked` ones."""
    if situation.fit is None or len(situation.rows) < COLD_START:
        return TYPICAL
    if asked % _RANDOM_EVERY == _RANDOM_EVERY - 1:
        return RANDOM
    if asked % _NEW_EVERY == _NEW_EVERY // 2 - 1:
        return NEW
    if asked % _CHECK_EVERY == _CHECK_EVERY - 2:
        return CHECK
    return UNSURE


def _first(picks: list[Pick], groups: set[int], situation: Situation) -> Pick | None:
    return next((pick for pick in picks if int(situation.groups[pick.row]) not in groups), None)


def _some(rows: Rows, most: int, random: np.random.Generator) -> Rows:
    """Return at most so many of the rows, in random order."""
    return random.permutation(rows)[:most] if len(rows) <= 4 * most else random.choice(rows, most, replace=False)


def _margins(fit: Fit, rows: Rows) -> Floats:
    """Return how much more probable the first class of photos is than the second one, [n]."""
    two = np.partition(fit.probabilities[rows], -2, axis=1)[:, -2:]
    margins: Floats = two[:, 1] - two[:, 0]
    return margins


def _take_variance(
    situation: Situation, rows: Rows, targets: Rows, weights: Floats, factors: Floats, count: int
) -> list[int]:
    """Return places in `rows` whose labels take away most variance of `targets`.

    Args:
        situation: The labelled photos, which have taken variance away already.
        rows: The candidates, [n].
        targets: The photos whose variance counts, [m].
        weights: How much it counts, [m].
        factors: How much each candidate counts, [n].
        count: How many places.
    """
    every = np.concatenate([rows, targets])
    inputs = situation.inputs[every]
    width = kernel_width(inputs)
    variances = kernel(inputs[: len(rows)] @ inputs.T, width)
    if len(situation.rows):
        known = situation.inputs[situation.rows]
        root = np.linalg.cholesky(kernel(known @ known.T, width) + RIDGE * np.eye(len(known)))
        seen = solve_triangular(root, kernel(known @ inputs.T, width), lower=True).astype(np.float32)
        variances -= seen[:, : len(rows)].T @ seen
    own, places, factors = np.arange(len(rows)), list[int](), factors.copy()
    for _ in range(min(count, len(rows))):
        left = variances[own, own] + RIDGE
        place = int((factors * ((variances[:, len(rows) :] ** 2) @ weights) / left).argmax())
        places.append(place)
        factors[place] = -1
        variances -= np.outer(variances[:, place], variances[place]) / left[place]
    return places


def _k_center(inputs: Floats, count: int) -> list[int]:
    """Return places of rows of `inputs` [n, length], the first one first, each next one farthest from those before."""
    nearest = np.full(len(inputs), -1, np.float32)
    places: list[int] = []
    for _ in range(min(count, len(inputs))):
        place = int(nearest.argmin())
        places.append(place)
        nearest = np.maximum(nearest, inputs @ inputs[place])
        nearest[place] = np.inf
    return places
