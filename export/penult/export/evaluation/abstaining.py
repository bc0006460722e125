"""Certify thresholds above which answers are wrong at most so often.

The procedure is fixed-sequence testing (Angelopoulos et al., "Learn then Test: Calibrating Predictive Algorithms to
Achieve Risk Control", 2021). Two sets of photos are needed, and neither may be one that the scorer was fitted on. The
choosing photos fix a sequence of thresholds, from strict to loose. The certifying photos have decided nothing: not the
sequence, not the temperature, not the epoch. For each threshold in turn, the hypothesis "more than `max_error` of the
answered photos are wrong" is tested at 5 %, with the exact binomial tail. The first hypothesis that is not rejected
ends the walk, and the threshold before it is certified. A false certificate needs that the first true hypothesis of the
sequence is rejected, so its probability is at most 5 %, however many thresholds there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc
from scipy.stats import binom

# The probability that a certificate is false.
DELTA = 0.05
# Certified beside the one asked for, as far as the photos allow.
USUAL_ERRORS = (0.10, 0.05, 0.02, 0.01)
# Steps of coverage between the thresholds of a sequence.
_STEPS = 40
# With fewer choosing photos of a class, those of all classes fix its sequence.
_MIN_OF_CLASS = 10
# Confidence weighs as much as so many labels in the expected error.
_PRIOR_PHOTOS = 10
_MAX_NEEDED = 1_000_000
_MAX_CURVE = 200


@dataclass(frozen=True)
class Answers:
    """A scorer's answers to labelled photos.

    Attributes:
        confidence: The probability of the answered class, float32 [N].
        named: The answered class, [N].
        right: Whether it is the photo's class, bool [N].
        known: Whether the photo is not novel, bool [N]. Novel photos are never answered.
    """

    confidence: NDArray[np.float32]
    named: NDArray[np.int64]
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return how many photos there are."""
        return len(self.confidence)

    def at(self, rows: NDArray[Any]) -> "Answers":
        """Return the answers of some rows."""
        return Answers(self.confidence[rows], self.named[rows], self.right[rows], self.known[rows])

    def answered(self, thresholds: Sequence[float | None]) -> NDArray[np.bool_]:
        """Return which photos are answered, bool [N], with one threshold or one for each class."""
        limits = np.array([np.inf if each is None else each for each in thresholds])
        found: NDArray[np.bool_] = self.known & (
            self.confidence.astype(np.float64) >= (limits[0] if len(limits) == 1 else limits[self.named])
        )
        return found


@dataclass(frozen=True)
class Certified:
    """A certified threshold, and the counts of the certifying photos that it rests on."""

    threshold: float
    answered: int
    wrong: int


def certify(choosing: Answers, certifying: Answers, max_error: float, share: float = 1.0) -> Certified | None:
    """Return the loosest threshold that can be certified, or None.

    Args:
        choosing: Photos that fix the sequence of thresholds.
        certifying: Photos that have decided nothing yet.
        max_error: The share of wrong answers among answered photos that is allowed.
        share: The share of the certifying photos that the choosing ones stand for.
    """
    found = None
    for threshold in sequence(choosing, share * len(certifying), max_error):
        rows = certifying.answered([threshold])
        answered, wrong = int(rows.sum()), int((rows & ~certifying.right).sum())
        if binom.cdf(wrong, answered, max_error) > DELTA:
            break
        found = Certified(threshold, answered, wrong)
    return found


def sequence(choosing: Answers, photos: float, max_error: float) -> list[float]:
    """Return thresholds in the order in which they are tested, the strictest first.

    They are steps of coverage of the choosing photos. The first is the one whose test has the most power, by what the
    choosing photos predict for so many certifying photos. Stricter ones would be answered by too few photos.
    """
    thresholds, shares, errors = _steps(choosing)
    if not len(thresholds):
        return []
    power = _p_value(photos * shares * errors, photos * shares, max_error)
    return [float(each) for each in thresholds[int(np.argmin(power)) :]]


