"""The SVM that answers questions under --budget: held out means held out, and copies are judged on photos as they are."""

import numpy as np
import pytest

from penult.export.evaluation.frozen_trials import cross_validate, lead, learning_copies


def _photos(apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of 90 photos of three classes whose means are `apart`, and their labels."""
    random, labels = np.random.default_rng(seed), np.arange(90) % 3
    rows = random.normal(size=(90, 20))
    rows[np.arange(90), labels] += apart
    return rows.astype(np.float32), labels


def test_classes_that_are_apart_are_named():
    """Nearly all right if the classes are apart, by chance if they are not."""
    groups = np.arange(90)
    assert cross_validate(*_photos(6.0), groups, 0).accuracy > 0.95
    assert cross_validate(*_photos(0.0), groups, 0).accuracy == pytest.approx(1 / 3, abs=0.17)


def test_photos_of_one_group_are_never_parted():
    """Each photo is there twice with a label that nothing explains: known copies would name all of them."""
    rows, labels = _photos(0.0)
    twice, names, groups = np.repeat(rows, 2, axis=0), np.repeat(labels, 2), np.repeat(np.arange(90), 2)
    assert cross_validate(twice, names, groups, 0).accuracy < 0.55
    assert cross_validate(twice, names, np.arange(180), 0).accuracy > 0.8


def test_labels_may_have_gaps():
    """A class without photos in the sample is no class there."""
    rows, labels = _photos(6.0)
    assert cross_validate(rows, labels * 2 + 1, np.arange(90), 0).accuracy > 0.95


def test_copies_that_look_like_other_classes_hurt():
    """As turned sixes look like nines; copies that look like their own class do not."""
    rows, labels = _photos(4.0)
    groups = np.arange(90)
    alone = learning_copies(rows, [], labels, groups, 1.0, 0)
    noise = np.random.default_rng(1).normal(size=rows.shape)
    own = learning_copies(rows, [(rows + 0.2 * noise).astype(np.float32)], labels, groups, 1.0, 0)
    others = learning_copies(rows, [np.roll(rows, 1, axis=0)], labels, groups, 1.0, 0)
    assert lead(own, alone).difference > -0.05
    assert lead(others, alone).difference < -2 * lead(others, alone).error


def test_equal_answers_to_few_photos_are_no_proof():
    """The standard error counts one further photo as different."""
    same = np.ones(20)
    assert lead(same, same).error == pytest.approx(0.05)
    assert not lead(same, same).is_better
    assert lead(np.ones(20), np.r_[np.zeros(5), np.ones(15)]).is_better
