"""The labelled items of a collection, with their descriptors, for learning from them."""

import numpy as np
from numpy.typing import NDArray

from penult.cli.classify import has_bar
from penult.client.batch_calls import Bar
from penult.client.sync_client import Client
from penult.client.tools.collection_pages import pages, told_of
from penult.client.types import CollectionInfo, RequestFailed

Labelled = tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float32]]


def labelled_items(client: Client, collection: str) -> tuple[CollectionInfo, Labelled]:
    """Return what a collection is, and ids, labels and descriptors, float32 [N, length]. Raises RequestFailed."""
    told = told_of(client, collection)
    found = []
    with Bar(told.items, has_bar()) as bar:
        for page in pages(client, collection, descriptors=True):
            found += [item for item in page if item.label]
            bar.add(len(page))
    if not found:
        line = f"no item of {collection} bears a label; put them again with one"
        raise RequestFailed("FAILED_PRECONDITION", "NO_LABELS", line)
    vectors = np.stack([item.descriptor for item in found if item.descriptor is not None])
    return told, (tuple(item.id for item in found), tuple(item.label for item in found), vectors)
