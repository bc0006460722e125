"""A collection described anew by another model: into a new collection, which then takes the old one's name."""

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from penult.client.sync_client import Client
from penult.client.types import CollectionInfo, ItemFailure, NewItem, Photo, RequestFailed, StoredItem

# Each pass follows what came during the one before, and is shorter; whoever changes faster than that is cut off.
_MAX_PASSES = 10
_MAX_IDS = 1000


def reindex(
    client: Client, told: CollectionInfo, walk: Callable[[], Iterator[Sequence[StoredItem]]], model: str, version: int,
    folder: Path | None, step: Callable[[int], None], may_lose: bool = False,
) -> tuple[int, list[str]]:  # fmt: skip
    """Describe all items with a model, then switch; return how many, and the ids whose photos are not to be had.

    Those are lost with the old collection: unless it `may_lose` them, the first page that has any ends it.

    `walk` begins to yield all items, with descriptors, anew. What others change meanwhile is followed, pass after pass,
    until one finds nothing new. Until the switch the old collection answers; where anything fails before, it stays.
    Raises RequestFailed.
    """
    scratch = f"{told.name[:40]}-{uuid.uuid4().hex[:12]}"
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
                lost |= _describe(client, scratch, told, new, model, version, folder)
                if lost and not may_lose:
                    raise RequestFailed("FAILED_PRECONDITION", "PHOTOS_LOST", _lost_line(told.name, sorted(lost)))
                is_changed |= bool(new)
                step(len(new))
            is_changed |= _follow_deletions(client, scratch, known, there, lost)
            if not is_changed:
                break
        if len(known) == len(lost):
            raise RequestFailed(
                "FAILED_PRECONDITION", "NO_PHOTOS",
                f"no photo of {told.name} is to be had; name their folder with --photos, or add with --keep source",
            )  # fmt: skip
        client.replace_collection(told.name, scratch)
    except BaseException:
        _drop_quietly(client, scratch)
        raise
    return len(known) - len(lost), sorted(lost)


def _lost_line(name: str, lost: Sequence[str]) -> str:
    shown = ", ".join(lost[:3])
    return (
        f"items of {name} would be lost, for their photos are not to be had: {shown} and maybe more; name the photos' "
        "folder with --photos, or leave such items out with --yes"
    )


def _describe(
    client: Client, scratch: str, told: CollectionInfo, items: Sequence[StoredItem], model: str, version: int,
    folder: Path | None,
) -> set[str]:  # fmt: skip
    """Put items anew, and return the ids of those whose photos are not to be had."""
    photos = [(item, _photo(item, folder)) for item in items]
    new = [_anew(item, photo) for item, photo in photos if photo is not None]
    failures = client.put_items(scratch, new, model=model, version=version, fields=told.fields) if new else ()
    failed = {item.id for item, failure in zip(new, failures, strict=True) if isinstance(failure, ItemFailure)}
    return failed | {item.id for item, photo in photos if photo is None}


def _follow_deletions(client: Client, scratch: str, known: dict[str, bytes], there: set[str], lost: set[str]) -> bool:
    """Remove what is no longer in the old collection, and tell whether there was any."""
    gone = sorted(set(known) - there)
    for at in range(0, len(gone), _MAX_IDS):
        client.delete_items(scratch, gone[at : at + _MAX_IDS])
    for id_ in gone:
        del known[id_]
        lost.discard(id_)
    return bool(gone)


def _state(item: StoredItem) -> bytes:
    """Return what differs where somebody has put an item again."""
    assert item.descriptor is not None  # asked for
    told = repr((item.label, sorted(item.metadata.items()), item.source)).encode()
    return hashlib.blake2b(item.descriptor.tobytes() + item.thumbnail + told, digest_size=16).digest()


def _photo(item: StoredItem, folder: Path | None) -> Photo | None:
    paths = [folder / item.id] if folder else []
    paths += [Path(item.source)] if item.source else []
    return next((path for path in paths if path.is_file()), item.thumbnail or None)


def _anew(item: StoredItem, photo: Photo) -> NewItem:
    return NewItem(
        item.id, photo, label=item.label, metadata=item.metadata, source=item.source, thumbnail=item.thumbnail
    )


def _drop_quietly(client: Client, name: str) -> None:
    with contextlib.suppress(RequestFailed):  # it was not made yet, or there is no server any more
        client.drop_collection(name)