def certify_by_class(choosing: Answers, certifying: Answers, max_error: float, classes: int) -> list[Certified | None]:
    """Return what certify() finds for the photos that are answered with each class, each at 95 % by itself."""
    found = []
    for label in range(classes):
        own = choosing.at(choosing.named == label)
        # Only choosing photos decide what is expected, so that the sequence is fixed before the certifying photos.
        share = len(own) / max(len(choosing), 1)
        of_class = certifying.at(certifying.named == label)
        expected = share * len(certifying) / max(len(of_class), 1)
        found.append(certify(own if len(own) >= _MIN_OF_CLASS else choosing, of_class, max_error, expected))
    return found


def photos_needed(answers: Answers, max_error: float) -> int | None:
    """Return about how many certifying photos would certify `max_error`; None if no number would.

    One standard error more wrong answers than expected are allowed for.
    """
    _, shares, errors = _steps(answers)
    found = [(_answers_needed(error, max_error), share) for share, error in zip(shares, errors, strict=True)]
    least = min((count / share for count, share in found if count), default=0.0)
    if not least:
        return None
    digits: int = 10 ** max(0, math.floor(math.log10(least)) - 1)
    return digits * math.ceil(least / digits)


def _answers_needed(error: float, max_error: float) -> int | None:
    """Return how many answered photos reject "more than max_error are wrong", if `error` of them are wrong."""
    low, high = 1, _MAX_NEEDED

    def is_enough(count: int) -> bool:
        wrong = count * error + math.sqrt(count * error * (1 - error))
        return wrong < count and float(_p_value(np.array(wrong), np.array(float(count)), max_error)) <= DELTA

    if error >= max_error or not is_enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def curve(answers: Answers) -> list[list[float]]:
    """Return [coverage, error among answered, threshold] as the threshold falls: the risk-coverage curve."""
    rows = np.flatnonzero(answers.known)
    order = rows[np.argsort(-answers.confidence[rows], kind="stable")]
    if not len(order):
        return []
    counts = np.arange(1, len(order) + 1)
    columns = counts / len(answers), np.cumsum(~answers.right[order]) / counts, answers.confidence[order]
    kept = np.unique(np.linspace(0, len(order) - 1, min(len(order), _MAX_CURVE)).round().astype(int))
    return [[round(float(column[at]), 6) for column in columns] for at in kept]


def _steps(answers: Answers) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return thresholds from strict to loose, and coverage and expected error at each.

    The error is what the labels say, and confidence weighs as much as a few more photos. The labels of few photos are
    coarse, and the confidence of an imported model may not be calibrated.
    """
    rows = np.flatnonzero(answers.known)
    order = rows[np.argsort(-answers.confidence[rows], kind="stable")]
    if not len(order):
        nothing = np.empty(0)
        return nothing, nothing, nothing
    sure = answers.confidence[order].astype(np.float64)
    counts = np.arange(1, len(order) + 1)
    errors = (np.cumsum(~answers.right[order]) + _PRIOR_PHOTOS * np.cumsum(1 - sure) / counts) / (
        counts + _PRIOR_PHOTOS
    )
    places = np.unique(np.ceil(np.linspace(0, 1, _STEPS + 1)[1:] * len(order)).astype(int)) - 1
    # Of equal confidences, the last place has all of them.
    places = np.unique(np.searchsorted(-sure, -sure[places], side="right") - 1)
    # Below all of the choosing photos, everything that is not novel is answered.
    thresholds = np.append(sure[places], 0.0)
    places = np.append(places, len(order) - 1)
    return thresholds, counts[places] / len(answers), errors[places]


def _p_value(wrong: Any, answered: Any, max_error: float) -> Any:
    """Return the binomial tail P(X <= wrong) of X ~ Bin(answered, max_error), for numbers that need not be whole."""
    return betainc(np.maximum(answered - wrong, 1e-9), wrong + 1, 1 - max_error)
