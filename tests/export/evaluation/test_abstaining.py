"""Certified thresholds: false ones are as rare as promised, for any shape of the error, and counts are exact."""

from pathlib import Path

import numpy as np
import pytest

from penult.export.data.certifying import independent_rows
from penult.export.data.splitting import Photo
from penult.export.evaluation.abstaining import Answers, certify, certify_by_class, curve, photos_needed


def drawn(random: np.random.Generator, count: int, error_of, named: int = 0) -> Answers:
    """Answers whose confidence is uniform, and wrong with the probability error_of(confidence)."""
    confidence = random.random(count).astype(np.float32)
    right = random.random(count) >= error_of(confidence)
    return Answers(confidence, np.full(count, named), right, np.ones(count, dtype=bool))


@pytest.mark.parametrize(
    "error_of",
    [
        # More than 10 % everywhere: every certificate is false.
        lambda confidence: np.full(len(confidence), 0.101),
        # The most confident answers are the worst, as no order of confidence may be relied on.
        lambda confidence: np.where(confidence > 0.9, 0.5, 0.0),
        # Right above the median, and wrong below it.
        lambda confidence: np.where(confidence > 0.5, 0.02, 0.4),
    ],
    ids=["everywhere", "reversed", "step"],
)
def test_false_certificates_are_rare(error_of):
    """Of 600 certificates at 10 %, at most 5 % are false, with three standard errors for the chance of this test."""
    random = np.random.default_rng(0)
    large = drawn(random, 200_000, error_of)
    false, tries = 0, 600
    for _ in range(tries):
        found = certify(drawn(random, 60, error_of), drawn(random, 150, error_of), 0.1)
        if found:
            rows = large.answered([found.threshold])
            false += (~large.right[rows]).mean() > 0.1
    assert false / tries <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tries)


def test_good_answers_are_certified_and_counted():
    """With no error above a confidence of one half, about half of the photos are answered, and the counts are theirs."""
    random = np.random.default_rng(1)

    def error_of(confidence: np.ndarray) -> np.ndarray:
        return np.where(confidence > 0.5, 0.0, 0.6)

    choosing, own = drawn(random, 200, error_of), drawn(random, 400, error_of)
    found = certify(choosing, own, 0.05)
    rows = own.answered([found.threshold])
    assert 0.4 <= found.threshold <= 0.55
    assert (found.answered, found.wrong) == (rows.sum(), (~own.right[rows]).sum())


def test_novel_photos_are_never_answered():
    """A photo that is novel counts neither as answered nor as wrong."""
    own = drawn(np.random.default_rng(2), 300, np.zeros_like)
    half = np.arange(300) % 2 == 0
    novel = Answers(own.confidence, own.named, half, half)  # all wrong answers are to novel photos
    found = certify(novel, novel, 0.05)
    assert (found.answered, found.wrong, found.threshold) == (150, 0, 0.0)


@pytest.mark.parametrize(("max_error", "photos"), [(0.1, 29), (0.05, 59), (0.02, 149)])
def test_as_many_photos_are_needed_as_the_binomial_tail_says(max_error, photos):
    """Without a wrong answer, (1 - error) ** photos must be at most 5 %: one photo fewer certifies nothing."""
    sure = Answers(np.ones(500, np.float32), np.zeros(500, int), np.ones(500, bool), np.ones(500, bool))
    assert photos_needed(sure, max_error) == pytest.approx(photos, abs=10)
    assert certify(sure, sure.at(np.arange(photos)), max_error)
    assert certify(sure, sure.at(np.arange(photos - 1)), max_error) is None


def test_answers_that_are_always_wrong_need_no_number_of_photos():
    """If even the surest answers are wrong too often, no number of photos is named."""
    assert photos_needed(drawn(np.random.default_rng(3), 300, np.ones_like), 0.05) is None


def test_each_class_has_its_own_threshold():
    """A class whose answers are good is answered, and one whose answers are wrong is not."""
    random = np.random.default_rng(4)
    parts = [drawn(random, 200, np.zeros_like), drawn(random, 200, np.ones_like, named=1)]
    both = Answers(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("confidence", "named", "right", "known")))
    good, bad = certify_by_class(both, both, 0.05, 2)
    assert good.answered == 200
    assert bad is None


def test_the_curve_ends_with_all_photos():
    """The last point of the curve is the error of all answers."""
    own = drawn(np.random.default_rng(5), 500, lambda confidence: 1 - confidence)
    coverage, error, threshold = curve(own)[-1]
    assert (coverage, error) == (1.0, pytest.approx((~own.right).mean(), abs=1e-6))
    assert threshold == pytest.approx(own.confidence.min(), abs=1e-6)


def test_one_photo_of_each_group_counts():
    """Of a group and of identical files one photo counts, and none if the group has chosen something."""
    photos = [
        Photo(Path(str(n)), 0, sha, group) for n, (sha, group) in enumerate([("a", "1 x"), ("b", "1 x"), ("c", ""), ("c", ""), ("d", "1 y")])
    ]  # fmt: skip
    rows = independent_rows(photos, [Photo(Path("seen"), 0, "e", "1 y")], seed=0)
    assert len(rows) == 2
    assert {photos[row].sha256 for row in rows} in ({"a", "c"}, {"b", "c"})
