"""Folds: groups are never parted, every class stays in what is learnt from, and seeds repeat."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from penult.export.data.splitting import Photo
from penult.export.evaluation.folds import count_folds, groups_of, repeated


@pytest.mark.parametrize("seed", range(4))
def test_no_group_is_parted(seed: int):
    """Of groups of one to nine photos, some with two labels, each lies on one side of every split of every repeat."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, 40)
    groups = rng.permutation(np.repeat(np.arange(40), sizes))
    labels = (groups % 3).astype(np.int64)
    labels[rng.random(len(labels)) < 0.05] = 0
    repeats = repeated(labels, groups, seed, 3)
    assert len(repeats) == 3
    for splits in repeats:
        for train, held_out in splits:
            assert set(groups[train]).isdisjoint(groups[held_out])
            assert set(labels[train]) == {0, 1, 2}
            assert sorted([*train, *held_out]) == list(range(len(labels)))
        held = np.concatenate([held_out for _, held_out in splits])
        assert sorted(held) == list(range(len(labels)))


def test_a_class_of_one_group_is_always_learnt():
    """Photos whose class would have nothing to learn from otherwise are never held out."""
    labels = np.repeat([0, 1], [8, 4])
    groups = np.array([*range(8), 9, 9, 9, 9])
    assert count_folds(labels, groups) == 2
    for train, held_out in repeated(labels, groups, 0, 1)[0]:
        assert set(np.flatnonzero(labels == 1)) <= set(train)
        assert set(labels[held_out]) == {0}


def test_without_groups_the_first_repeat_is_scikit_learns():
    """One repeat of photos without groups is what former versions searched on; further repeats are others."""
    labels = np.arange(60) % 4
    first, second = repeated(labels, np.arange(60), 7, 2)
    plain = list(StratifiedKFold(5, shuffle=True, random_state=7).split(labels[:, None], labels))
    for ours, theirs in zip(first, plain, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert any(not np.array_equal(one[1], other[1]) for one, other in zip(first, second, strict=True))
    again = repeated(labels, np.arange(60), 7, 2)[1]
    assert all(np.array_equal(one[1], other[1]) for one, other in zip(second, again, strict=True))


def test_small_classes_have_fewer_folds():
    """More folds than any class has photos become as many as there are photos; of single photos none is held out."""
    labels = np.repeat([0, 1], [4, 3])
    assert len(repeated(labels, np.arange(7), 0, 1, folds=7)[0]) == 4
    assert repeated(np.arange(3), np.arange(3), 0, 2, folds=7) == [[], []]


def test_copies_and_named_groups_join():
    """Byte-identical copies are one group, also with two labels, and join the named groups that they are in."""
    rows = [("a", ""), ("b", "burst"), ("c", ""), ("d", "burst"), ("a", ""), ("e", "other"), ("d", "other"), ("", "")]
    photos = [Photo(Path(str(n)), n % 2, sha256=sha, group=group) for n, (sha, group) in enumerate(rows)]
    found = groups_of(photos)
    joined = [{n for n, number in enumerate(found) if number == wanted} for wanted in dict.fromkeys(found.tolist())]
    assert joined == [{0, 4}, {1, 3, 5, 6}, {2}, {7}]
