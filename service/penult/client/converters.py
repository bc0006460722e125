"""Images to messages and messages to answers, for both clients, without input or output."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from penult.client.class_map_converters import class_map, map_query
from penult.client.types import (
    Classification,
    ClassifyAnswer,
    Crop,
    DescribeAnswer,
    ItemFailure,
    MapsWanted,
    Neighbour,
    Neighbours,
    Photo,
    RequestFailed,
    ScoredClass,
    Value,
)
from penult.v1 import penult_pb2 as pb

MESSAGE_BYTES = 64 << 20
# Small enough to be answered soon and to stay below the server's 64 MiB, large enough to fill its batches.
_CHUNK_IMAGES = 64
_CHUNK_BYTES = 16 << 20
_ENVELOPE_BYTES = 4096
# How often a call starts again because the version that answered its first images was replaced.
_RESTARTS = 3
_SCORERS = {
    None: pb.SCORER_UNSPECIFIED,
    "dense": pb.SCORER_DENSE,
    "svm": pb.SCORER_SVM,
    "neighbours": pb.SCORER_NEIGHBOURS,
    "novelty": pb.SCORER_NOVELTY,
}
_SCORER_NAMES = {number: name for name, number in _SCORERS.items() if name}
_ABSTAIN_REASONS = {pb.ABSTAIN_REASON_UNSURE: "unsure", pb.ABSTAIN_REASON_NOVEL: "novel"}

Message = TypeVar("Message", pb.Image, pb.Item)
ClassifyFlow = Generator[pb.ClassifyRequest, pb.ClassifyResponse, ClassifyAnswer]
DescribeFlow = Generator[pb.DescribeRequest, pb.DescribeResponse, DescribeAnswer]


def classify_flow(
    images: Sequence[Photo | pb.Image | ItemFailure],
    model: pb.ModelSelector,
    scorer: str | None,
    top_k: int,
    include_descriptor: bool,
    neighbours: Neighbours | None = None,
    max_error: float | None = None,
    image_ids: Sequence[str] = (),
    maps: MapsWanted | None = None,
) -> ClassifyFlow:
    """Yield the requests of a call, take their responses, and return the answer; RequestFailed is thrown in."""
    if image_ids and len(image_ids) != len(images):
        raise ValueError(f"{len(images)} images need as many image_ids, not {len(image_ids)}")
    restarts = _RESTARTS
    while True:
        work = _Call(images, model)
        try:
            for chunk in work.chunks():
                request = _classify_request(chunk, work.model, scorer, top_k, include_descriptor)
                request.image_ids.extend([image_ids[place] for place in work.sent] if image_ids else ())
                if neighbours:
                    request.neighbours.CopyFrom(neighbour_query(neighbours))
                if max_error is not None:
                    request.max_error = max_error
                if maps:
                    request.include_map.CopyFrom(map_query(maps))
                work.take((yield request))
        except RequestFailed as error:
            restarts -= 1
            if not (restarts and _is_replaced(error, work, model)):
                raise
        else:
            return work.classified()


def describe_flow(images: Sequence[Photo | pb.Image | ItemFailure], model: pb.ModelSelector) -> DescribeFlow:
    """Yield the requests of a call, take their responses, and return the answer; as classify_flow()."""
    restarts = _RESTARTS
    while True:
        work = _Call(images, model)
        try:
            for chunk in work.chunks():
                work.take((yield pb.DescribeRequest(model=work.model, images=chunk)))
        except RequestFailed as error:
            restarts -= 1
            if not (restarts and _is_replaced(error, work, model)):
                raise
        else:
            return work.described()


def _is_replaced(error: RequestFailed, work: "_Call", wanted: pb.ModelSelector) -> bool:
    """Return True if the version that answered first is gone, and the caller had not asked for it."""
    return error.reason == "VERSION_UNKNOWN" and not wanted.version and work.has_begun


class _Call:
    """The images of one call, in chunks that the caller sends, and their answers in order."""

    def __init__(self, images: Sequence[Photo | pb.Image | ItemFailure], model: pb.ModelSelector) -> None:
        self.model = model
        self._images = images
        self._results: list[Any] = [None] * len(images)
        # The places of the last chunk, and what feedback names each answer by.
        self.sent: list[int] = []
        self._keys: dict[int, tuple[str, int]] = {}
        self._last: Any = None

    @property
    def has_begun(self) -> bool:
        return self._last is not None

    def chunks(self) -> Iterator[list[pb.Image]]:
        """Yield messages of a limited size; an image that cannot be read becomes a failure."""
        for places, chunk in chunked((to_image(photo) for photo in self._images), self._results):
            self.sent = places
            yield chunk

    def take(self, response: Any) -> None:
        """Add the answer to the last chunk; later chunks use the same version, so that an answer never mixes two."""
        for place, result in zip(self.sent, response.results, strict=True):
            self._results[place] = result
        if key := getattr(response, "request_id", ""):
            self._keys |= {place: (key, index) for index, place in enumerate(self.sent)}
        self._last = response
        self.model = pb.ModelSelector(name=response.model.name, version=response.model.version)

    def classified(self) -> ClassifyAnswer:
        results = tuple(
            r if isinstance(r, ItemFailure) else _classification(r, *self._keys.get(place, ("", 0)))
            for place, r in enumerate(self._results)
        )
        scorer = _SCORER_NAMES.get(self._last.scorer, "") if self._last else ""
        threshold = self._last.novelty_threshold if self._last and self._last.HasField("novelty_threshold") else None
        max_error = _max_error(self._last) if self._last else None
        return ClassifyAnswer(*self._identity(), scorer, results, threshold, max_error)

    def described(self) -> DescribeAnswer:
        results = tuple(r if isinstance(r, ItemFailure) else _description(r) for r in self._results)
        return DescribeAnswer(*self._identity(), results)

    def _identity(self) -> tuple[str, int, str]:
        return self.model.name, self.model.version, self._last.model.fingerprint if self._last else ""


def chunked(messages: Iterable[Message | ItemFailure], results: list[Any]) -> Iterator[tuple[list[int], list[Message]]]:
    """Yield messages with their places, as many at a time as one request takes; a failure goes into the results."""
    places: list[int] = []
    chunk: list[Message] = []
    size_bytes = 0
    for place, message in enumerate(messages):
        if isinstance(message, ItemFailure):
            results[place] = message
            continue
        if chunk and (len(chunk) == _CHUNK_IMAGES or size_bytes + message.ByteSize() > _CHUNK_BYTES):
            yield places, chunk
            places, chunk, size_bytes = [], [], 0
        places.append(place)
        chunk.append(message)
        size_bytes += message.ByteSize()
    if chunk:
        yield places, chunk


def to_image(photo: Photo | pb.Image | ItemFailure) -> pb.Image | ItemFailure:
    """Return the image as a message, or why that is impossible."""
    image = _unbounded_image(photo)
    if isinstance(image, pb.Image) and image.ByteSize() > MESSAGE_BYTES - _ENVELOPE_BYTES:
        return ItemFailure("INVALID_ARGUMENT", "IMAGE_TOO_MANY_BYTES", "the image is larger than a message may be")
    return image


def _unbounded_image(photo: Photo | pb.Image | ItemFailure) -> pb.Image | ItemFailure:
    if isinstance(photo, (pb.Image, ItemFailure)):
        return photo
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
        raise ValueError(f"scorer {scorer!r} is not dense, svm, neighbours, novelty or None")
    return pb.ClassifyRequest(
        model=model, images=chunk, scorer=_SCORERS[scorer], top_k=top_k, include_descriptor=include_descriptor
    )


def _max_error(response: pb.ClassifyResponse | pb.ScoreResponse) -> float | None:
    """Return the share of wrong answers that a response was decided for, as it was before single precision."""
    return float(f"{response.max_error:.6g}") if response.HasField("max_error") else None


def score_request(
    descriptors: NDArray[np.float32], model: str, version: int, max_error: float | None = None
) -> pb.ScoreRequest:
    """Return the request that scores descriptors, float32 [N, length]."""
    rows = [pb.Descriptor(values=row.tolist()) for row in np.asarray(descriptors, dtype=np.float32)]
    return pb.ScoreRequest(model=pb.ModelSelector(name=model, version=version), descriptors=rows, max_error=max_error)


def score_answer(response: pb.ScoreResponse) -> ClassifyAnswer:
    """Return the answer that a response to score_request() holds."""
    model, results = response.model, tuple(_classification(result) for result in response.results)
    # Only models of one class give the novelty of descriptors.
    is_novelty = any(result.classification.HasField("novelty") for result in response.results)
    scorer = "novelty" if is_novelty else "svm"
    return ClassifyAnswer(model.name, model.version, model.fingerprint, scorer, results, max_error=_max_error(response))


def _classification(result: pb.ClassifyResult, request_id: str = "", index: int = 0) -> Classification | ItemFailure:
    if result.WhichOneof("outcome") == "error":
        return item_failure(result.error)
    found = result.classification
    return Classification(
        found.label,
        found.score,
        found.probability,
        tuple(ScoredClass(c.label, c.score, c.probability) for c in found.classes),
        np.array(found.descriptor_vector.values, dtype=np.float32) if found.HasField("descriptor_vector") else None,
        tuple(neighbour(each) for each in found.neighbours),
        found.novelty if found.HasField("novelty") else None,
        found.is_novel,
        found.abstained,
        _ABSTAIN_REASONS.get(found.abstain_reason, ""),
        tuple(class_map(each) for each in found.class_maps),
        request_id,
        index,
    )


def neighbour_query(wanted: Neighbours) -> pb.NeighbourQuery:
    """Return which items to look up, as a message."""
    return pb.NeighbourQuery(
        collection=wanted.collection,
        k=wanted.k,
        filter=[condition(name, what) for name, what in wanted.where.items()],
        max_distance=wanted.max_distance,
    )


def condition(name: str, what: Any) -> pb.Condition:
    """Return a condition on a field as a message; a tuple is a range, a list means any."""
    if isinstance(what, tuple):
        low, high = what
        return pb.Condition(field=name, low=low, high=high)
    return pb.Condition(field=name, values=[value(each) for each in (what if isinstance(what, list) else [what])])


def value(plain: Value) -> pb.Value:
    """Return a value of metadata as a message."""
    if isinstance(plain, bool):
        return pb.Value(truth=plain)
    return pb.Value(text=plain) if isinstance(plain, str) else pb.Value(number=plain)


def neighbour(found: pb.Neighbour) -> Neighbour:
    """Return a neighbour."""
    return Neighbour(found.id, found.label, found.similarity, metadata(found.metadata))


def metadata(found: Mapping[str, pb.Value]) -> dict[str, Value]:
    """Return metadata in plain values."""
    return {name: getattr(each, each.WhichOneof("kind") or "text") for name, each in found.items()}


def _description(result: pb.DescribeResult) -> NDArray[np.float32] | ItemFailure:
    if result.WhichOneof("outcome") == "error":
        return item_failure(result.error)
    return np.array(result.descriptor_vector.values, dtype=np.float32)


def item_failure(error: pb.ItemError) -> ItemFailure:
    """Return why an item has no answer."""
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return ItemFailure(names.get(error.code, str(error.code)), error.reason, error.message)
