"""Items of a collection that are nearly the same, found by a lookup of each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from penult.client.sync_client import Client
from penult.client.types import ItemFailure, StoredItem

_MAX_NEIGHBOURS = 20


@dataclass(frozen=True)
class Pair:
    """Two items and the cosine of their descriptors; `id` comes before `other` in the order of the collection."""

    id: str
    label: str
    other: str
    other_label: str
    similarity: float


def find_duplicates(
    client: Client,
    collection: str,
    pages: Iterator[Sequence[StoredItem]],
    max_distance: float,
    step: Callable[[int], None],
) -> list[Pair]:
    """Return the pairs within a distance, nearest first; of each item at most its 20 nearest.

    Raises RequestFailed.
    """
    found: dict[tuple[str, str], Pair] = {}
    for page in pages:
        rows = np.stack([item.descriptor for item in page if item.descriptor is not None])
        answer = client.lookup(rows, collection, k=_MAX_NEIGHBOURS, max_distance=max_distance)
        for item, near in zip(page, answer.results, strict=True):
            for each in () if isinstance(near, ItemFailure) else near:
                (a, a_label), (b, b_label) = sorted([(item.id, item.label), (each.id, each.label)])
                if a != b:
                    found[a, b] = Pair(a, a_label, b, b_label, each.similarity)
        step(len(page))
    return sorted(found.values(), key=lambda pair: (-pair.similarity, pair.id, pair.other))
