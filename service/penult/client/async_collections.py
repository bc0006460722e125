"""What AsyncClient, as Client does, offers about collections."""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from penult.client.channel_options import failure
from penult.client.collection_converters import get_request, got, listed, looking_up, putting
from penult.client.types import (
    CollectionInfo,
    ItemFailure,
    LookupAnswer,
    Neighbours,
    NewItem,
    Photo,
    RequestFailed,
    StoredItem,
    Where,
)
from penult.v1 import penult_pb2 as pb

Answer = TypeVar("Answer")


class AsyncLookup:
    """The methods, and how a request is sent; the client says through what, to whom, and how long it waits."""

    _stub: Any
    _target: str | Sequence[str]
    _timeout_s: float

    async def lookup(
        self,
        query: Sequence[Photo] | NDArray[np.float32],
        collection: str,
        *,
        k: int = 10,
        where: Where = MappingProxyType({}),
        max_distance: float = 0.0,
        model: str = "",
        version: int = 0,
    ) -> LookupAnswer:
        """Find the stored items nearest to photos, or to descriptors, float32 [N, length].

        `where` {"label": "cat", "price": (10, None), "maker": ["a", "b"]}: a value, a range, any of a list; all must
        hold. Raises RequestFailed.
        """
        wanted = Neighbours(collection, k, where, max_distance)
        flow = looking_up(query, wanted, pb.ModelSelector(name=model, version=version))
        return await self._drive(flow, self._stub.Lookup)

    async def put_items(
        self,
        collection: str,
        items: Sequence[NewItem],
        *,
        model: str = "",
        version: int = 0,
        fields: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[ItemFailure | None, ...]:
        """Store items, message by message; return why an item was not, None where it was. Raises RequestFailed.

        A collection that is not there is made, with metadata `fields` such as {"price": "number"}.
        """
        flow = putting(collection, items, pb.ModelSelector(name=model, version=version), fields)
        return await self._drive(flow, self._stub.PutItems)

    async def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove up to 1000 items, and return how many were there. Raises RequestFailed."""
        request = pb.DeleteItemsRequest(collection=collection, ids=ids)
        return int((await self._call(self._stub.DeleteItems, request)).deleted)

    async def get_items(
        self,
        collection: str,
        ids: Sequence[str] = (),
        *,
        after: str = "",
        limit: int = 100,
        descriptors: bool = False,
        thumbnails: bool = False,
    ) -> list[StoredItem]:
        """Return stored items by id; without ids, those that follow `after`, none at the end. Raises RequestFailed."""
        request = get_request(collection, ids, after, limit, descriptors, thumbnails)
        return got(await self._call(self._stub.GetItems, request))

    async def list_collections(self) -> list[CollectionInfo]:
        """Return what collections there are, by name. Raises RequestFailed."""
        return listed(await self._call(self._stub.ListCollections, pb.ListCollectionsRequest()))

    async def drop_collection(self, collection: str) -> None:
        """Remove a collection with all that it holds. Raises RequestFailed."""
        await self._call(self._stub.DropCollection, pb.DropCollectionRequest(collection=collection))

    async def replace_collection(self, collection: str, by: str) -> None:
        """Give collection `by` the name of another, which is dropped, in one step. Raises RequestFailed."""
        await self._call(self._stub.ReplaceCollection, pb.ReplaceCollectionRequest(collection=collection, by=by))

    async def _drive(self, flow: Generator[Any, Any, Answer], method: Callable[..., Any]) -> Answer:
        """Send what a call yields, one request after the other, and return its answer."""
        act: Callable[[], Any] = partial(next, flow)
        while True:
            try:
                request = act()
            except StopIteration as end:
                answer: Answer = end.value
                return answer
            try:
                act = partial(flow.send, await self._call(method, request))
            except RequestFailed as error:
                act = partial(flow.throw, error)

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise failure(error, self._target) from error
