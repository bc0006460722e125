"""Made-up descriptors of classes that overlap, for tests of what learns from labels."""

import numpy as np

from penult.label.learner import Learner
from penult.label.strategies import Situation

NAMES = ("glass", "paper", "plastic", "trash")


def photos(count: int, seed: int = 0, noise: float = 0.7, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptors of length 1, float32 [count, 32], and labels; each class has three kinds of photos."""
    centers = np.random.default_rng(99).normal(size=(classes, 3, 32))
    random = np.random.default_rng(seed)
    labels, kinds = random.integers(0, classes, count), random.integers(0, 3, count)
    inputs = centers[labels, kinds] + noise * random.normal(size=(count, 32)) * np.sqrt(2)
    return (inputs / np.linalg.norm(inputs, axis=1, keepdims=True)).astype(np.float32), labels


def situation(inputs: np.ndarray, labels: np.ndarray, rows: list[int], groups: np.ndarray | None = None) -> Situation:
    """Return the situation after labels of `rows`, with a fit if two classes are among them."""
    groups = np.arange(len(inputs)) if groups is None else groups
    known = np.array(rows, np.intp)
    given = labels[known]
    fit = Learner(inputs, groups).fit(known, given, len(NAMES)) if len(set(given.tolist())) > 1 else None
    is_open = np.ones(len(inputs), bool)
    is_open[known] = False
    return Situation(inputs, groups, known, given, NAMES, fit, np.flatnonzero(is_open))
