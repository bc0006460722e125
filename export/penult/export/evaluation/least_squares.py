"""Fit a linear SVM of many classes by least squares, all classes at once, with an exact search for C.

LIBLINEAR fits one class at a time, for every C and fold, which takes hours for ten thousand classes. The least-squares
SVM (Suykens and Vandewalle 1999) has the same objective except for the loss, which penalises distances to
-1 and 1 on both sides. Its matrix is the same for all classes and is factored once. Its leave-one-out answers follow
from one fit (Cawley 2006). Photos are processed in pieces, so memory has the scores of one piece only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import Floats, pieces

_Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Factored:
    """The parts of the fit that do not depend on C.

    Attributes:
        unit: Descriptors of unit length, float32 [N, length].
        labels: [N].
        weights: [N].
        mean: The weighted mean, [length].
        directions: The eigenvectors of the weighted scatter, [length, length].
        variance: Its eigenvalues, [length].
        sums: The weighted sum of each class along the directions, [length, classes].
        mass: The sum of weights of each class, [classes].
    """

    unit: Floats
    labels: NDArray[np.int64]
    weights: _Doubles
    mean: _Doubles
    directions: _Doubles
    variance: _Doubles
    sums: _Doubles
    mass: _Doubles

    def solve(self, c: float) -> tuple[_Doubles, _Doubles]:
        """Return weights [length, classes], along the directions, and biases [classes], at C = `c`."""
        share = self.mass / self.mass.sum()
        along = 2 * self.sums / (self.variance + 1 / (2 * c))[:, None]
        return along, 2 * share - 1

    def plane(self, c: float) -> tuple[_Doubles, _Doubles]:
        """Return coefficients [classes, length] and intercepts [classes] for unit descriptors."""
        along, bias = self.solve(c)
        coefficients = (self.directions @ along).T
        return coefficients, bias - coefficients @ self.mean

    def hits(self, c: float) -> NDArray[np.bool_]:
        """Return for each photo whether the SVM fitted on all others is correct on it, bool [N]."""
        along, bias = self.solve(c)
        single, found = along.astype(np.float32), np.empty(len(self.labels), dtype=bool)
        for rows in pieces(len(self.labels), max(self.sums.shape)):
            centred = (self.unit[rows] - self.mean) @ self.directions
            scores = centred.astype(np.float32) @ single  # float32, since this is most of the work and memory
            scores += bias.astype(np.float32)
            leverage = centred**2 @ (1 / (self.variance + 1 / (2 * c))) + 1 / self.mass.sum()
            leverage = np.minimum(leverage * self.weights[rows], 1.0)
            # The leave-one-out score is (s - leverage t) / (1 - leverage) for target t; only its order matters.
            places, own = np.arange(len(scores)), self.labels[rows]
            right = scores[places, own] - leverage
            scores[places, own] = -np.inf
            found[rows] = right > scores.max(axis=1) + leverage
        return found


def factor(unit: Floats, labels: NDArray[np.int64], weights: _Doubles) -> Factored:
    """Factor unit descriptors float32 [N, length] with labels [N], 0 to classes - 1, and weights [N]."""
    length, classes = unit.shape[1], int(labels.max()) + 1
    scatter, sums = np.zeros((length, length)), np.zeros((classes, length))
    mean = weights @ unit / weights.sum()
    for rows in pieces(len(unit), length):
        centred = unit[rows] - mean
        weighted = centred * weights[rows, None]
        scatter += centred.T @ weighted
        np.add.at(sums, labels[rows], weighted)
    variance, directions = np.linalg.eigh(scatter)
    mass = np.bincount(labels, weights, classes).astype(np.float64)
    return Factored(unit, labels, weights, mean, directions, np.maximum(variance, 0), directions.T @ sums.T, mass)
