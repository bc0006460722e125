"""Repeat stratified cross-validation without ever parting a group of photos.

Photos of a group are alike (a burst, a video, byte-identical copies). If one of them is learnt from, another one is
answered too easily, so the accuracy of a fold that parts them is too high.
"""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from penult.export.data.splitting import Photo, units_of

MAX_FOLDS = 5

Labels = NDArray[np.int64]
Rows = NDArray[np.intp]
# Rows to learn from, and rows that are held out.
Split = tuple[Rows, Rows]


def groups_of(photos: Sequence[Photo]) -> Rows:
    """Return the group number of each photo, [N]: photos of one group, and byte-identical copies, share a number."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(unit, len(numbers)) for unit in units_of(photos)]
    return np.array(found, dtype=np.intp)


def count_folds(labels: Labels, groups: Rows | None = None) -> int:
    """Return how many folds there are: as many as the class with the fewest groups has, 2 to MAX_FOLDS."""
    alone = np.arange(len(labels)) if groups is None else groups
    pairs = np.unique(np.stack([labels, alone]), axis=1)[0]
    return int(np.clip(np.unique(pairs, return_counts=True)[1].min(initial=MAX_FOLDS), 2, MAX_FOLDS))


def repeated(labels: Labels, groups: Rows, seed: int, repeats: int, folds: int = 0) -> list[list[Split]]:
    """Return the splits of every repeat.

    Args:
        labels: [N].
        groups: [N], a number for each group.
        seed: Decides the folds; the first repeat is scikit-learn's with this seed.
        repeats: How often the photos are divided.
        folds: How many folds; 0 uses count_folds(). There are at most as many as the largest class has photos; if it
            has one, nothing can be held out, and a repeat has no splits.
    """
    largest = int(np.unique(labels, return_counts=True)[1].max(initial=0))
    if largest < 2:
        return [[] for _ in range(repeats)]
    folds = min(folds or count_folds(labels, groups), largest)
    are_alone, nothing = len(np.unique(groups)) == len(groups), np.zeros((len(labels), 1))
    found = []
    for repeat in range(repeats):
        state = seed_of(seed, repeat) if repeat else seed
        kind = StratifiedKFold if are_alone else StratifiedGroupKFold
        with warnings.catch_warnings():
            # Such a class stays in what is learnt from; see _with_every_class().
            warnings.filterwarnings("ignore", "The least populated class in y has only", UserWarning)
            folder = kind(folds, shuffle=True, random_state=state)
            splits = [*folder.split(nothing, labels, None if are_alone else groups)]
        whole = (_with_every_class(labels, groups, *split) for split in splits)
        found.append([(train, held_out) for train, held_out in whole if len(held_out)])
    return found


def seed_of(*numbers: int) -> int:
    """Return a seed below 2**32 for a part of a run, from the run's seed and the part's numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _with_every_class(labels: Labels, groups: Rows, train: Rows, held_out: Rows) -> Split:
    """Learn from the held-out groups whose class would otherwise have no photo to learn from."""
    lacking = ~np.isin(labels[held_out], labels[train])
    if not lacking.any():
        return train, held_out
    back = np.isin(groups[held_out], groups[held_out][lacking])
    return np.sort(np.concatenate([train, held_out[back]])), held_out[~back]


def hits_by_repeat(labels: Labels, repeats: Sequence[Sequence[Split]], answers: Iterable[Labels]) -> NDArray[np.bool_]:
    """Return which photos are correct when they are held out, [repeats, N]; `answers` are of each split in order."""
    found, answered = np.zeros((len(repeats), len(labels)), dtype=bool), iter(answers)
    for hits, splits in zip(found, repeats, strict=True):
        for _, held_out in splits:
            hits[held_out] = next(answered) == labels[held_out]
    return found
