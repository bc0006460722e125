"""Find near-copies: photos of one moment, as bursts, video frames, resized, cropped and brightened copies are.

Descriptors propose pairs, and the pixels decide. Descriptors of a frozen network are centered and whitened, which makes
the cosine of photos that only share a class small (Jégou and Chum, Negative evidences and co-occurrences in image
retrieval: the benefit of PCA and whitening, ECCV 2012). Each photo is then aligned with its nearest ones
(penult.export.evaluation.alignment). Weights and thresholds were chosen on training photos (bench/near_copies.py).

Photos are compared in blocks, so memory grows with their number and not with its square.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.linalg import eigh

from penult.bundle.scores import Floats
from penult.console import progress
from penult.export.data.splitting import Photo
from penult.export.data.thumbnails import Grey, read_thumbnails
from penult.export.evaluation.alignment import COARSE, FINE, Aligner

# Each photo is aligned with at most so many others, and only above this cosine of whitened descriptors.
_MAX_NEIGHBOURS, _MIN_COSINE = 10, 0.2
# Whitening needs several photos per direction, else noise counts as much as content.
_MAX_DIRECTIONS, _PHOTOS_PER_DIRECTION = 256, 5
# So few photos are all aligned with each other, with an average cosine, as there is nothing to learn whitening from.
_FEW, _AVERAGE_COSINE = 30, 0.6
# The similarity is the mean of correlation and cosine with these weights; both bounds are of it.
_CORRELATION_WEIGHT, _COSINE_WEIGHT = 0.62, 0.38
_IS_PAIR, _IS_SURE = 0.59, 0.7
_MIN_CORRELATION = 0.5
# Of bursts made of training photos, all with a correlation of 0.6 have at least 0.62 at the coarse resolution.
_MIN_COARSE = 0.45
# Thumbnails propose the few pairs whose descriptors differ, which are those of a network trained on these photos.
_MAX_HASH_NEIGHBOURS, _MIN_HASH_COSINE, _HASH_SIDE = 3, 0.5, 12
# What such a pair's cosine counts as at least: it needs a correlation above 0.7.
_HASH_COSINE = 0.45
_BLOCK_ROWS = 256


class Pair(NamedTuple):
    """Two photos by row, `row` before `other`, and how similar they are: above 0.59, and 1 for identical files."""

    row: int
    other: int
    similarity: float


def find_pairs(
    photos: Sequence[Photo], descriptors: Floats, small: Grey | None = None, parts: Sequence[str] | None = None
) -> list[Pair]:
    """Find the pairs of near-copies among photos, most similar first.

    Args:
        photos: The photos. Of identical files the first one is compared, and the others are pairs with it.
        descriptors: [N, length]. Those of a network that was not trained on these photos are the best.
        small: Thumbnails of all photos, uint8 [N, SIDE, SIDE], which then propose pairs too. None reads the files.
        parts: The split of each photo; pairs inside of one split are then left out, unless the files are identical.

    Raises:
        DiskError: A photo can no longer be read.
    """
    first: dict[str, int] = {}
    copies = [(first.setdefault(photo.sha256 or str(photo.path), row), row) for row, photo in enumerate(photos)]
    different = np.array(list(first.values()), dtype=np.int64)
    pairs = [Pair(row, other, 1.0) for row, other in copies if row != other]
    if len(different) > 1:
        candidates = _candidates(descriptors[different], None if small is None else small[different])
        if parts is not None:
            where: dict[int, set[str]] = defaultdict(set)
            for (row, _), part in zip(copies, parts, strict=True):
                where[row].add(part)
            candidates = [c for c in candidates if len(where[different[c[0]]] | where[different[c[1]]]) > 1]
        rows = sorted({row for candidate in candidates for row in candidate[:2]})
        shown = read_thumbnails([photos[different[row]] for row in rows]) if small is None else small[different[rows]]
        places = {row: place for place, row in enumerate(rows)}
        coarse, fine = (Aligner(lambda row: shown[places[row]], resolution) for resolution in (COARSE, FINE))
        for row, other, cosine in progress(candidates, "comparing photos", len(candidates)):
            if coarse.correlation(row, other) < _MIN_COARSE:
                continue
            if similarity := _similarity(fine.correlation(row, other), cosine):
                pairs.append(Pair(int(different[row]), int(different[other]), similarity))
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.row, pair.other))


def group_ids(count: int, pairs: Iterable[Pair]) -> NDArray[np.int64]:
    """Return a group for each of `count` photos, int64 [count]: the lowest row of those that are near-copies.

    Sure pairs always join. So that one doubtful pair does not chain two groups, it joins them only if another pair does
    too. A photo that has doubtful pairs alone joins the group that it is most similar to.
    """
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    def join(pair: Pair) -> None:
        low, high = sorted((root(pair.row), root(pair.other)))
        parent[high] = low

    ordered = sorted(pairs, key=lambda pair: -pair.similarity)
    doubtful = [pair for pair in ordered if pair.similarity < _IS_SURE]
    for pair in ordered[: len(ordered) - len(doubtful)]:
        join(pair)
    sizes = Counter(root(row) for row in range(count))
    links = Counter(frozenset((root(pair.row), root(pair.other))) for pair in doubtful)
    alone = {row for row, size in sizes.items() if size == 1}
    supported = [pair for pair in doubtful if links[frozenset((root(pair.row), root(pair.other)))] > 1]
    for pair in doubtful:
        if ends := alone & {root(pair.row), root(pair.other)}:
            alone -= ends
            join(pair)
    for pair in supported:
        join(pair)
    return np.array([root(row) for row in range(count)], dtype=np.int64)


def _similarity(correlation: float, cosine: float) -> float:
    """Return the similarity of a pair of near-copies; 0 if the photos are none."""
    similarity = _CORRELATION_WEIGHT * correlation + _COSINE_WEIGHT * cosine
    return min(similarity, 1.0) if similarity >= _IS_PAIR and correlation >= _MIN_CORRELATION else 0.0


def _candidates(descriptors: Floats, small: Grey | None) -> list[tuple[int, int, float]]:
    """Return the pairs to align, in order of rows: row, a later row, cosine of whitened descriptors."""
    if len(descriptors) <= _FEW:
        return [(row, other, _AVERAGE_COSINE) for row, other in combinations(range(len(descriptors)), 2)]
    unit = _whitened(descriptors)
    found = dict.fromkeys(_nearest(unit, _MAX_NEIGHBOURS, _MIN_COSINE), 0.0)
    if small is not None:
        hashed = _nearest(_whitened(_hashes(small)), _MAX_HASH_NEIGHBOURS, _MIN_HASH_COSINE)
        found |= dict.fromkeys(hashed, _HASH_COSINE)
    return [(row, other, max(least, float(unit[row] @ unit[other]))) for (row, other), least in sorted(found.items())]


def _nearest(unit: NDArray[np.float32], count: int, cosine: float) -> set[tuple[int, int]]:
    """Return the pairs of each row of `unit` [N, length] with the `count` nearest above a cosine, lower row first."""
    found = set()
    for at in range(0, len(unit), _BLOCK_ROWS):
        cosines = unit[at : at + _BLOCK_ROWS] @ unit.T
        rows, others = np.nonzero(cosines > cosine)
        starts = np.searchsorted(rows, np.arange(len(cosines) + 1))
        for row, (start, end) in enumerate(pairwise(starts.tolist())):
            near = others[start:end][np.argsort(-cosines[row, others[start:end]], kind="stable")]
            for other in near[near != at + row][:count].tolist():
                found.add((min(at + row, other), max(at + row, other)))
    return found


def _hashes(small: Grey) -> Floats:
    """Return the low frequencies of thumbnails, as perceptual hashes have them (pHash; Zauner 2010), not binarised."""
    rows = np.empty((len(small), _HASH_SIDE**2 - 1), np.float32)
    for at in range(0, len(small), _BLOCK_ROWS):
        block = dctn(small[at : at + _BLOCK_ROWS].astype(np.float32), axes=(1, 2))[:, :_HASH_SIDE, :_HASH_SIDE]
        rows[at : at + len(block)] = block.reshape(len(block), -1)[:, 1:]
    return rows


def _whitened(descriptors: Floats) -> NDArray[np.float32]:
    """Return descriptors [N, length] centered, whitened in their main directions, and scaled to length 1."""
    unit = descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-12)
    unit -= unit.mean(axis=0)
    length = unit.shape[1]
    covariance = np.zeros((length, length))
    for at in range(0, len(unit), 4096):
        block = unit[at : at + 4096].astype(np.float64)
        covariance += block.T @ block
    directions = min(_MAX_DIRECTIONS, len(unit) // _PHOTOS_PER_DIRECTION, length)
    values, vectors = eigh(covariance, subset_by_index=(length - directions, length - 1))
    kept = values > 1e-6 * max(values[-1], 1e-12)
    rows = unit @ (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
    found: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found
