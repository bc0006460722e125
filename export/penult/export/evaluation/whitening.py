"""`--whiten N`: a last linear layer under the descriptor, learnt on the training photos, so that neighbours are better.

Descriptors of a network lie in few directions: much of their length says the same of every photo. PCA-whitening (Jégou
and Chum, "Negative evidences and co-occurrences in image retrieval", ECCV 2012) centres descriptors of unit length,
keeps the N directions of most variance, and gives each about the same weight. It is part of the exported network, so
everything after it, SVM, goldens, fingerprint and collections, knows one descriptor; the dense head reads the raw one.

To each variance the mean of those kept is added: with a few hundred photos the small ones are guesses, and dividing by
them magnifies noise, rounding included (bench/RESULTS.md, "Whitening").
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from penult.bundle.scores import Floats, pieces
from penult.console import say
from penult.export.data.loader import Batch
from penult.export.errors import SettingsError
from penult.export.networks.network import Normalise, PenultNet, Whitening
from penult.lookup.types import Hit
from penult.lookup.vote import vote

NEIGHBOURS = 10
SHRINKAGE = 1.0


@dataclass(frozen=True)
class WhiteningResult:
    """What whitening did: lengths before and after, and what it kept and won.

    `variance_kept` is a share of 1. The votes are the shares of validation photos whose ten nearest training photos
    name them right, by raw and by whitened descriptors.
    """

    from_length: int
    to_length: int
    photos: int
    variance_kept: float
    raw_vote: float
    whitened_vote: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as metrics.json tells them."""
        return asdict(self) | {"neighbours": NEIGHBOURS}


def check(wanted: int, length: int, photos: int) -> None:
    """Raise SettingsError where a network's descriptors or so few photos have no `wanted` directions."""
    if wanted and wanted > min(length, photos - 1):
        raise SettingsError(
            "WHITEN",
            f"--whiten {wanted}: descriptors of {length:,} numbers of {photos:,} training photos have at most "
            f"{min(length, photos - 1):,} directions; give less, a third of that or below",
        )


def whiten(
    net: PenultNet, normalise: Normalise, wanted: int, train: Iterator[Batch], val: Iterator[Batch]
) -> WhiteningResult:
    """Learn whitening on the photos of `train`, put it into the network, and return what it does to those of `val`."""
    (learnt_on, labels), (asked, truth) = _describe(net, normalise, train), _describe(net, normalise, val)
    weight, bias, kept = directions(learnt_on, wanted)
    net.whitening = Whitening(torch.from_numpy(weight), torch.from_numpy(bias))
    with torch.inference_mode():
        after = [net.whitening(torch.from_numpy(rows)).numpy() for rows in (learnt_on, asked)]
    raw, whitened = vote_accuracy(learnt_on, labels, asked, truth), vote_accuracy(after[0], labels, after[1], truth)
    say(
        f"whitening: descriptors of {learnt_on.shape[1]:,} numbers become {wanted:,}; the {NEIGHBOURS} nearest "
        f"training photos name {whitened:.1%} of the validation photos right, without it {raw:.1%}"
    )
    return WhiteningResult(learnt_on.shape[1], wanted, len(learnt_on), kept, raw, whitened)


def directions(descriptors: Floats, wanted: int, shrinkage: float = SHRINKAGE) -> tuple[Floats, Floats, float]:
    """Return weight float32 [wanted, length] and bias [wanted] of the layer, and the share of the variance kept.

    Descriptors are float32 [N, length]; the layer is applied to descriptors of unit length.
    """
    units = _unit(descriptors)
    found = PCA(wanted, svd_solver="full").fit(units)
    scale = 1 / np.sqrt(found.explained_variance_ + shrinkage * found.explained_variance_.mean())
    weight = found.components_ * scale[:, None]
    bias = -weight @ found.mean_
    return weight.astype(np.float32), bias.astype(np.float32), float(found.explained_variance_ratio_.sum())


def vote_accuracy(stored: Floats, labels: NDArray[np.int64], asked: Floats, truth: NDArray[np.int64]) -> float:
    """Return how often the nearest of `stored` [N, length] with `labels` [N] name those of `asked` right."""
    units, right = _unit(stored), 0
    for rows in pieces(len(asked), len(stored)):
        similarities = _unit(asked[rows]) @ units.T
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :NEIGHBOURS]
        for row, places, true in zip(similarities, nearest, truth[rows], strict=True):
            votes = vote([Hit(str(n), float(row[n]), str(labels[n])) for n in places])
            right += bool(votes) and votes[0][0] == str(true)
    return right / len(truth)


def _describe(net: PenultNet, normalise: Normalise, batches: Iterator[Batch]) -> tuple[Floats, NDArray[np.int64]]:
    """Return raw descriptors float32 [N, length], and labels [N]."""
    net.eval()
    rows, labels = list[Floats](), list[NDArray[np.int64]]()
    with torch.inference_mode():
        for pixels, truth in batches:
            rows.append(net.describe(normalise(torch.from_numpy(pixels))).numpy())
            labels.append(truth)
    return np.concatenate(rows), np.concatenate(labels)


def _unit(rows: Floats) -> NDArray[np.float64]:
    exact = rows.astype(np.float64)
    unit: NDArray[np.float64] = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    return unit
