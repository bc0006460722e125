"""The synchronous client."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from penult.client.batch_calls import IN_FLIGHT, ask_many
from penult.client.channel import channel
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


class Client:
    """A connection to one server; close it, or use it in a `with` block."""

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = MAX_RETRIES,
        security: Security = NONE,
    ) -> None:
        """Connect when the first request is sent.

        Args:
            target: HOST:PORT of a server; several ("a:1,b:2" or a sequence) share the requests.
            timeout_s: Limit of a request with all its retries, in seconds.
            retries: How often a request is repeated, 0 to 4.
            security: TLS and token of the connection.

        Raises:
            TargetError: `target` is no address.
            SecurityError: A file of `security` is missing, or a token would leave this machine unencrypted.
        """
        self._channel = channel(target, retries, security)
        self._stub = penult_pb2_grpc.PenultServiceStub(self._channel)
        self._target = target
        self._timeout_s = timeout_s

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
        max_error: float | None = None,
        image_ids: Sequence[str] = (),
        maps: MapsWanted | None = None,
    ) -> ClassifyAnswer:
        """Classify images.

        Args:
            images: Paths, encoded bytes, pixels, or crops.
            model: Name; "": the only model served.
            version: Version; 0: the newest.
            scorer: "dense", "svm", "neighbours", "novelty" (one class), or None for the model's default.
            top_k: Classes per image.
            include_descriptor: Return descriptors too.
            neighbours: Which stored items to look up too; the scorer "neighbours" votes with them.
            max_error: Share of wrong answers of a certified operating point; None: the model's default one.
            image_ids: Your names of the images, which feedback() may use; one each, "" for none.
            maps: Which class maps to return too; None for none.

        Returns:
            One result per image, in order.

        Raises:
            RequestFailed: The request failed as a whole.
        """
        selector = pb.ModelSelector(name=model, version=version)
        flow = classify_flow(
            images, selector, scorer, top_k, include_descriptor, neighbours, max_error, image_ids, maps
        )
        return self._drive(flow, self._stub.Classify)

    def feedback(self, truths: Sequence[Truth]) -> tuple[Judged | ItemFailure, ...]:
        """Send what people found about answers, at most 1000 at a time; `classify(…).truth(place, label)` makes one.

        Args:
            truths: The verdicts. The last one about an answer counts, however often it is sent.

        Returns:
            Per truth, what was counted, or why it was not. The server has written what it counted, if it has a file.

        Raises:
            RequestFailed: None was counted.
            ValueError: A truth has neither label nor verdict, or both.
        """
        response = self._call(self._stub.Feedback, feedback_request(truths))
        return judged(response)

    def describe(self, images: Sequence[Photo], *, model: str = "", version: int = 0) -> DescribeAnswer:
        """Return the descriptors of images, float32 [length] each. Raises RequestFailed."""
        flow = describe_flow(images, pb.ModelSelector(name=model, version=version))
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
        max_error: float | None = None,
        maps: MapsWanted | None = None,
        in_flight: int = IN_FLIGHT,
        progress: bool = False,
    ) -> Iterator[PhotoAnswer[Classification]]:
        """Classify the images of a folder, or of a sequence, in batches.

        Args:
            photos: A folder, or images as in classify().
            model: As in classify().
            version: As in classify().
            scorer: As in classify().
            top_k: As in classify().
            include_descriptor: As in classify().
            neighbours: As in classify().
            max_error: As in classify().
            maps: As in classify().
            in_flight: Requests in flight at a time.
            progress: Draw a progress bar on standard error (needs tqdm).

        Yields:
            One answer per image, in order.

        Raises:
            RequestFailed: A request failed as a whole.
            OSError: The folder has no images.
        """

        def ask(batch: Sequence[Photo]) -> ClassifyAnswer:
            return self.classify(
                batch, model=model, version=version, scorer=scorer, top_k=top_k, include_descriptor=include_descriptor,
                neighbours=neighbours, max_error=max_error, maps=maps,
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
        """Yield the descriptors of the images of a folder, or of a sequence, as classify_many() does."""

        def ask(batch: Sequence[Photo]) -> DescribeAnswer:
            return self.describe(batch, model=model, version=version)

        return ask_many(photos, ask, in_flight, progress)

    def score(
        self, descriptors: NDArray[np.float32], *, model: str = "", version: int = 0, max_error: float | None = None
    ) -> ClassifyAnswer:
        """Score descriptors, float32 [N, length], with the model's SVM, or by novelty. Raises RequestFailed."""
        response = self._call(self._stub.Score, score_request(descriptors, model, version, max_error))
        return score_answer(response)

    def get_model(self, model: str = "", version: int = 0) -> pb.Model:
        """Return the server's description of a model. Raises RequestFailed."""
        request = pb.GetModelRequest(model=pb.ModelSelector(name=model, version=version))
        response: pb.GetModelResponse = self._call(self._stub.GetModel, request)
        return response.model

    def list_models(self) -> list[pb.Model]:
        """Return the server's description of every model. Raises RequestFailed."""
        return list(self._call(self._stub.ListModels, pb.ListModelsRequest()).models)

    def lookup(
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
        """Find the stored items nearest to images or descriptors.

        Args:
            query: Images, or descriptors, float32 [N, length].
            collection: Where to search.
            k: Neighbours per query.
            where: Conditions that all must hold, such as {"label": "cat", "price": (10, None), "maker": ["a", "b"]}: a
                value, a range, any of a list.
            max_distance: Maximum distance, 1 - cosine; 0: any.
            model: Model that describes images; "": the collection's own.
            version: Its version; 0: the newest.

        Returns:
            The neighbours of each query, nearest first, in order.

        Raises:
            RequestFailed: The request failed as a whole.
        """
        wanted = Neighbours(collection, k, where, max_distance)
        flow = lookup_flow(query, wanted, pb.ModelSelector(name=model, version=version))
        return self._drive(flow, self._stub.Lookup)

    def put_items(
        self,
        collection: str,
        items: Sequence[NewItem],
        *,
        model: str = "",
        version: int = 0,
        fields: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[ItemFailure | None, ...]:
        """Store items; items with the same id are replaced.

        Args:
            collection: Where to store; created if it does not exist.
            items: The items; sent in several messages if they are many.
            model: Model that describes images; "": the only model served.
            version: Its version; 0: the newest.
            fields: Types of the metadata of a new collection, such as {"price": "number"}.

        Returns:
            Per item, None if it was stored, else why it was not.

        Raises:
            RequestFailed: A request failed as a whole.
        """
        flow = put_flow(collection, items, pb.ModelSelector(name=model, version=version), fields)
        return self._drive(flow, self._stub.PutItems)

    def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove at most 1000 items; return how many existed. Raises RequestFailed."""
        request = pb.DeleteItemsRequest(collection=collection, ids=ids)
        return int(self._call(self._stub.DeleteItems, request).deleted)

    def get_items(
        self,
        collection: str,
        ids: Sequence[str] = (),
        *,
        after: str = "",
        limit: int = 100,
        descriptors: bool = False,
        thumbnails: bool = False,
    ) -> list[StoredItem]:
        """Return stored items by id; without ids, the next `limit` after the id `after`. Raises RequestFailed."""
        request = get_request(collection, ids, after, limit, descriptors, thumbnails)
        return stored_items(self._call(self._stub.GetItems, request))

    def list_collections(self) -> list[CollectionInfo]:
        """Return all collections, by name. Raises RequestFailed."""
        return collection_infos(self._call(self._stub.ListCollections, pb.ListCollectionsRequest()))

    def drop_collection(self, collection: str) -> None:
        """Remove a collection with all its items. Raises RequestFailed."""
        self._call(self._stub.DropCollection, pb.DropCollectionRequest(collection=collection))

    def replace_collection(self, collection: str, by: str) -> None:
        """Rename collection `by` to `collection`, which is dropped, in one step. Raises RequestFailed."""
        self._call(self._stub.ReplaceCollection, pb.ReplaceCollectionRequest(collection=collection, by=by))

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

    def _drive(self, flow: Generator[Any, Any, Answer], method: Callable[..., Any]) -> Answer:
        """Send the requests that a call yields, one after the other; return its answer."""
        act: Callable[[], Any] = partial(next, flow)
        while True:
            try:
                request = act()
            except StopIteration as end:
                answer: Answer = end.value
                return answer
            try:
                act = partial(flow.send, self._call(method, request))
            except RequestFailed as error:
                act = partial(flow.throw, error)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise failure(error, self._target) from error
