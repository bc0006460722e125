"""Which photo to label next.

A strategy is a function of a situation, a source of random numbers and a count. It returns at most `count` picks, best
first, from the open photos; none if it has nothing to ask. choose() mixes the strategies of STRATEGIES by turns.
docs/label.md, "Add a strategy", shows how to add one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import Floats
from penult.label.learner import Fit, Rows

TYPICAL, UNSURE, RANDOM, NEW, CHECK = "typical", "unsure", "random", "new", "check"
# So many labels are asked for typical photos, before the classifier decides.
COLD_START = 20
# Every so many answers, one photo is random, one is unlike anything labelled, one is a suspect label.
_RANDOM_EVERY, _NEW_EVERY, _CHECK_EVERY = 10, 25, 25
# Typical photos are chosen among so many random ones.
_MAX_CANDIDATES = 1000
# The k-center choice is among so many of the least sure photos for each pick.
_AMONG = 6
# A photo is new if it is farther than this share of labelled photos are from each other.
_NEW_QUANTILE = 0.98
# A label is checked if it has less than this probability.
_CHECK_BELOW = 0.2


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
    """Pick photos that many others resemble and no labelled one does yet (facility location).

    Each pick makes the sum of likenesses of all photos to their most similar picked photo as large as possible.
    """
    rows = _some(situation.open, random)
    inputs = situation.inputs[rows]
    likeness = inputs @ inputs.T
    best = np.zeros(len(rows), np.float32)
    if len(situation.rows):
        best = np.maximum(best, (inputs @ situation.inputs[situation.rows].T).max(axis=1))
    picks = []
    for _ in range(min(count, len(rows))):
        gains = np.maximum(likeness - best, 0).sum(axis=1)
        place = int(gains.argmax())
        best = np.maximum(best, likeness[place])
        best[place] = np.inf
        picks.append(Pick(int(rows[place]), TYPICAL, "typical of many photos"))
    return picks


def unsure(situation: Situation, random: np.random.Generator, count: int) -> list[Pick]:
    """Pick photos whose two most probable classes are close, far from each other (margin, then k-center)."""
    fit, rows = situation.fit, situation.open
    if fit is None or fit.classes < 2 or not len(rows):
        return []
    probabilities = fit.probabilities[rows]
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    margins = two[:, 1] - two[:, 0]
    among = min(len(rows), max(1, _AMONG * count))
    nearest = np.argpartition(margins, among - 1)[:among]
    nearest = nearest[np.argsort(margins[nearest], kind="stable")]
    picks = []
    for place in _k_center(situation.inputs[rows[nearest]], count):
        found = probabilities[nearest[place]]
        first, second = (situation.classes[label] for label in np.argsort(-found, kind="stable")[:2])
        picks.append(Pick(int(rows[nearest[place]]), UNSURE, f"unsure between {first} and {second}"))
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


def check(situation: Situation, random: np.random.Generator, count: int) -> list[Pick]:
    """Pick labelled photos whose label is improbable to a classifier without them."""
    fit = situation.fit
    if fit is None:
        return []
    now = dict(zip(situation.rows.tolist(), situation.labels.tolist(), strict=True))
    given = fit.left_out[np.arange(len(fit.rows)), fit.labels]
    picks: list[Pick] = []
    for place in np.argsort(given, kind="stable").tolist():
        row, label, likely = int(fit.rows[place]), int(fit.labels[place]), int(fit.left_out[place].argmax())
        if given[place] >= _CHECK_BELOW or len(picks) == count:
            break
        if row not in situation.checked and now.get(row) == label != likely:
            names = situation.classes[label], situation.classes[likely]
            picks.append(Pick(row, CHECK, f"check: labelled {names[0]}, looks like {names[1]}"))
    return picks


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


def _some(rows: Rows, random: np.random.Generator) -> Rows:
    return rows if len(rows) <= _MAX_CANDIDATES else random.choice(rows, _MAX_CANDIDATES, replace=False)


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
