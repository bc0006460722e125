"""A typed client of penult.v1: Client for plain code, AsyncClient for asyncio. Needs only the base install.

    with Client("127.0.0.1:50051") as client:
        answer = client.classify(["cat.jpg", "dog.png"], model="pets")
        for result in answer.results:
            print(result.label, result.probability)

A photo is a path, the bytes of a JPEG, PNG or WebP file, or uint8 RGB pixels [height, width, 3]; Crop(pixels) says that
they are cut to the model's size already and are not to be resized. A photo that cannot be used gives an ItemFailure in
its place; a request that fails as a whole raises RequestFailed.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from penult.v1 import penult_pb2 as pb
from penult.v1 import penult_pb2_grpc

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0
# Small enough to answer soon and to stay below the server's 64 MiB, large enough to fill its batches.
_CHUNK_IMAGES = 64
_CHUNK_BYTES = 16 << 20
_MESSAGE_BYTES = 64 << 20
_ENVELOPE_BYTES = 4096
_SCORERS = {None: pb.SCORER_UNSPECIFIED, "dense": pb.SCORER_DENSE, "svm": pb.SCORER_SVM}
_SCORER_NAMES = {number: name for name, number in _SCORERS.items() if name}


@dataclass(frozen=True)
class Crop:
    """A photo as the network looks at it: uint8 RGB [crop, crop, 3] (`get_model().preprocess.crop`), not resized."""

    pixels: NDArray[np.uint8]


Photo = str | Path | bytes | NDArray[np.uint8] | Crop


class RequestFailed(Exception):
    """A request has no answer. `code` is gRPC's, `reason` a stable word or "", `request_id` the server's log entry."""

    def __init__(self, code: str, reason: str, message: str, request_id: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.reason, self.message, self.request_id = code, reason, message, request_id


@dataclass(frozen=True)
class ItemFailure:
    """Why one photo has no answer: gRPC's code by name, a stable word, a line for people."""

    code: str
    reason: str
    message: str


@dataclass(frozen=True)
class ScoredClass:
    """One class with its score (logit or SVM decision value) and calibrated probability."""

    label: str
    score: float
    probability: float


@dataclass(frozen=True)
class Classification:
    """One photo's best class, the runners-up, and its descriptor (float32 [length]) if asked for."""

    label: str
    score: float
    probability: float
    classes: tuple[ScoredClass, ...]
    descriptor: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ClassifyAnswer:
    """What answered, and one result per photo, in order."""

    model: str
    version: int
    fingerprint: str
    scorer: str
    results: tuple[Classification | ItemFailure, ...]


@dataclass(frozen=True)
class DescribeAnswer:
    """What answered, and one descriptor (float32 [length]) or failure per photo, in order."""

    model: str
    version: int
    fingerprint: str
    results: tuple[NDArray[np.float32] | ItemFailure, ...]


