"""A whole collection: its properties and all its items."""

from collections.abc import Iterator
from typing import Any

from penult.client.sync_client import Client
from penult.client.types import CollectionInfo, RequestFailed, StoredItem

_PAGE = 500


def collection_info(client: Client, name: str) -> CollectionInfo:
    """Return the properties of a collection; raise RequestFailed if it does not exist."""
    for each in client.list_collections():
        if each.name == name:
            return each
    raise RequestFailed("NOT_FOUND", "COLLECTION_UNKNOWN", f"there is no collection {name}; penult index add makes one")


def pages(client: Client, name: str, descriptors: bool = False, thumbnails: bool = False) -> Iterator[list[StoredItem]]:
    """Yield all items of a collection, page by page. Raises RequestFailed."""
    after = ""
    while page := client.get_items(name, after=after, limit=_PAGE, descriptors=descriptors, thumbnails=thumbnails):
        yield page
        after = page[-1].id


def batches(items: Iterator[Any], size: int = _PAGE) -> Iterator[list[Any]]:
    """Yield items in lists of a size, the last one shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
