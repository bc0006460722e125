"""Fit the baseline that the service compares answers with, to detect drift and novel photos.

The novelty threshold needs many distances of photos that the measure was not fitted on. Validation photos are often
few, so distances of training photos are added, each by a measure fitted on the other four fifths (bench/novelty.py
compares measures and thresholds; docs/novelty.md has the table).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from penult.bundle.baseline import Baseline, Limit, Residual, nearest_distance
from penult.bundle.manifest import Manifest
from penult.bundle.scores import Floats, best_of
from penult.export.evaluation.outputs import SplitOutputs, unit_rows

# Older versions of penult read distances to so many training photos instead of the residual.
REFERENCES = 256
# Directions of the subspace; a matrix of 64 by 1,280 costs a quarter of 256 references. Descriptors must be several
# times as long, so that a residual is left, and must come from more photos than there are directions.
_MAX_DIRECTIONS, _LENGTH_PER_DIRECTION, _PHOTOS_PER_DIRECTION = 64, 8, 2
# More photos hardly change a subspace of 64 directions, but take time.
_MAX_PHOTOS = 10_000
_FOLDS = 5
# The share of held-out photos below the threshold.
ORDINARY = 0.975
# If all held-out photos are copies at distance 0, rounding must not make a photo novel.
MIN_THRESHOLD = 1e-3
_STANDARD_ERRORS = 2.0

Distance = Callable[[Floats], Floats]


def fit(manifest: Manifest, measured: Mapping[str, SplitOutputs], scores: Mapping[str, Floats], seed: int) -> Baseline:
    """Return the baseline of a model; `scores` are [N, classes] of the validation photos by scorer."""
    train, val = measured["train"], measured["val"]
    rows = spread(train.labels, seed, _MAX_PHOTOS)
    units, labels = unit_rows(train.descriptors[rows]).astype(np.float32), train.labels[rows]

    def residual_of(chosen: NDArray[np.intp]) -> Distance:
        return fit_residual(units[chosen], seed).distance

    def nearest_of(chosen: NDArray[np.intp]) -> Distance:
        references = units[chosen[spread(labels[chosen], seed, REFERENCES)]]
        return lambda descriptors: nearest_distance(references, descriptors)

    everything = np.arange(len(units))
    residual = fit_residual(units, seed)
    limit = _limit(held_out_distances(residual_of, units, seed), residual.distance(val.descriptors))
    near = nearest_of(everything)(val.descriptors)
    named = scores[manifest.default_scorer].argmax(axis=1)
    shares = np.bincount(named, minlength=len(manifest.classes)) / len(named)
    sure = {name: best_of(values, manifest.temperatures[name])[1].mean() for name, values in scores.items()}
    return Baseline(
        references=units[spread(labels, seed, REFERENCES)],
        nearest=_limit(held_out_distances(nearest_of, units, seed), near),
        distance=float(near.mean()),
        class_share=shares.astype(np.float32),
        confidence={name: float(value) for name, value in sure.items()},
        photos=len(val.labels),
        residual=residual,
        residual_limit=limit,
    )


def fit_residual(units: Floats, seed: int) -> Residual:
    """Return the mean and the main directions of descriptors of unit length, float32 [N, length]."""
    count, length = units.shape
    wanted = min(_MAX_DIRECTIONS, length // _LENGTH_PER_DIRECTION, count // _PHOTOS_PER_DIRECTION)
    mean = units.mean(axis=0, dtype=np.float64)
    if not wanted or not np.ptp(units, axis=0).any():  # identical descriptors have no directions
        return Residual(mean.astype(np.float32), np.empty((length, 0), dtype=np.float32))
    found = PCA(wanted, svd_solver="randomized", random_state=seed).fit(units.astype(np.float64))
    return Residual(mean.astype(np.float32), np.ascontiguousarray(found.components_.T.astype(np.float32)))


def as_metrics(baseline: Baseline, measured: Mapping[str, SplitOutputs]) -> dict[str, Any]:
    """Return the entry "novelty" of metrics.json."""
    limit = baseline.limit
    above = {
        part: float((baseline.novelty(measured[part].descriptors) > limit.threshold).mean()) for part in ("val", "test")
    }
    low, high = limit.interval
    return {
        "measure": "residual" if baseline.residual else "nearest",
        "threshold": limit.threshold,
        "photos_held_out": limit.photos,
        "share_held_out_above": limit.share,
        "share_above_interval_95": [low, high],
        "share_above": above,
    }


def held_out_distances(
    make: Callable[[NDArray[np.intp]], Distance], units: Floats, seed: int, groups: NDArray[np.intp] | None = None
) -> Floats:
    """Return a distance for each photo, by the measure that `make` fits on the rows of the other folds.

    Photos of the same number in `groups` [N], from 0, are in the same fold. With None, each photo is a group.
    """
    groups = np.arange(len(units)) if groups is None else groups
    folds = (np.random.default_rng(seed).permutation(groups.max() + 1) % _FOLDS)[groups]
    found = np.zeros(len(units), dtype=np.float32)
    for fold in np.unique(folds):
        inside = folds == fold
        if not inside.all():
            found[inside] = make(np.flatnonzero(~inside))(units[inside])
    return found


def _limit(held_out: Floats, val: Floats) -> Limit:
    """Return the threshold from distances of held-out training photos and of validation photos."""
    distances = pooled(held_out, val)
    threshold = max(float(np.quantile(distances, ORDINARY)), MIN_THRESHOLD)
    share = float((distances > threshold).mean())
    return Limit(threshold, share, float(np.median(distances)), len(distances))


def pooled(held_out: Floats, val: Floats) -> Floats:
    """Return the distances of held-out training photos and of validation photos, on one scale.

    Training moves a network's own training photos closer together. If validation photos are further away than chance
    explains, the distances of training photos are scaled up to the same mean.
    """
    means = val.mean(), held_out.mean()
    error = np.sqrt(val.var() / len(val) + held_out.var() / len(held_out))
    is_further = means[0] - means[1] > _STANDARD_ERRORS * error and means[1] > 0
    return np.concatenate([held_out * (means[0] / means[1] if is_further else 1.0), val])


def spread(labels: NDArray[np.int64], seed: int, count: int) -> NDArray[np.intp]:
    """Return rows of up to `count` photos, drawn by seed, equally many of each class if possible."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.intp)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        rank[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])
