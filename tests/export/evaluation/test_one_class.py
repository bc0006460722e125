"""Measures of novelty with one class: the share of false alarms that was asked for, and AUROC with its interval."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from penult.export.evaluation import one_class
from penult.export.evaluation.outputs import SplitOutputs

LENGTH = 24


def photos(generator: np.random.Generator, count: int, at: float = 0.0) -> SplitOutputs:
    """Descriptors around a centre, all of one class."""
    rows = np.abs(generator.normal(size=(count, LENGTH)) + 3)
    rows[:, 0] += at
    return SplitOutputs(np.zeros((count, 1), np.float32), rows.astype(np.float32), np.zeros(count, np.int64))


@pytest.mark.parametrize("measure", ["nearest", "svm"])
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_the_share_of_false_alarms_is_the_one_asked_for(measure, rate):
    """Of many further photos of the class about the share is above, over seeds; photos of something else are."""
    shares = []
    for seed in range(4):
        generator = np.random.default_rng(seed)
        fitted = one_class.fit(photos(generator, 300), photos(generator, 60), rate, seed)[measure]
        above = fitted.measure.novelty(photos(generator, 1000).descriptors) > fitted.limit.threshold
        shares.append(above.mean())
        assert fitted.limit.share <= rate
        assert (fitted.measure.novelty(photos(generator, 50, at=30).descriptors) > fitted.limit.threshold).all()
    assert np.mean(shares) == pytest.approx(rate, abs=0.6 * rate)


def test_groups_are_held_out_together():
    """Near-copies in one group do not hide how far a new group is."""
    generator = np.random.default_rng(0)
    seen = np.repeat(photos(generator, 40).descriptors, 6, axis=0)
    copies = seen * generator.uniform(0.99, 1.01, seen.shape).astype(np.float32)
    is_val = np.arange(240) % 6 == 0
    train, val = (SplitOutputs(np.zeros((rows.sum(), 1)), copies[rows], np.zeros(rows.sum(), np.int64))
                  for rows in (~is_val, is_val))  # fmt: skip
    groups = [str(row // 5) for row in range(200)]
    new = photos(generator, 1000).descriptors
    few = SplitOutputs(val.logits[:4], val.descriptors[:4], val.labels[:4])
    apart, together = (one_class.fit(train, few, 0.1, 0, given)["nearest"] for given in ((), groups))
    alarms = [float((found.measure.novelty(new) > found.limit.threshold).mean()) for found in (apart, together)]
    assert alarms[0] > 0.5
    assert alarms[1] < 0.2


def test_the_threshold_of_few_photos_is_the_largest_distance():
    """With 9 distances 10 % are one of ten, the tenth is new; with fewer none can be above."""
    distances = np.linspace(0.1, 0.9, 9, dtype=np.float32)
    assert one_class.limit_of(distances, 0.1).threshold == pytest.approx(0.9)
    assert one_class.limit_of(distances, 0.2).threshold == pytest.approx(0.8)
    assert one_class.limit_of(np.zeros(5, np.float32), 0.1).threshold == pytest.approx(1e-3)


def test_copies_of_one_photo_are_a_class():
    """Identical photos give a finite measure, and are not novel."""
    rows = np.ones((8, LENGTH), np.float32)
    same = SplitOutputs(np.zeros((8, 1)), rows, np.zeros(8, np.int64))
    for fitted in one_class.fit(same, same, 0.1, 0).values():
        assert not (fitted.measure.novelty(rows) > fitted.limit.threshold).any()
        assert (fitted.measure.novelty(-rows) > fitted.limit.threshold).all()


def test_the_interval_of_an_auroc():
    """It holds the value, narrows with photos, has a width at 1, and covers as often as it says."""
    assert one_class.auroc_interval(1.0, 50, 50)[1] == 1
    assert 0.9 < one_class.auroc_interval(1.0, 50, 50)[0] < 0.99
    wide, narrow = (one_class.auroc_interval(0.8, n, n) for n in (20, 500))
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]
    generator, covered = np.random.default_rng(0), 0
    for _ in range(200):  # two normal distributions a standard deviation apart have an AUROC of 0.760
        own, others = generator.normal(size=40), generator.normal(loc=1, size=60)
        value = one_class.auroc(own, others)
        low, high = one_class.auroc_interval(value, 40, 60)
        covered += low <= 0.7602 <= high
    assert covered >= 182
    labels = np.repeat([0, 1], [40, 60])
    assert value == pytest.approx(roc_auc_score(labels, np.concatenate([own, others])))


@pytest.mark.parametrize(("rate", "photos_needed"), [(0.025, 292), (0.01, 753), (0.05, 139)])
def test_how_many_photos_would_do(rate, photos_needed):
    """So many held-out photos put the upper end of the interval at twice the rate; one fewer does not."""
    from penult.bundle.scores import wilson

    assert one_class.enough_photos(rate) == photos_needed
    assert wilson(rate, photos_needed)[1] <= 2 * rate < wilson(rate, photos_needed - 1)[1]
