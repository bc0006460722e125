"""Project descriptors to the plane, by PCA, which keeps distances, and by t-SNE, which keeps neighbours."""

import csv
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from penult.bundle.scores import Floats

MAX_PHOTOS = 1000
# With fewer points, t-SNE shows no more than PCA.
_MIN_FOR_TSNE = 10
_PERPLEXITY, _STEPS = 30.0, 500


@dataclass(frozen=True)
class DescriptorMap:
    """The rows of the shown photos, and their points [N, 2]; `explained` is PCA's share of the variance."""

    rows: NDArray[np.int64]
    pca: NDArray[np.floating]
    explained: float
    tsne: NDArray[np.floating] | None


def descriptor_map(descriptors: Floats, seed: int) -> DescriptorMap | None:
    """Project descriptors [N, length], scaled to length 1 as for the SVM, to the plane.

    t-SNE (van der Maaten and Hinton 2008) starts from PCA. At most MAX_PHOTOS photos are used, drawn by `seed`.

    Returns:
        None if all descriptors are equal, or if there are fewer than two photos or two numbers.
    """
    rows = np.arange(len(descriptors))
    if len(rows) > MAX_PHOTOS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_PHOTOS, replace=False))
    points = normalize(descriptors[rows].astype(np.float64))
    if min(points.shape) < 2 or np.ptp(points, axis=0).max() < 1e-9:
        return None
    pca = PCA(2, svd_solver="full").fit(points)
    tsne = None
    if len(rows) >= _MIN_FOR_TSNE:
        perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
        # With so few points a second thread costs more than it saves, above all if the processor is busy.
        with threadpool_limits(1):
            map_tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=_STEPS, random_state=seed)
            tsne = np.asarray(map_tsne.fit_transform(points))
    return DescriptorMap(rows, pca.transform(points), float(pca.explained_variance_ratio_.sum()), tsne)


def map_csv(points: DescriptorMap, labels: NDArray[np.int64], classes: tuple[str, ...]) -> bytes:
    """Return a CSV of the points; `photo` is the row in predictions.csv from 0, `labels` are of all photos."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["photo", "class", "pca_1", "pca_2", "tsne_1", "tsne_2"])
    tsne = points.tsne if points.tsne is not None else np.full((len(points.rows), 2), np.nan)
    for row, one, other in zip(points.rows, points.pca, tsne, strict=True):
        cells = [f"{value:.5g}" if np.isfinite(value) else "" for value in (*one, *other)]
        writer.writerow([int(row), classes[labels[row]], *cells])
    return text.getvalue().encode()
