"""What an SVM costs, worked out from counts before it is fitted, and what is done where that is too much.

Which search is made depends on these counts alone and never on a clock, so that the same photos give the same SVM on
every machine. The constants were measured (bench/RESULTS.md, "Many classes"); for a time that is printed they are
scaled by how long a small fit takes here.
"""

import os
import time
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import LinearSVC

from penult.console import duration
from penult.export.errors import SettingsError
from penult.interrupts import apart

LINEAR, RBF, AUTO = "linear", "rbf", "auto"
# The RBF search holds the distances of all pairs (8 bytes each), and its time grows with their number.
RBF_MOST_SEARCHED = 4000
# With fewer photos per class than this, each pair of classes has too few for a curved border between them.
RBF_FEWEST_PER_CLASS = 5.0
# C is not searched on fewer photos per class than this, if there are more.
_MIN_SEARCHED = 20
# CPU seconds of a search with its final fits: RBF chosen by `auto`, RBF asked for by --svm rbf, linear.
RBF_MOST_S, RBF_MOST_ASKED_S, LINEAR_MOST_S = 600.0, 7200.0, 100.0
# The C's that are tried upwards, and for RBF times the gammas; most searches end earlier.
LINEAR_TRIES, RBF_TRIES = 11, 25
# LIBLINEAR, for each photo, class and number of the descriptor.
_LINEAR_NS = 25.0
# LIBLINEAR's own copy of the photos, beside one in float64: bytes per number, in each thread.
_LINEAR_BYTES = 24
_MAX_BYTES = 2 << 30
# LIBSVM on a given kernel, for each pair of photos and each pair of classes in a fit; for each photo and pair of
# classes in an answer.
_RBF_PHOTO_PAIR_NS, _RBF_CLASS_PAIR_NS, _RBF_ANSWER_NS = 120.0, 50_000.0, 500.0
# A fit by least squares and the answers of all photos, for each photo, class and number; then the factors.
_SQUARES_NS, _FACTOR_NS = 0.1, 1.0

# A small fit of known counts, on the machine of these constants; the quickest of some tries.
_PROBE_S, _PROBES = 0.08, 3


@dataclass(frozen=True)
class Counts:
    """What an SVM is to be fitted on: photos, classes, numbers per descriptor, and folds of the cross-validation."""

    photos: int
    classes: int
    length: int
    folds: int

    @property
    def planes(self) -> int:
        """How many classes are each separated from the rest; of two, one."""
        return 1 if self.classes == 2 else self.classes

    @property
    def class_pairs(self) -> int:
        """How many pairs of classes there are."""
        return self.classes * (self.classes - 1) // 2


def linear_fit_s(counts: Counts) -> float:
    """Return the CPU seconds of one fit by LIBLINEAR."""
    return 1e-9 * _LINEAR_NS * counts.photos * counts.planes * counts.length


def linear_search_s(counts: Counts) -> float:
    """Return the CPU seconds of searching C on so many photos."""
    return LINEAR_TRIES * (counts.folds - 1) * linear_fit_s(counts)


def rbf_search_s(counts: Counts) -> float:
    """Return the CPU seconds of searching C and gamma, and of one fit, on the photos that are searched."""
    photos = min(counts.photos, RBF_MOST_SEARCHED)
    fit = _RBF_PHOTO_PAIR_NS * photos**2 + _RBF_CLASS_PAIR_NS * counts.class_pairs
    answers = _RBF_ANSWER_NS * photos * counts.class_pairs if counts.classes > 2 else 0
    return 1e-9 * (RBF_TRIES * (counts.folds * fit + answers) + 2 * fit * (counts.photos / photos) ** 2)


def squares_s(counts: Counts) -> float:
    """Return the CPU seconds of searching C and fitting by least squares."""
    size = counts.photos * counts.length
    return 1e-9 * (LINEAR_TRIES * _SQUARES_NS * size * counts.classes + _FACTOR_NS * size * counts.length)


