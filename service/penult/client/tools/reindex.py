"""Describe a collection with another model: into a new collection, which then replaces the old one."""

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from penult.client.sync_client import Client
from penult.client.types import CollectionInfo, ItemFailure, NewItem, Photo, RequestFailed, StoredItem

# Each pass copies the changes made during the one before, and is shorter. Faster changes than that are lost.
_MAX_PASSES = 10
_MAX_IDS = 1000


def reindex(
    client: Client,
    collection: CollectionInfo,
    walk: Callable[[], Iterator[Sequence[StoredItem]]],
    model: str,
    version: int,
    folder: Path | None,
    step: Callable[[int], None],
    may_lose: bool = False,
) -> tuple[int, list[str]]:
    """Describe all items with a model, then replace the collection.

    Until then the old collection answers lookups, and it stays if anything fails. Changes made meanwhile are copied,
    pass after pass, until a pass finds none.

    Args:
        client: The server's client.
        collection: The collection.
        walk: Returns an iterator over all items, with descriptors, page by page.
        model: The model that describes the images.
        version: Its version; 0: the newest.
        folder: Where the images are, by id; None: at their sources.
        step: Called with the number of items of each page.
        may_lose: Leave out items whose images are missing, instead of raising.

    Returns:
        How many items were described, and the ids of those left out.

    Raises:
        RequestFailed: A request failed, or images are missing.
    """
    scratch = f"{collection.name[:40]}-{uuid.uuid4().hex[:12]}"
    known: dict[str, bytes] = {}
    lost: set[str] = set()
    try:
        for _ in range(_MAX_PASSES):
            there: set[str] = set()
            is_changed = False
            for page in walk():
                there.update(item.id for item in page)
                new = [item for item in page if known.get(item.id) != _state(item)]
                known |= {item.id: _state(item) for item in new}
                lost |= _describe(client, scratch, collection, new, model, version, folder)
                if lost and not may_lose:
                    raise RequestFailed("FAILED_PRECONDITION", "PHOTOS_LOST", _lost_line(collection.name, sorted(lost)))
                is_changed |= bool(new)
                step(len(new))
            is_changed |= _follow_deletions(client, scratch, known, there, lost)
            if not is_changed:
                break
        if len(known) == len(lost):
            line = f"no photo of {collection.name} was found; give their folder as --photos, or add with --keep source"
            raise RequestFailed("FAILED_PRECONDITION", "NO_PHOTOS", line)
        client.replace_collection(collection.name, scratch)
    except BaseException:
        _drop_quietly(client, scratch)
        raise
    return len(known) - len(lost), sorted(lost)


def _lost_line(name: str, lost: Sequence[str]) -> str:
    shown = ", ".join(lost[:3])
    return (
        f"items of {name} would be lost, as their photos are missing: {shown} and maybe more; name the photos' folder "
        "with --photos, or leave such items out with --yes"
    )


def _describe(
    client: Client,
    scratch: str,
    collection: CollectionInfo,
    items: Sequence[StoredItem],
    model: str,
    version: int,
    folder: Path | None,
) -> set[str]:
    """Put items again; return the ids of those whose images are missing."""
    photos = [(item, _photo(item, folder)) for item in items]
    new = [_new_item(item, photo) for item, photo in photos if photo is not None]
    failures = client.put_items(scratch, new, model=model, version=version, fields=collection.fields) if new else ()
    failed = {item.id for item, failure in zip(new, failures, strict=True) if isinstance(failure, ItemFailure)}
    return failed | {item.id for item, photo in photos if photo is None}


def _follow_deletions(client: Client, scratch: str, known: dict[str, bytes], there: set[str], lost: set[str]) -> bool:
    """Remove the items that the old collection no longer has; return True if there were any."""
    gone = sorted(set(known) - there)
    for at in range(0, len(gone), _MAX_IDS):
        client.delete_items(scratch, gone[at : at + _MAX_IDS])
    for id_ in gone:
        del known[id_]
        lost.discard(id_)
    return bool(gone)


def _state(item: StoredItem) -> bytes:
    """Return a digest that changes if the item is put again with other content."""
    assert item.descriptor is not None  # asked for
    rest = repr((item.label, sorted(item.metadata.items()), item.source)).encode()
    return hashlib.blake2b(item.descriptor.tobytes() + item.thumbnail + rest, digest_size=16).digest()


def _photo(item: StoredItem, folder: Path | None) -> Photo | None:
    paths = [folder / item.id] if folder else []
    paths += [Path(item.source)] if item.source else []
    return next((path for path in paths if path.is_file()), item.thumbnail or None)


def _new_item(item: StoredItem, photo: Photo) -> NewItem:
    return NewItem(
        item.id, photo, label=item.label, metadata=item.metadata, source=item.source, thumbnail=item.thumbnail
    )


def _drop_quietly(client: Client, name: str) -> None:
    with contextlib.suppress(RequestFailed):  # it may not exist yet, or the server is gone
        client.drop_collection(name)
