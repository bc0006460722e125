"""The threshold of novelty: from photos that were held out, whatever their number, and whatever the network learnt."""

import numpy as np
import pytest

from penult.bundle.baseline import Baseline
from penult.bundle.manifest import FileEntry, Manifest
from penult.bundle.preprocess import Preprocess
from penult.export.evaluation import drift_baseline
from penult.export.evaluation.outputs import SplitOutputs

LENGTH = 64
MANIFEST = Manifest(
    "tiny5", ("a", "b"), Preprocess(32, 32), LENGTH, "dense", {"dense": 1.0},
    files={"model.onnx": FileEntry(1, "0"), "golden.npz": FileEntry(1, "0")},
)  # fmt: skip


def photos(generator, count: int, noise: float = 1.0, at: int = 0) -> SplitOutputs:
    """Descriptors of two classes that differ in eight directions, from `at` on, and by noise in all."""
    labels = np.arange(count) % 2
    rows = generator.normal(0, noise, (count, LENGTH)) + 4
    rows[:, at : at + 8] += 12 * generator.normal(0, 1, (count, 8)) + 3 * labels[:, None]
    return SplitOutputs(np.eye(2, dtype=np.float32)[labels], rows.astype(np.float32), labels)


def learn(train: SplitOutputs, val: SplitOutputs) -> Baseline:
    """The baseline of these photos."""
    return drift_baseline.fit(MANIFEST, {"train": train, "val": val}, {"dense": val.logits}, seed=0)


@pytest.mark.parametrize("count", [30, 200, 1000])
def test_own_photos_lie_below_and_others_above(count):
    """With 8 validation photos, about one other photo of its own in 40 lies above the threshold; of others nearly all do."""
    generator = np.random.default_rng(3)
    found = learn(photos(generator, count), photos(generator, 8))
    assert found.limit.photos == count + 8
    assert found.limit.share <= 0.03
    low, high = found.limit.interval
    own = (found.novelty(photos(generator, 2000).descriptors) > found.threshold).mean()
    assert max(0, low - 0.02) <= own <= high + 0.02
    assert (found.novelty(photos(generator, 500, at=40).descriptors) > found.threshold).mean() > 0.95


def test_photos_that_the_network_learnt_by_heart_do_not_lower_the_threshold():
    """Where training photos lie closer together than others of their kind, validation photos say by how much."""
    generator = np.random.default_rng(4)
    found = learn(photos(generator, 400, noise=0.5), photos(generator, 60))
    own = (found.novelty(photos(generator, 2000).descriptors) > found.threshold).mean()
    assert own < 0.08


def test_it_is_a_file_whatever_the_numbers():
    """Copies of one photo, two photos, short descriptors: the file can be read, and a copy is not novel."""
    generator = np.random.default_rng(5)
    one = photos(generator, 2)
    copies = SplitOutputs(np.repeat(one.logits, 10, 0), np.repeat(one.descriptors, 10, 0), np.repeat(one.labels, 10))
    for train, val in ((copies, copies), (one, one)):
        found = learn(train, val)
        assert Baseline.from_bytes(found.to_bytes(), MANIFEST).limit == found.limit
    assert not (learn(copies, copies).novelty(copies.descriptors) > learn(copies, copies).threshold).any()
    residual = drift_baseline.fit_residual(np.eye(3, dtype=np.float32), seed=0)
    assert residual.directions.shape == (3, 0)