def why_no_rbf(counts: Counts) -> str:
    """Return why `auto` does not try RBF on so many photos and classes; "" where it does."""
    if counts.photos > RBF_MOST_SEARCHED:
        return f"there are more than {RBF_MOST_SEARCHED:,} photos"
    if counts.photos < RBF_FEWEST_PER_CLASS * counts.classes:
        return f"there are fewer than {RBF_FEWEST_PER_CLASS:g} training photos per class"
    if rbf_search_s(counts) > RBF_MOST_S:
        return f"it would compare all {counts.class_pairs:,} pairs of classes"
    return ""


def how(kernel: str, counts: Counts) -> str:
    """Return in words what an SVM is searched by."""
    if kernel == RBF:
        return "RBF kernel"
    linear = "linear kernel"
    if (share := linear_share(counts)) == 0:
        linear += ", by least squares for all classes at once, as one class after the other would take too long"
    elif share < 1:
        linear += f", C searched on {share:.0%} of the photos"
    if kernel == LINEAR:
        return linear
    why = why_no_rbf(counts)
    return f"{linear}; RBF is not tried, as {why}" if why else f"{linear}, then RBF"


def linear_share(counts: Counts) -> float:
    """Return the share of the photos on which LIBLINEAR searches C: 1 for all; 0 where even one fit is too much."""
    left_s = LINEAR_MOST_S - 2 * linear_fit_s(counts)
    if left_s <= 0 or _LINEAR_BYTES * counts.photos * counts.length > _MAX_BYTES:
        return 0.0
    share = min(1.0, left_s / linear_search_s(counts))
    return share if share == 1 or share * counts.photos >= _MIN_SEARCHED * counts.classes else 0.0


def linear_threads(counts: Counts) -> int:
    """Return how many folds may be fitted at a time, by cores and memory."""
    by_memory = _MAX_BYTES // max(1, _LINEAR_BYTES * counts.photos * counts.length)
    return max(1, min(os.cpu_count() or 1, by_memory))


def check(kernel: str, counts: Counts) -> None:
    """Raise SettingsError where RBF is asked for, and would take hours."""
    if kernel == RBF and (seconds := rbf_search_s(counts)) > RBF_MOST_ASKED_S:
        raise SettingsError(
            "SVM_RBF",
            f"the RBF kernel compares all {counts.class_pairs:,} pairs of {counts.classes:,} classes: about "
            f"{seconds / 3600:,.0f} hours of CPU time for {counts.photos:,} photos; leave the kernel to auto, which "
            "takes the linear one",
        )


def seconds(kernel: str, counts: Counts) -> float:
    """Return the time in seconds, at the very most, that fitting an SVM takes: search, and fits after it."""
    share, cores = linear_share(counts), os.cpu_count() or 1
    total = 0.0
    if kernel != RBF:
        if share:
            at_a_time = min(linear_threads(counts), counts.folds)
            total += share * linear_search_s(counts) / at_a_time + 2 * linear_fit_s(counts)
        else:
            total += squares_s(counts) / cores
    if kernel == RBF or (kernel == AUTO and not why_no_rbf(counts)):
        total += rbf_search_s(counts) / min(cores, counts.folds)
    return total


def here_s(kernel: str, counts: Counts) -> float:
    """Return seconds() for this machine."""
    return slowness() * seconds(kernel, counts)


@cache
def slowness() -> float:
    """Return how many times as long a small fit takes here as on the machine of these constants."""
    labels = np.arange(600) % 6
    rows = np.random.default_rng(0).normal(size=(len(labels), 512)) + 0.3 * labels[:, None]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return min(apart(lambda: _probe_s(unit, labels)) for _ in range(_PROBES)) / _PROBE_S


def _probe_s(unit: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    # Of this thread: what else the machine does for a moment says nothing of the minutes to come.
    started = time.thread_time()
    LinearSVC(dual=False).fit(unit, labels)
    return time.thread_time() - started


def told(kernel: str, counts: Counts) -> str:
    """Return how an SVM is searched, and how long that takes on this machine, in words."""
    return f"{how(kernel, counts)}; about {duration(here_s(kernel, counts))} at most"
