"""A collection described anew by another model: into a new collection, which then takes the old one's name."""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from penult.client.plain import Client
from penult.client.types import CollectionInfo, ItemFailure, NewItem, Photo, RequestFailed, StoredItem


def reindex(
    client: Client, told: CollectionInfo, pages: Iterator[Sequence[StoredItem]], model: str, version: int,
    folder: Path | None, step: Callable[[int], None],
) -> tuple[int, list[str]]:  # fmt: skip
    """Describe all items with a model, then switch; return how many, and the ids whose photos are not to be had.

    Until the switch the old collection answers; where anything fails before, it stays. Raises RequestFailed.
    """
    scratch = f"{told.name[:40]}-{uuid.uuid4().hex[:12]}"
    count, lost = 0, []
    try:
        for page in pages:
            items = [(item, _photo(item, folder)) for item in page]
            new = [_anew(item, photo) for item, photo in items if photo is not None]
            failures = client.put_items(scratch, new, model=model, version=version, fields=told.fields) if new else ()
            failed = [item.id for item, failure in zip(new, failures, strict=True) if isinstance(failure, ItemFailure)]
            lost += [item.id for item, photo in items if photo is None] + failed
            count += len(new) - len(failed)
            step(len(page))
        if not count:
            raise RequestFailed(
                "FAILED_PRECONDITION", "NO_PHOTOS",
                f"no photo of {told.name} is to be had; name their folder with --photos, or add with --keep source",
            )  # fmt: skip
        client.replace_collection(told.name, scratch)
    except BaseException:
        _drop_quietly(client, scratch)
        raise
    return count, lost


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
