"""The client for plain code."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from penult.client.batch_calls import IN_FLIGHT, ask_many
from penult.client.channel import channel
from penult.client.channel_options import MAX_RETRIES
from penult.client.converters import classifying, describing, score_request, scored
from penult.client.credentials import NONE, Security
from penult.client.sync_collections import PlainLookup
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


class Client(PlainLookup):
    """A connection to one server; close it, or use it in a `with` block."""

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = MAX_RETRIES,
        security: Security = NONE,
    ) -> None:
        """Connect lazily to HOST:PORT, or to several in turn; `timeout_s` bounds a request with all its `retries`."""
        self._channel = channel(target, retries, security)
        self._stub = penult_pb2_grpc.PenultServiceStub(self._channel)
        self._target, self._timeout_s = target, timeout_s

    def classify(
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
        """Name photos; `scorer` is "dense", "svm", "neighbours", or None for the model's default.

        `neighbours` also looks them up; the scorer of that name votes with them. Raises RequestFailed.
        """
        selector = pb.ModelSelector(name=model, version=version)
        flow = classifying(images, selector, scorer, top_k, include_descriptor, neighbours)
        return self._drive(flow, self._stub.Classify)

    def describe(self, images: Sequence[Photo], *, model: str = "", version: int = 0) -> DescribeAnswer:
        """Return the descriptors of photos. Raises RequestFailed."""
        flow = describing(images, pb.ModelSelector(name=model, version=version))
        return self._drive(flow, self._stub.Describe)

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
    ) -> Iterator[PhotoAnswer[Classification]]:
        """Name the photos of a folder, or of a list, one by one in order, `in_flight` requests on their way at a time.

        `progress` draws a bar (needs tqdm). Raises RequestFailed, and OSError where the folder holds no photo.
        """

        def ask(batch: Sequence[Photo]) -> ClassifyAnswer:
            return self.classify(
                batch, model=model, version=version, scorer=scorer, top_k=top_k, include_descriptor=include_descriptor,
                neighbours=neighbours,
            )  # fmt: skip

        return ask_many(photos, ask, in_flight, progress)

    def describe_many(
        self,
        photos: str | Path | Sequence[Photo],
        *,
        model: str = "",
        version: int = 0,
        in_flight: int = IN_FLIGHT,
        progress: bool = False,
    ) -> Iterator[PhotoAnswer[NDArray[np.float32]]]:
        """Return the descriptors of the photos of a folder, or of a list, as classify_many() does."""

        def ask(batch: Sequence[Photo]) -> DescribeAnswer:
            return self.describe(batch, model=model, version=version)

        return ask_many(photos, ask, in_flight, progress)

    def score(self, descriptors: NDArray[np.float32], *, model: str = "", version: int = 0) -> ClassifyAnswer:
        """Score descriptors, float32 [N, length], with the model's SVM. Raises RequestFailed."""
        response = self._call(self._stub.Score, score_request(descriptors, model, version))
        return scored(response)

    def get_model(self, model: str = "", version: int = 0) -> pb.Model:
        """Return what the server tells of a model. Raises RequestFailed."""
        request = pb.GetModelRequest(model=pb.ModelSelector(name=model, version=version))
        response: pb.GetModelResponse = self._call(self._stub.GetModel, request)
        return response.model

    def list_models(self) -> list[pb.Model]:
        """Return what the server tells of every model. Raises RequestFailed."""
        return list(self._call(self._stub.ListModels, pb.ListModelsRequest()).models)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()
