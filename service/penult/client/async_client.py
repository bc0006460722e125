"""The asyncio client."""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from penult.client.batch_calls import IN_FLIGHT, ask_many_aio
from penult.client.channel import aio_channel
from penult.client.channel_options import MAX_RETRIES, failure
from penult.client.collection_converters import collection_infos, get_request, lookup_flow, put_flow, stored_items
from penult.client.converters import classify_flow, describe_flow, score_answer, score_request
from penult.client.credentials import NONE, Security
from penult.client.feedback_converters import feedback_request, judged
from penult.client.types import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Classification,
    ClassifyAnswer,
    CollectionInfo,
    DescribeAnswer,
    ItemFailure,
    Judged,
    LookupAnswer,
    MapsWanted,
    Neighbours,
    NewItem,
    Photo,
    PhotoAnswer,
    RequestFailed,
    StoredItem,
    Truth,
    Where,
)
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

Answer = TypeVar("Answer")


class AsyncClient:
    """Client for asyncio, with the same methods; `async with` closes it."""

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = MAX_RETRIES,
        security: Security = NONE,
    ) -> None:
        """Connect when the first request is sent, as Client does."""
        self._channel = aio_channel(target, retries, security)
        self._stub: Any = penult_pb2_grpc.PenultServiceStub(self._channel)
        self._target = target
        self._timeout_s = timeout_s

    async def classify(
        self,
        images: Sequence[Photo],
        *,
        model: str = "",
        version: int = 0,
        scorer: str | None = None,
        top_k: int = 5,
        include_descriptor: bool = False,
        neighbours: Neighbours | None = None,
        max_error: float | None = None,
        image_ids: Sequence[str] = (),
        maps: MapsWanted | None = None,
    ) -> ClassifyAnswer:
        """Classify images, as Client.classify does."""
        selector = pb.ModelSelector(name=model, version=version)
        flow = classify_flow(
            images, selector, scorer, top_k, include_descriptor, neighbours, max_error, image_ids, maps
        )
        return await self._drive(flow, self._stub.Classify)

    async def feedback(self, truths: Sequence[Truth]) -> tuple[Judged | ItemFailure, ...]:
        """Send what people found about answers, as Client.feedback does."""
        response = await self._call(self._stub.Feedback, feedback_request(truths))
        return judged(response)

    async def describe(self, images: Sequence[Photo], *, model: str = "", version: int = 0) -> DescribeAnswer:
        """Return the descriptors of images, as Client.describe does."""
        flow = describe_flow(images, pb.ModelSelector(name=model, version=version))
        return await self._drive(flow, self._stub.Describe)

    def classify_many(
        self,
        photos: str | Path | Sequence[Photo],
        *,
        model: str = "",
        version: int = 0,
        scorer: str | None = None,
        top_k: int = 5,
        include_descriptor: bool = False,
        neighbours: Neighbours | None = None,
        max_error: float | None = None,
        maps: MapsWanted | None = None,
        in_flight: int = IN_FLIGHT,
        progress: bool = False,
    ) -> AsyncIterator[PhotoAnswer[Classification]]:
        """Yield as Client.classify_many does, for `async for`."""

        async def ask(batch: Sequence[Photo]) -> ClassifyAnswer:
            return await self.classify(
                batch, model=model, version=version, scorer=scorer, top_k=top_k, include_descriptor=include_descriptor,
                neighbours=neighbours, max_error=max_error, maps=maps,
            )  # fmt: skip

        return ask_many_aio(photos, ask, in_flight, progress)

    def describe_many(
        self,
        photos: str | Path | Sequence[Photo],
        *,
        model: str = "",
        version: int = 0,
        in_flight: int = IN_FLIGHT,
        progress: bool = False,
    ) -> AsyncIterator[PhotoAnswer[NDArray[np.float32]]]:
        """Yield as Client.describe_many does, for `async for`."""

        async def ask(batch: Sequence[Photo]) -> DescribeAnswer:
            return await self.describe(batch, model=model, version=version)

        return ask_many_aio(photos, ask, in_flight, progress)

    async def score(
        self, descriptors: NDArray[np.float32], *, model: str = "", version: int = 0, max_error: float | None = None
    ) -> ClassifyAnswer:
        """Score descriptors, as Client.score does."""
        return score_answer(await self._call(self._stub.Score, score_request(descriptors, model, version, max_error)))

    async def get_model(self, model: str = "", version: int = 0) -> pb.Model:
        """Return the server's description of a model."""
        request = pb.GetModelRequest(model=pb.ModelSelector(name=model, version=version))
        response: pb.GetModelResponse = await self._call(self._stub.GetModel, request)
        return response.model

    async def list_models(self) -> list[pb.Model]:
        """Return the server's description of every model."""
        return list((await self._call(self._stub.ListModels, pb.ListModelsRequest())).models)

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
        """Find the nearest stored items, as Client.lookup does."""
        wanted = Neighbours(collection, k, where, max_distance)
        flow = lookup_flow(query, wanted, pb.ModelSelector(name=model, version=version))
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
        """Store items, as Client.put_items does."""
        flow = put_flow(collection, items, pb.ModelSelector(name=model, version=version), fields)
        return await self._drive(flow, self._stub.PutItems)

    async def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove items, as Client.delete_items does."""
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
        """Return stored items, as Client.get_items does."""
        request = get_request(collection, ids, after, limit, descriptors, thumbnails)
        return stored_items(await self._call(self._stub.GetItems, request))

    async def list_collections(self) -> list[CollectionInfo]:
        """Return all collections, as Client.list_collections does."""
        return collection_infos(await self._call(self._stub.ListCollections, pb.ListCollectionsRequest()))

    async def drop_collection(self, collection: str) -> None:
        """Remove a collection, as Client.drop_collection does."""
        await self._call(self._stub.DropCollection, pb.DropCollectionRequest(collection=collection))

    async def replace_collection(self, collection: str, by: str) -> None:
        """Rename a collection, as Client.replace_collection does."""
        await self._call(self._stub.ReplaceCollection, pb.ReplaceCollectionRequest(collection=collection, by=by))

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def _drive(self, flow: Generator[Any, Any, Answer], method: Callable[..., Any]) -> Answer:
        """Send the requests that a call yields, one after the other; return its answer."""
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
