"""The dense head in NumPy is the one that PyTorch trains, except for its random numbers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from penult.export.evaluation import dense_head
from penult.export.evaluation.dense_head import BATCH, HeadRecipe, fit_head


def _overlapping(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(99).normal(size=(3, 16))
    labels = np.arange(count) % 3
    noise = np.random.default_rng(seed).normal(size=(count, 16)) * 1.5
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_it_ends_with_pytorchs_weights(weights: str):
    """With the same start, batches and validation photos, AdamW, plateau and early stopping give the same head."""
    train, val = _overlapping(150, 0), _overlapping(60, 1)
    train = train[0][:100], np.where(np.arange(100) < 60, train[1][:100], 0)
    recipe = HeadRecipe(0.0, head_epochs=60, lr_head=0.2, lr_patience=1, stop_patience=9, class_weights=weights)
    found = fit_head(recipe, train, val, 3, seed=4)

    rng = np.random.default_rng([4, 5])
    start = [rng.uniform(-0.25, 0.25, shape).astype(np.float32) for shape in ((16, 3), 3)]
    values = [torch.nn.Parameter(torch.tensor(value)) for value in start]
    optimizer = torch.optim.AdamW(values, lr=0.2, weight_decay=recipe.weight_decay, eps=1e-6)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=recipe.lr_factor, patience=1)
    counts = np.bincount(train[1], minlength=3)
    weight = torch.tensor(100 / (3 * counts) if weights == "balanced" else np.ones(3), dtype=torch.float32)
    (x, y), (val_x, val_y) = (tuple(map(torch.tensor, part)) for part in (train, val))
    best, lowest, stale, rates = None, float("inf"), 0, []
    for _ in range(60):
        for rows in torch.tensor(rng.permutation(100)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(x[rows] @ values[0] + values[1], y[rows], weight=weight).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(F.cross_entropy(val_x @ values[0] + values[1], val_y, weight=weight))
        plateau.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
        stale += 1
        if loss < lowest:
            best, lowest, stale = [value.detach().clone() for value in values], loss, 0
        if stale == 9:
            break
    assert len(rates) < 60
    assert min(rates) < 0.2
    np.testing.assert_allclose(found.weights, best[0].numpy(), atol=1e-3)
    np.testing.assert_allclose(found.biases, best[1].numpy(), atol=1e-3)


def test_dropout_keeps_the_mean_and_seeds_repeat():
    """With dropout, heads of one seed are equal, of two seeds not, and both know unseen photos as well as without."""
    parts, (unseen, labels) = (_overlapping(300, 0), _overlapping(60, 1)), _overlapping(600, 2)

    def accuracy(dropout: float, seed: int) -> tuple[float, bytes]:
        head = fit_head(HeadRecipe(dropout, lr_head=0.02), *parts, 3, seed)
        return float((head.logits(unseen).argmax(axis=1) == labels).mean()), head.weights.tobytes()

    without, one, again, other = accuracy(0.0, 0), accuracy(0.5, 0), accuracy(0.5, 0), accuracy(0.5, 1)
    assert one == again
    assert one[1] != other[1]
    assert min(one[0], other[0]) > without[0] - 0.03
    assert without[0] > 0.85


def test_the_loss_is_that_of_large_logits_too():
    """Logits of thousands neither overflow nor become NaN."""
    head = dense_head.DenseHead(np.full((16, 3), 1e3, np.float32), np.zeros(3, np.float32))
    descriptors, labels = _overlapping(30, 0)
    assert dense_head._loss(head, descriptors, labels, np.ones(3, np.float32)) == pytest.approx(np.log(3), rel=1e-3)


def test_recorded_settings_are_read():
    """What an older bundle did not record, or recorded as another type, is the default."""
    found = HeadRecipe.of({"lr_head": 0.5, "head_epochs": "many", "dropout": None}, 0.4)
    assert found == HeadRecipe(0.4, lr_head=0.5)
    assert HeadRecipe.of({"dropout": 0.1}, 0.4).dropout == 0.1