class Client:
    """A connection to one server; close it, or use it in a `with` block."""

    def __init__(self, target: str = DEFAULT_TARGET, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Connect lazily to HOST:PORT; `timeout_s` is per request."""
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
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
    ) -> ClassifyAnswer:
        """Name photos; `scorer` is "dense", "svm", or None for the model's default. Raises RequestFailed."""
        work = _Work(images, pb.ModelSelector(name=model, version=version))
        for chunk in work.chunks():
            request = _classify_request(chunk, work.model, scorer, top_k, include_descriptor)
            work.take(self._call(self._stub.Classify, request))
        return work.classified()

    def describe(self, images: Sequence[Photo], *, model: str = "", version: int = 0) -> DescribeAnswer:
        """Return the descriptors of photos. Raises RequestFailed."""
        work = _Work(images, pb.ModelSelector(name=model, version=version))
        for chunk in work.chunks():
            work.take(self._call(self._stub.Describe, pb.DescribeRequest(model=work.model, images=chunk)))
        return work.described()

    def score(self, descriptors: NDArray[np.float32], *, model: str = "", version: int = 0) -> ClassifyAnswer:
        """Score descriptors, float32 [N, length], with the model's SVM. Raises RequestFailed."""
        response = self._call(self._stub.Score, _score_request(descriptors, model, version))
        return _scored(response)

    def get_model(self, model: str = "", version: int = 0) -> pb.Model:
        """Return what the server tells of a model. Raises RequestFailed."""
        request = pb.GetModelRequest(model=pb.ModelSelector(name=model, version=version))
        return self._call(self._stub.GetModel, request).model

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

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise _failure(error, self._target) from error


class AsyncClient:
    """Client for asyncio: the same methods, awaited; `async with` closes it."""

    def __init__(self, target: str = DEFAULT_TARGET, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Connect lazily to HOST:PORT; `timeout_s` is per request."""
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
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
    ) -> ClassifyAnswer:
        """Name photos, as Client.classify does."""
        work = _Work(images, pb.ModelSelector(name=model, version=version))
        for chunk in work.chunks():
            request = _classify_request(chunk, work.model, scorer, top_k, include_descriptor)
            work.take(await self._call(self._stub.Classify, request))
        return work.classified()

    async def describe(self, images: Sequence[Photo], *, model: str = "", version: int = 0) -> DescribeAnswer:
        """Return the descriptors of photos, as Client.describe does."""
        work = _Work(images, pb.ModelSelector(name=model, version=version))
        for chunk in work.chunks():
            work.take(await self._call(self._stub.Describe, pb.DescribeRequest(model=work.model, images=chunk)))
        return work.described()

    async def score(self, descriptors: NDArray[np.float32], *, model: str = "", version: int = 0) -> ClassifyAnswer:
        """Score descriptors, as Client.score does."""
        return _scored(await self._call(self._stub.Score, _score_request(descriptors, model, version)))

    async def get_model(self, model: str = "", version: int = 0) -> pb.Model:
        """Return what the server tells of a model."""
        request = pb.GetModelRequest(model=pb.ModelSelector(name=model, version=version))
        return (await self._call(self._stub.GetModel, request)).model

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

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise _failure(error, self._target) from error


_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
)


class _Work:
    """One call's photos: read in chunks, sent by the caller, answers put back in their places."""

    def __init__(self, images: Sequence[Photo], model: pb.ModelSelector) -> None:
        self.model = model
        self._images = images
        self._results: list[Any] = [None] * len(images)
        self._sent: list[int] = []
        self._last: Any = None

    def chunks(self) -> Iterator[list[pb.Image]]:
        """Yield messages of a bounded size; a photo that cannot be read here is a failure at once."""
        chunk: list[pb.Image] = []
        size_bytes = 0
        for place, photo in enumerate(self._images):
            image = _image(photo)
            if isinstance(image, ItemFailure):
                self._results[place] = image
                continue
            if chunk and (len(chunk) == _CHUNK_IMAGES or size_bytes + image.ByteSize() > _CHUNK_BYTES):
                yield chunk
                chunk, size_bytes = [], 0
                self._sent = []
            chunk.append(image)
            self._sent.append(place)
            size_bytes += image.ByteSize()
        if chunk:
            yield chunk

    def take(self, response: Any) -> None:
        """Take the answer to the last chunk; later chunks ask the same version, so that an answer never mixes two."""
        for place, result in zip(self._sent, response.results, strict=True):
            self._results[place] = result
        self._last = response
        self.model = pb.ModelSelector(name=response.model.name, version=response.model.version)

    def classified(self) -> ClassifyAnswer:
        results = tuple(r if isinstance(r, ItemFailure) else _classification(r) for r in self._results)
        return ClassifyAnswer(
            *self._identity(), _SCORER_NAMES.get(self._last.scorer, "") if self._last else "", results
        )

    def described(self) -> DescribeAnswer:
        results = tuple(r if isinstance(r, ItemFailure) else _description(r) for r in self._results)
        return DescribeAnswer(*self._identity(), results)

    def _identity(self) -> tuple[str, int, str]:
        return self.model.name, self.model.version, self._last.model.fingerprint if self._last else ""


def _image(photo: Photo) -> pb.Image | ItemFailure:
    """Return the photo as a message, or why no message can carry it."""
    image = _unbounded_image(photo)
    if isinstance(image, pb.Image) and image.ByteSize() > _MESSAGE_BYTES - _ENVELOPE_BYTES:
        return ItemFailure(
            "INVALID_ARGUMENT", "IMAGE_TOO_MANY_BYTES", "the photo is larger than a whole message may be"
        )
    return image


def _unbounded_image(photo: Photo) -> pb.Image | ItemFailure:
    if isinstance(photo, bytes):
        return pb.Image(encoded=photo)
    if isinstance(photo, Crop):
        return _raw_image(photo.pixels, is_crop=True)
    if isinstance(photo, np.ndarray):
        return _raw_image(photo, is_crop=False)
    try:
        return pb.Image(encoded=Path(photo).read_bytes())
    except OSError as error:
        return ItemFailure("NOT_FOUND", "FILE_UNREADABLE", f"{photo}: {error.strerror}")


def _raw_image(pixels: NDArray[np.uint8], is_crop: bool) -> pb.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 [height, width, 3]; these are {pixels.dtype} {list(pixels.shape)}")
    height, width, _ = pixels.shape
    return pb.Image(raw=pb.RawImage(height=height, width=width, rgb=pixels.tobytes(), is_crop=is_crop))


def _classify_request(
    chunk: list[pb.Image], model: pb.ModelSelector, scorer: str | None, top_k: int, include_descriptor: bool
) -> pb.ClassifyRequest:
    if scorer not in _SCORERS:
        raise ValueError(f"scorer {scorer!r} is not dense, svm or None")
    return pb.ClassifyRequest(
        model=model, images=chunk, scorer=_SCORERS[scorer], top_k=top_k, include_descriptor=include_descriptor
    )


def _score_request(descriptors: NDArray[np.float32], model: str, version: int) -> pb.ScoreRequest:
    rows = [pb.Descriptor(values=row.tolist()) for row in np.asarray(descriptors, dtype=np.float32)]
    return pb.ScoreRequest(model=pb.ModelSelector(name=model, version=version), descriptors=rows)


def _scored(response: pb.ScoreResponse) -> ClassifyAnswer:
    model, results = response.model, tuple(_classification(result) for result in response.results)
    return ClassifyAnswer(model.name, model.version, model.fingerprint, "svm", results)


def _classification(result: pb.ClassifyResult) -> Classification | ItemFailure:
    if result.WhichOneof("outcome") == "error":
        return _item_failure(result.error)
    found = result.classification
    return Classification(
        found.label,
        found.score,
        found.probability,
        tuple(ScoredClass(c.label, c.score, c.probability) for c in found.classes),
        np.array(found.descriptor.values, dtype=np.float32) if found.HasField("descriptor") else None,
    )


def _description(result: pb.DescribeResult) -> NDArray[np.float32] | ItemFailure:
    if result.WhichOneof("outcome") == "error":
        return _item_failure(result.error)
    return np.array(result.descriptor.values, dtype=np.float32)


def _item_failure(error: pb.ItemError) -> ItemFailure:
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return ItemFailure(names.get(error.code, str(error.code)), error.reason, error.message)


def _failure(error: Any, target: str) -> RequestFailed:
    trailing = dict(error.trailing_metadata() or ())
    if error.code() is grpc.StatusCode.UNAVAILABLE and "penult-reason" not in trailing:
        message = f"no server answers at {target}; start one with penult serve, or name another with --target"
        return RequestFailed("UNAVAILABLE", "", message)
    return RequestFailed(
        error.code().name,
        str(trailing.get("penult-reason", "")),
        str(error.details()),
        str(trailing.get("penult-request-id", "")),
    )
