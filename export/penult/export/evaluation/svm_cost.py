"""Estimate the time of fitting an SVM from counts, and choose a cheaper search if it is too long.

The choice depends on the counts and not on a clock. So the same photos give the same SVM on every machine.
The constants were measured (bench/RESULTS.md, "Many classes"). Printed times are scaled by the time of a small fit on
this machine.
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
# The RBF search stores the distances of all pairs (8 bytes each), and its time grows with their number.
RBF_MAX_SEARCHED = 4000
# With fewer photos per class, a pair of classes has too few for a curved boundary.
RBF_MIN_PER_CLASS = 5.0
# C is searched on at least so many photos per class, if there are as many.
_MIN_SEARCHED = 20
# CPU seconds of a search with its final fits: RBF under `auto`, RBF requested by --svm rbf, linear.
RBF_MAX_S, RBF_MAX_REQUESTED_S, LINEAR_MAX_S = 600.0, 7200.0, 100.0
# Repeats of a cross-validation, as far as their searches and dense heads take at most so many CPU seconds.
MAX_REPEATS, REPEATS_MAX_S = 5, 60.0
# Tries of a search: values of C, for RBF times those of gamma; most searches end earlier.
LINEAR_TRIES, RBF_TRIES = 11, 25
# LIBLINEAR: ns for each photo, class and number of the descriptor.
_LINEAR_NS = 25.0
# Bytes per number in each thread: LIBLINEAR's own copy and one in float64.
_LINEAR_BYTES = 24
_MAX_BYTES = 2 << 30
# LIBSVM on a precomputed kernel: ns for each pair of photos and each pair of classes in a fit, and for each photo and
# pair of classes in an answer.
_RBF_PHOTO_PAIR_NS, _RBF_CLASS_PAIR_NS, _RBF_ANSWER_NS = 120.0, 50_000.0, 500.0
# The dense head: ns for each photo, number and epoch, and for each photo, class, number and epoch.
_HEAD_NS, _HEAD_CLASS_NS = 12.0, 1.0
# Least squares: ns of fit and answers for each photo, class and number; then of the factorisation.
_SQUARES_NS, _FACTOR_NS = 0.1, 1.0

# The time of a small fit on the machine of these constants, the fastest of some tries.
_PROBE_S, _PROBES = 0.08, 3


@dataclass(frozen=True)
class Counts:
    """Photos, classes, numbers per descriptor, and folds of the cross-validation."""

    photos: int
    classes: int
    length: int
    folds: int

    @property
    def planes(self) -> int:
        """The planes that separate a class from the rest: one per class, and one for two classes."""
        return 1 if self.classes == 2 else self.classes

    @property
    def class_pairs(self) -> int:
        """How many pairs of classes there are."""
        return self.classes * (self.classes - 1) // 2


def linear_fit_s(counts: Counts) -> float:
    """Return the CPU seconds of one fit by LIBLINEAR."""
    return 1e-9 * _LINEAR_NS * counts.photos * counts.planes * counts.length


def linear_search_s(counts: Counts) -> float:
    """Return the CPU seconds of searching C."""
    return LINEAR_TRIES * (counts.folds - 1) * linear_fit_s(counts)


def rbf_search_s(counts: Counts) -> float:
    """Return the CPU seconds of searching C and gamma, and of the final fits."""
    photos = min(counts.photos, RBF_MAX_SEARCHED)
    fit = _RBF_PHOTO_PAIR_NS * photos**2 + _RBF_CLASS_PAIR_NS * counts.class_pairs
    answers = _RBF_ANSWER_NS * photos * counts.class_pairs if counts.classes > 2 else 0
    return 1e-9 * (RBF_TRIES * (counts.folds * fit + answers) + 2 * fit * (counts.photos / photos) ** 2)


def squares_s(counts: Counts) -> float:
    """Return the CPU seconds of searching C and fitting by least squares."""
    size = counts.photos * counts.length
    return 1e-9 * (LINEAR_TRIES * _SQUARES_NS * size * counts.classes + _FACTOR_NS * size * counts.length)


def heads_s(counts: Counts, epochs: int) -> float:
    """Return the CPU seconds of fitting a dense head in every fold."""
    of_photo = counts.length * (_HEAD_NS + _HEAD_CLASS_NS * counts.classes)
    return 1e-9 * epochs * (counts.folds - 1) * counts.photos * of_photo


def repeats(kernel: str, counts: Counts, head_epochs: int = 0) -> int:
    """Return how often a cross-validation is repeated: 0 if it is not one of all photos, else 1 to MAX_REPEATS.

    Args:
        kernel: "linear", "rbf" or "auto".
        counts: The photos that are searched.
        head_epochs: Epochs of each dense head; 0 if none is fitted.
    """
    if linear_share(counts) < 1 or (kernel == RBF and counts.photos > RBF_MAX_SEARCHED):
        return 0
    once = heads_s(counts, head_epochs) + (linear_search_s(counts) if kernel != RBF else 0)
    if once > REPEATS_MAX_S:
        return 0
    if kernel == RBF or (kernel == AUTO and not why_no_rbf(counts)):
        once += rbf_search_s(counts)
    return int(min(max(REPEATS_MAX_S / max(once, 1e-9), 1), MAX_REPEATS))


def why_no_rbf(counts: Counts) -> str:
    """Return why `auto` does not try RBF; "" if it does."""
    if counts.photos > RBF_MAX_SEARCHED:
        return f"there are more than {RBF_MAX_SEARCHED:,} photos"
    if counts.photos < RBF_MIN_PER_CLASS * counts.classes:
        return f"there are fewer than {RBF_MIN_PER_CLASS:g} training photos per class"
    if rbf_search_s(counts) > RBF_MAX_S:
        return f"it would compare all {counts.class_pairs:,} pairs of classes"
    return ""


def search_here_s(kernel: str, counts: Counts, head_epochs: int) -> float:
    """Return the seconds on this machine of a repeated search and of the dense heads beside it."""
    times = repeats(kernel, counts, head_epochs)
    return here_s(kernel, counts, max(times, 1)) + slowness() * times * heads_s(counts, head_epochs)


def method(kernel: str, counts: Counts) -> str:
    """Return a description of the search."""
    if kernel == RBF:
        return "RBF kernel"
    linear = "linear kernel"
    if (share := linear_share(counts)) == 0:
        linear += ", by least squares for all classes at once, because one class at a time would take too long"
    elif share < 1:
        linear += f", C searched on {share:.0%} of the photos"
    if kernel == LINEAR:
        return linear
    why = why_no_rbf(counts)
    return f"{linear}; RBF is not tried, because {why}" if why else f"{linear}, then RBF"


def linear_share(counts: Counts) -> float:
    """Return the share of the photos for LIBLINEAR's search of C; 0 if one fit takes too long."""
    left_s = LINEAR_MAX_S - 2 * linear_fit_s(counts)
    if left_s <= 0 or _LINEAR_BYTES * counts.photos * counts.length > _MAX_BYTES:
        return 0.0
    share = min(1.0, left_s / linear_search_s(counts))
    return share if share == 1 or share * counts.photos >= _MIN_SEARCHED * counts.classes else 0.0


