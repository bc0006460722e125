"""What the service will hold answers against: learnt on training photos, measured on validation photos."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.baseline import Baseline
from penult.bundle.manifest import Manifest
from penult.bundle.scores import Floats, softmax
from penult.export.bundling import Measured

# A fifth of a millisecond for 1,280 numbers would be a fiftieth of a photo's time; 256 take a quarter of that, and
# separate as well as all 1,768 of TrashNet (bench/RESULTS.md, "Novelty").
REFERENCES = 256
# The share of validation photos that are no more novel than the threshold.
_ORDINARY = 0.99
# Where validation photos all lie at distance 0, as copies would, any other photo is still not novel for a rounding.
_LEAST_THRESHOLD = 1e-3


def learn(manifest: Manifest, measured: Mapping[str, Measured], scores: Mapping[str, Floats], seed: int) -> Baseline:
    """Return the baseline of a model; `scores` are those of the validation photos, [N, classes] by scorer."""
    train, val = measured["train"], measured["val"]
    references = _unit(train.descriptors[_spread(train.labels, seed)])
    probe = Baseline(references, 1.0, 0.0, 0.0, np.empty(0, dtype=np.float32), {})
    novelty = probe.novelty(val.descriptors)
    threshold = max(float(np.quantile(novelty, _ORDINARY, method="higher")), _LEAST_THRESHOLD)
    named = scores[manifest.default_scorer].argmax(axis=1)
    shares = np.bincount(named, minlength=len(manifest.classes)) / len(named)
    sure = {name: softmax(values, manifest.temperatures[name]).max(axis=1).mean() for name, values in scores.items()}
    return Baseline(
        references, threshold, float((novelty > threshold).mean()), float(novelty.mean()), shares.astype(np.float32),
        {name: float(value) for name, value in sure.items()},
    )  # fmt: skip


def told(baseline: Baseline, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Return what metrics.json tells of novelty."""
    above = {part: float((baseline.novelty(measured[part].descriptors) > baseline.threshold).mean())
             for part in ("val", "test")}  # fmt: skip
    return {"threshold": baseline.threshold, "references": len(baseline.references), "share_above": above}


def _spread(labels: NDArray[np.int64], seed: int) -> NDArray[np.intp]:
    """Return rows of up to REFERENCES photos, drawn by seed, of every class alike as far as it can."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.intp)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        rank[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:REFERENCES])


def _unit(rows: Floats) -> Floats:
    exact = rows.astype(np.float64)
    return (exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)).astype(np.float32)
