"""Train a dense head on descriptors with NumPy, as training/finetune.py trains it with PyTorch on a frozen network.

Cross-validation needs a head for each fold, and `penult svm` must not import PyTorch. Dropout, loss, AdamW, batches,
the plateau schedule and early stopping are the same; only the random numbers differ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_sample_weight

from penult.bundle.scores import Floats, softmax
from penult.export.config.train import BALANCED, TrainSettings
from penult.export.evaluation.folds import Labels

BATCH = 64
# As training/finetune.py: Adam's usual 1e-8 would turn gradients of rounding noise into full steps.
_EPSILON = 1e-6
_BETAS = (0.9, 0.999)
# torch.optim.lr_scheduler.ReduceLROnPlateau counts a loss as better below this share of the best.
_BETTER = 1 - 1e-4


@dataclass(frozen=True)
class HeadRecipe:
    """The options of `penult train` that decide how a head on frozen layers is trained; `dropout` is resolved."""

    dropout: float
    head_epochs: int = TrainSettings.head_epochs
    lr_head: float = TrainSettings.lr_head
    lr_factor: float = TrainSettings.lr_factor
    lr_patience: int = TrainSettings.lr_patience
    stop_patience: int = TrainSettings.stop_patience
    weight_decay: float = TrainSettings.weight_decay
    class_weights: str = TrainSettings.class_weights

    @classmethod
    def of(cls, settings: Mapping[str, Any], dropout: float) -> Self:
        """Read recorded settings; `dropout` is the architecture's, for settings without one.

        Settings that are absent or of an unexpected type have the default.
        """
        names = {field.name: field.type for field in fields(cls) if field.name != "dropout"}
        given = {name: settings[name] for name in names if type(settings.get(name)) is type(getattr(cls, name))}
        own = settings.get("dropout")
        return cls(own if isinstance(own, float) and 0 <= own < 1 else dropout, **given)


@dataclass(frozen=True)
class DenseHead:
    """A linear layer: weights [length, classes] and biases [classes]."""

    weights: Floats
    biases: Floats

    def logits(self, descriptors: Floats) -> Floats:
        """Return logits float32 [N, classes] of descriptors [N, length]."""
        return descriptors @ self.weights + self.biases


def fit_head(
    recipe: HeadRecipe, train: tuple[Floats, Labels], val: tuple[Floats, Labels], classes: int, seed: int
) -> DenseHead:
    """Train a head; validation photos lower the learning rate, stop it, and choose the epoch.

    Args:
        recipe: The options.
        train: Descriptors float32 [N, length] and labels [N].
        val: The same of the validation photos.
        classes: How many classes there are.
        seed: Decides initial weights, order and dropout.
    """
    random = np.random.default_rng([seed, 5])
    bound = 1 / math.sqrt(train[0].shape[1])  # as torch.nn.Linear starts
    start = [
        random.uniform(-bound, bound, shape).astype(np.float32) for shape in ((train[0].shape[1], classes), classes)
    ]
    step, plateau = _AdamW(start, recipe.weight_decay), _Plateau(recipe)
    weight_of = _class_weights(recipe, train[1], classes)
    best, lowest, stale = DenseHead(*start), math.inf, 0
    for _ in range(recipe.head_epochs):
        order = random.permutation(len(train[1]))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            inputs = train[0][rows]
            if recipe.dropout:
                inputs = inputs * (random.random(inputs.shape, dtype=np.float32) >= recipe.dropout)
                inputs /= 1 - recipe.dropout
            step.take(_gradients(inputs, train[1][rows], weight_of, *step.values), plateau.rate)
        loss = _loss(DenseHead(*step.values), *val, weight_of)
        plateau.after_epoch(loss)
        stale += 1
        if loss < lowest:
            best, lowest, stale = DenseHead(*(values.copy() for values in step.values)), loss, 0
        if stale >= recipe.stop_patience:
            break
    return best


def _class_weights(recipe: HeadRecipe, labels: Labels, classes: int) -> NDArray[np.float32]:
    weights = np.ones(classes, dtype=np.float32)
    if recipe.class_weights == BALANCED:
        weights[labels] = compute_sample_weight(BALANCED, labels) * len(np.unique(labels)) / classes
    return weights


def _gradients(
    inputs: Floats, labels: Labels, weight_of: NDArray[np.float32], weights: Floats, biases: Floats
) -> tuple[Floats, Floats]:
    """Return the gradients of the weighted mean cross-entropy."""
    errors = softmax(inputs @ weights + biases, 1.0).astype(np.float32)
    errors[np.arange(len(labels)), labels] -= 1
    errors *= (weight_of[labels] / weight_of[labels].sum())[:, None]
    return inputs.T @ errors, errors.sum(axis=0)


def _loss(head: DenseHead, descriptors: Floats, labels: Labels, weight_of: NDArray[np.float32]) -> float:
    logits = head.logits(descriptors).astype(np.float64)
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weight_of[labels]))


class _AdamW:
    """AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW."""

    def __init__(self, values: list[Floats], weight_decay: float) -> None:
        self.values = values
        self._decay = weight_decay
        self._means = [np.zeros_like(value) for value in values]
        self._squares = [np.zeros_like(value) for value in values]
        self._steps = 0

    def take(self, gradients: tuple[Floats, ...], rate: float) -> None:
        self._steps += 1
        first, second = (1 - beta**self._steps for beta in _BETAS)
        for at, gradient in enumerate(gradients):
            self._means[at] += (1 - _BETAS[0]) * (gradient - self._means[at])
            self._squares[at] += (1 - _BETAS[1]) * (gradient**2 - self._squares[at])
            self.values[at] *= 1 - rate * self._decay
            self.values[at] -= rate / first * self._means[at] / (np.sqrt(self._squares[at] / second) + _EPSILON)


class _Plateau:
    """The learning rate, lowered after more than `lr_patience` epochs without a better loss."""

    def __init__(self, recipe: HeadRecipe) -> None:
        self.rate = recipe.lr_head
        self._recipe = recipe
        self._best, self._bad = math.inf, 0

    def after_epoch(self, loss: float) -> None:
        self._bad += 1
        if loss < self._best * _BETTER:
            self._best, self._bad = loss, 0
        if self._bad > self._recipe.lr_patience:
            self.rate, self._bad = self.rate * self._recipe.lr_factor, 0
