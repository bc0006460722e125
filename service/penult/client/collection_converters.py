"""Requests and answers about collections, for both clients, without input or output."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.client.converters import (
    chunked,
    item_failure,
    metadata,
    neighbour,
    neighbour_query,
    to_image,
    value,
)
from penult.client.types import (
    CollectionInfo,
    ItemFailure,
    LookupAnswer,
    Neighbour,
    Neighbours,
    NewItem,
    Photo,
    StoredItem,
)
from penult.v1 import penult_pb2 as pb

_TYPES = {
    "string": pb.FIELD_TYPE_STRING,
    "number": pb.FIELD_TYPE_NUMBER,
    "boolean": pb.FIELD_TYPE_BOOLEAN,
}
_TYPE_NAMES = {number: name for name, number in _TYPES.items()}
_MAX_DESCRIPTORS = 256

LookupFlow = Generator[pb.LookupRequest, pb.LookupResponse, LookupAnswer]
PutFlow = Generator[pb.PutItemsRequest, pb.PutItemsResponse, tuple[ItemFailure | None, ...]]


def lookup_flow(
    query: Sequence[Photo] | NDArray[np.float32], wanted: Neighbours, model: pb.ModelSelector
) -> LookupFlow:
    """Yield the requests of a lookup, take their responses, and return the answer."""
    results: list[tuple[Neighbour, ...] | ItemFailure | None] = [None] * len(query)
    last = pb.ModelVersion()
    message = neighbour_query(wanted)
    is_descriptors = isinstance(query, np.ndarray) and query.ndim == 2
    for places, chunk in _descriptor_chunks(query) if is_descriptors else chunked(map(to_image, query), results):
        what: dict[str, Any] = {"descriptors": chunk} if is_descriptors else {"images": chunk}
        response = yield pb.LookupRequest(model=model, query=message, **what)
        last = response.model
        for place, result in zip(places, response.results, strict=True):
            is_error = result.WhichOneof("outcome") == "error"
            found = tuple(neighbour(each) for each in result.neighbours.neighbours)
            results[place] = item_failure(result.error) if is_error else found
    done = tuple(result for result in results if result is not None)
    return LookupAnswer(last.name, last.version, last.fingerprint, done)


def put_flow(collection: str, items: Sequence[NewItem], model: pb.ModelSelector, fields: Mapping[str, str]) -> PutFlow:
    """Yield the requests that store items, take their responses, and return what failed, in place."""
    unknown = sorted(set(fields.values()) - set(_TYPES))
    if unknown:
        raise ValueError(f"a field is a string, number or boolean, not {unknown[0]!r}")
    types = {name: _TYPES[kind] for name, kind in fields.items()}
    failures: list[ItemFailure | None] = [None] * len(items)
    for places, chunk in chunked((_item(item) for item in items), failures):
        response = yield pb.PutItemsRequest(collection=collection, model=model, items=chunk, fields=types)
        for place, result in zip(places, response.results, strict=True):
            failures[place] = item_failure(result.error) if result.HasField("error") else None
    return tuple(failures)


def get_request(
    collection: str, ids: Sequence[str], after: str, limit: int, descriptors: bool, thumbnails: bool
) -> pb.GetItemsRequest:
    """Return the request for stored items."""
    return pb.GetItemsRequest(
        collection=collection,
        ids=ids,
        after=after,
        limit=limit,
        include_descriptors=descriptors,
        include_thumbnails=thumbnails,
    )


def stored_items(response: pb.GetItemsResponse) -> list[StoredItem]:
    """Return stored items."""
    return [
        StoredItem(
            each.id,
            each.label,
            metadata(each.metadata),
            each.source,
            np.array(each.descriptor_vector.values, dtype=np.float32) if each.HasField("descriptor_vector") else None,
            each.thumbnail,
        )
        for each in response.items
    ]


def collection_infos(response: pb.ListCollectionsResponse) -> list[CollectionInfo]:
    """Return all collections."""
    return [
        CollectionInfo(
            each.name, each.items, each.model, each.fingerprint, each.dimension, each.metric,
            {name: _TYPE_NAMES[kind] for name, kind in each.fields.items()}, each.index, each.memory_bytes,
            each.disk_bytes,
        )
        for each in response.collections
    ]  # fmt: skip


def _item(item: NewItem) -> pb.Item | ItemFailure:
    if (item.photo is None) == (item.descriptor is None):
        raise ValueError(f"item {item.id!r} needs a photo or a descriptor, and not both")
    message = pb.Item(id=item.id, label=item.label, source=item.source, thumbnail=item.thumbnail)
    for name, plain in item.metadata.items():
        message.metadata[name].CopyFrom(value(plain))
    if item.descriptor is not None:
        message.descriptor_vector.values.extend(np.asarray(item.descriptor, dtype=np.float32).tolist())
        message.descriptor_vector.fingerprint = item.fingerprint
        return message
    assert item.photo is not None  # one of the two is there
    image = to_image(item.photo)
    if isinstance(image, ItemFailure):
        return image
    message.image.CopyFrom(image)
    return message


def _descriptor_chunks(rows: Any) -> Any:
    for at in range(0, len(rows), _MAX_DESCRIPTORS):
        part = rows[at : at + _MAX_DESCRIPTORS]
        chunk = [pb.Descriptor(values=row.tolist()) for row in np.asarray(part, dtype=np.float32)]
        yield range(at, at + len(part)), chunk
