"""`--whiten N`: a last linear layer before the descriptor, fitted on the training photos, that improves lookups.

The variance of descriptors is concentrated in few directions. PCA-whitening (Jégou and Chum, "Negative evidences and
co-occurrences in image retrieval", ECCV 2012) centres descriptors of unit length, keeps the N directions with the most
variance, and gives them about equal weight. It is part of the exported network, so SVM, goldens, fingerprint and
collections use the whitened descriptor. The dense head reads the raw one.

The mean of the kept variances is added to each variance. With a few hundred photos small variances are uncertain, and
dividing by them would magnify noise and rounding (bench/RESULTS.md, "Whitening").
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
from penult.export.evaluation.outputs import unit_rows
from penult.export.networks.network import Normalise, PenultNet, Whitening
from penult.lookup.types import Hit
from penult.lookup.vote import vote

NEIGHBOURS = 10
SHRINKAGE = 1.0


@dataclass(frozen=True)
class WhiteningResult:
    """The effect of whitening.

    Attributes:
        from_length: Numbers per raw descriptor.
        to_length: Numbers per whitened descriptor.
        photos: The photos that it was fitted on.
        variance_kept: The share of the variance that is kept, 0 to 1.
        raw_vote: The share of validation photos that a vote of their ten nearest training photos classifies correctly.
        whitened_vote: The same by whitened descriptors.
    """

    from_length: int
    to_length: int
    photos: int
    variance_kept: float
    raw_vote: float
    whitened_vote: float

    def as_json(self) -> dict[str, Any]:
        """Return the entry of metrics.json."""
        return asdict(self) | {"neighbours": NEIGHBOURS}


def check(wanted: int, length: int, photos: int) -> None:
    """Raise SettingsError if the descriptors or the photos are too few for `wanted` directions."""
    if wanted and wanted > min(length, photos - 1):
        raise SettingsError(
            "WHITEN",
            f"--whiten {wanted}: descriptors of {length:,} numbers of {photos:,} training photos have at most "
            f"{min(length, photos - 1):,} directions; give at most a third of that",
        )


def whiten(
    net: PenultNet, normalise: Normalise, wanted: int, train: Iterator[Batch], val: Iterator[Batch]
) -> WhiteningResult:
    """Fit whitening on the photos of `train`, add it to the network, and return its effect on those of `val`."""
    (learnt_on, labels), (asked, truth) = _describe(net, normalise, train), _describe(net, normalise, val)
    weight, bias, kept = directions(learnt_on, wanted)
    net.whitening = Whitening(torch.from_numpy(weight), torch.from_numpy(bias))
    with torch.inference_mode():
        after = [net.whitening(torch.from_numpy(rows)).numpy() for rows in (learnt_on, asked)]
    raw, whitened = vote_accuracy(learnt_on, labels, asked, truth), vote_accuracy(after[0], labels, after[1], truth)
    say(
        f"whitening: {learnt_on.shape[1]:,} numbers per descriptor become {wanted:,}; the {NEIGHBOURS} nearest "
        f"training photos classify {whitened:.1%} of the validation photos correctly, without whitening {raw:.1%}"
    )
    return WhiteningResult(learnt_on.shape[1], wanted, len(learnt_on), kept, raw, whitened)


def directions(descriptors: Floats, wanted: int, shrinkage: float = SHRINKAGE) -> tuple[Floats, Floats, float]:
    """Return weight float32 [wanted, length] and bias [wanted] of the layer, and the share of the variance kept.

    Descriptors are float32 [N, length]; the layer is applied to descriptors of unit length.
    """
    units = unit_rows(descriptors)
    found = PCA(wanted, svd_solver="full").fit(units)
    scale = 1 / np.sqrt(found.explained_variance_ + shrinkage * found.explained_variance_.mean())
    weight = found.components_ * scale[:, None]
    bias = -weight @ found.mean_
    return weight.astype(np.float32), bias.astype(np.float32), float(found.explained_variance_ratio_.sum())


def vote_accuracy(stored: Floats, labels: NDArray[np.int64], asked: Floats, truth: NDArray[np.int64]) -> float:
    """Return how often the nearest of `stored` [N, length] with `labels` [N] classify those of `asked` correctly."""
    units, right = unit_rows(stored), 0
    for rows in pieces(len(asked), len(stored)):
        similarities = unit_rows(asked[rows]) @ units.T
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
            rows.append(net.outputs(normalise(torch.from_numpy(pixels)))[1].numpy())
            labels.append(truth)
    return np.concatenate(rows), np.concatenate(labels)
