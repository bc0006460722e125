"""Collections from one store to another, such as from a folder to PostgreSQL, going on where it was cut off."""

from collections.abc import Callable
from dataclasses import replace

from penult.lookup.checks import check_fingerprint
from penult.lookup.errors import CollectionExists, CollectionUnknown
from penult.lookup.types import Collection, CollectionSpec, Item, Store

_PAGE = 500


def copy_collection(source: Store, target: Store, name: str, step: Callable[[int], None]) -> int:
    """Copy a collection's items that the other store does not have yet, and return how many those were.

    Walks in order of the ids. An item that exists with the same descriptor is not changed. `step` is called for every
    item. Raises CollectionUnknown, StoreUnavailable, and CollectionExists if the target's is of another kind.
    """
    origin = source.open(name)
    copy = _made(target, origin.spec)
    after, copied = "", 0
    while page := origin.scan(after, _PAGE):
        there = {item.id: item for item in copy.get([item.id for item in page])}
        new = [item for item in page if not _is_same(there.get(item.id), item)]
        if new:
            copy.upsert(new)
        copied += len(new)
        step(len(page))
        after = page[-1].id
    return copied


def _made(target: Store, spec: CollectionSpec) -> Collection:
    try:
        there = target.open(spec.name)
    except CollectionUnknown:
        return target.create(spec)
    check_fingerprint(there.spec, spec.fingerprint)
    if replace(there.spec, model=spec.model) != spec:
        raise CollectionExists("COLLECTION_EXISTS", f"the other store's {spec.name} has other fields; drop it first")
    return there


def _is_same(there: Item | None, item: Item) -> bool:
    if there is None or there.vector.tobytes() != item.vector.tobytes():
        return False
    return replace(there, vector=item.vector, metadata=dict(there.metadata)) == replace(
        item, metadata=dict(item.metadata)
    )
