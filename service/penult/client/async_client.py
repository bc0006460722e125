"""The client for asyncio."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from penult.client.async_collections import AsyncLookup
from penult.client.batch_calls import IN_FLIGHT, ask_many_aio
from penult.client.channel import aio_channel
from penult.client.channel_options import MAX_RETRIES
from penult.client.converters import classifying, describing, score_request, scored
from penult.client.credentials import NONE, Security
from penult.client.types import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Classification,
    ClassifyAnswer,
    DescribeAnswer,
    Neighbours,
    Photo,
    PhotoAnswer,
)
from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

Answer = TypeVar("Answer")


class AsyncClient(AsyncLookup):
    """Client for asyncio: the same methods, awaited; `async with` closes it."""

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = MAX_RETRIES,
        security: Security = NONE,
    ) -> None:
        """Connect lazily to HOST:PORT, or to several in turn; `timeout_s` bounds a request with all its `retries`."""
        self._channel = aio_channel(target, retries, security)
        self._stub: Any = penult_pb2_grpc.PenultServiceStub(self._channel)
        self._target, self._timeout_s = target, timeout_s

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
    ) -> ClassifyAnswer:
        """Name photos, as Client.classify does."""
        selector = pb.ModelSelector(name=model, version=version)
        flow = classifying(images, selector, scorer, top_k, include_descriptor, neighbours)
        return await self._drive(flow, self._stub.Classify)

    async def describe(self, images: Sequence[Photo], *, model: str = "", version: int = 0) -> DescribeAnswer:
        """Return the descriptors of photos, as Client.describe does."""
        flow = describing(images, pb.ModelSelector(name=model, version=version))
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
        in_flight: int = IN_FLIGHT,
        progress: bool = False,
    ) -> AsyncIterator[PhotoAnswer[Classification]]:
        """Name the photos of a folder, or of a list, as Client.classify_many does; for `async for`."""

        async def ask(batch: Sequence[Photo]) -> ClassifyAnswer:
            return await self.classify(
                batch, model=model, version=version, scorer=scorer, top_k=top_k, include_descriptor=include_descriptor,
                neighbours=neighbours,
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
        """Return the descriptors of the photos of a folder, or of a list, as Client.describe_many does."""

        async def ask(batch: Sequence[Photo]) -> DescribeAnswer:
            return await self.describe(batch, model=model, version=version)

        return ask_many_aio(photos, ask, in_flight, progress)

    async def score(self, descriptors: NDArray[np.float32], *, model: str = "", version: int = 0) -> ClassifyAnswer:
        """Score descriptors, as Client.score does."""
        return scored(await self._call(self._stub.Score, score_request(descriptors, model, version)))

    async def get_model(self, model: str = "", version: int = 0) -> pb.Model:
        """Return what the server tells of a model."""
        request = pb.GetModelRequest(model=pb.ModelSelector(name=model, version=version))
        response: pb.GetModelResponse = await self._call(self._stub.GetModel, request)
        return response.model

    async def list_models(self) -> list[pb.Model]:
        """Return what the server tells of every model."""
        return list((await self._call(self._stub.ListModels, pb.ListModelsRequest())).models)

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