def linear_threads(counts: Counts) -> int:
    """Return how many folds are fitted at the same time, by cores and memory."""
    by_memory = _MAX_BYTES // max(1, _LINEAR_BYTES * counts.photos * counts.length)
    return max(1, min(os.cpu_count() or 1, by_memory))


def check(kernel: str, counts: Counts) -> None:
    """Raise SettingsError if RBF is requested and would take hours."""
    if kernel == RBF and (seconds := rbf_search_s(counts)) > RBF_MAX_REQUESTED_S:
        raise SettingsError(
            "SVM_RBF",
            f"the RBF kernel compares all {counts.class_pairs:,} pairs of {counts.classes:,} classes: about "
            f"{seconds / 3600:,.0f} hours of CPU time for {counts.photos:,} photos; use the kernel auto, which chooses "
            "the linear one",
        )


def seconds(kernel: str, counts: Counts, repeats: int = 1) -> float:
    """Return the time in seconds of the search, on `repeats` divisions into folds, and the final fits, at most."""
    share, cores = linear_share(counts), os.cpu_count() or 1
    total = 0.0
    if kernel != RBF:
        if share:
            at_a_time = min(linear_threads(counts), counts.folds)
            total += repeats * share * linear_search_s(counts) / at_a_time + 2 * linear_fit_s(counts)
        else:
            total += squares_s(counts) / cores
    if kernel == RBF or (kernel == AUTO and not why_no_rbf(counts)):
        total += repeats * rbf_search_s(counts) / min(cores, counts.folds)
    return total


def here_s(kernel: str, counts: Counts, repeats: int = 1) -> float:
    """Return seconds() for this machine."""
    return slowness() * seconds(kernel, counts, repeats)


@cache
def slowness() -> float:
    """Return the time of a small fit here, divided by the time on the machine of these constants."""
    labels = np.arange(600) % 6
    rows = np.random.default_rng(0).normal(size=(len(labels), 512)) + 0.3 * labels[:, None]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return min(apart(lambda: _probe_s(unit, labels)) for _ in range(_PROBES)) / _PROBE_S


def _probe_s(unit: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    # CPU time of this thread, because other load at this moment says nothing about the next minutes.
    started = time.thread_time()
    LinearSVC(dual=False).fit(unit, labels)
    return time.thread_time() - started


def summary(kernel: str, counts: Counts, repeats: int = 1) -> str:
    """Return a description of the search with its time on this machine."""
    return f"{method(kernel, counts)}; about {duration(here_s(kernel, counts, repeats))} at most"
