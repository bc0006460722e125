"""Arguments and results of a client, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Crop:
    """An image of the network's input size: uint8 RGB [crop, crop, 3], with `get_model().preprocess.crop`."""

    pixels: NDArray[np.uint8]


Result = TypeVar("Result")
Photo = str | Path | bytes | NDArray[np.uint8] | Crop


# One value, any of a list, or from … to as a tuple (None: open).
Value = str | float | bool
Where = Mapping[str, Value | Sequence[Value] | tuple[float | None, float | None]]


class RequestFailed(Exception):
    """A request failed as a whole.

    Attributes:
        code: gRPC's status code by name.
        reason: A stable word, or "".
        message: One line: what failed, why, what to do.
        request_id: The request id in the server's log, or "".
    """

    def __init__(self, code: str, reason: str, message: str, request_id: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.request_id = request_id


@dataclass(frozen=True)
class ItemFailure:
    """Why one image has no answer: gRPC's code by name, a stable word, and one line."""

    code: str
    reason: str
    message: str


@dataclass(frozen=True)
class ScoredClass:
    """One class with its score (logit, SVM decision value, or threshold - novelty) and its probability."""

    label: str
    score: float
    probability: float


@dataclass(frozen=True)
class Neighbour:
    """A stored item near an image; `similarity` is the cosine of their descriptors, -1 to 1."""

    id: str
    label: str
    similarity: float
    metadata: Mapping[str, Value]


@dataclass(frozen=True)
class Neighbours:
    """Which stored items to look up: the `k` nearest that match, up to a distance, 1 - cosine."""

    collection: str
    k: int = 10
    where: Where = field(default_factory=dict)
    max_distance: float = 0.0


@dataclass(frozen=True)
class MapsWanted:
    """Which class maps to return: of `labels`, or else of the `top` best classes of each image.

    `is_exact`: as float32. Else the server sends a byte per place, and each contribution is off by at most 1/255 of the
    range of its map; the sum stays that of the scores.
    """

    labels: Sequence[str] = ()
    top: int = 1
    is_exact: bool = False


@dataclass(frozen=True)
class ClassMap:
    """What each place of an image adds to the score of a class. The sum of `values` and `offset` is the score.

    Attributes:
        label: The class.
        values: float32 [h, w], from the top left.
        offset: What no place adds, the bias.
        area: What the map covers: left, top, right and bottom, in pixels of the upright image.
    """

    label: str
    values: NDArray[np.float32]
    offset: float
    area: tuple[float, float, float, float]


@dataclass(frozen=True)
class Classification:
    """An image's best class, the other classes, and descriptor (float32 [length]) and neighbours if requested."""

    label: str
    score: float
    probability: float
    classes: tuple[ScoredClass, ...]
    descriptor: NDArray[np.float32] | None = None
    neighbours: tuple[Neighbour, ...] = ()
    # Distance from the training images, 0 to 2, and whether it is above the threshold. None: unknown.
    novelty: float | None = None
    is_novel: bool = False
    # Whether the model withholds its answer, and why: "unsure" or "novel", "" if it does not.
    abstained: bool = False
    abstain_reason: str = ""
    # Only if requested: in the order of the labels, or the best class first.
    class_maps: tuple[ClassMap, ...] = ()
    # What feedback names the answer by: the response, and the place in it.
    request_id: str = field(default="", compare=False)
    index: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Truth:
    """What a person found about one answer: the right class as `label`, or a `verdict`.

    Attributes:
        label: One of the model's classes.
        verdict: "right", "wrong" (the right class is not known), "no_class" (none of the model's) or "unknown".
        request_id: With `index`, names the answer.
        index: The place in the response.
        image_id: Names the answer instead, if classify() got `image_ids`.
        model: The model that answered. This and the rest is what a server needs that has forgotten the answer.
        version: Its version.
        answered: The class that it named.
        probability: Its probability; 0: unknown.
        photo: The image, for a server that stores photos with feedback.
    """

    label: str = ""
    verdict: str = ""
    request_id: str = ""
    index: int = 0
    image_id: str = ""
    model: str = ""
    version: int = 0
    answered: str = ""
    probability: float = 0.0
    photo: Photo | None = None


@dataclass(frozen=True)
class Judged:
    """A verdict that the server has counted, once. `outcome` is "right", "wrong" or "unknown".

    `is_repeated`: the server had it already. `is_photo_kept`: the server has stored the photo with its label.
    """

    outcome: str
    model: str
    version: int
    answered: str
    is_repeated: bool = False
    is_photo_kept: bool = False


@dataclass(frozen=True)
class ClassifyAnswer:
    """The model, and one result per image, in order. Images above `novelty_threshold` are novel (None: unknown).

    `max_error` is the share of wrong answers that `abstained` was decided for. None if the model never abstains.
    """

    model: str
    version: int
    fingerprint: str
    scorer: str
    results: tuple[Classification | ItemFailure, ...]
    novelty_threshold: float | None = None
    max_error: float | None = None

    def truth(self, place: int, label: str = "", verdict: str = "") -> Truth:
        """Return feedback about the answer to the image at `place`, for Client.feedback().

        Raises:
            ValueError: The image has no answer.
        """
        result = self.results[place]
        if isinstance(result, ItemFailure):
            raise ValueError(f"image {place} has no answer: {result.message}")
        return Truth(
            label, verdict, result.request_id, result.index, "", self.model, self.version, result.label,
            result.probability,
        )  # fmt: skip


@dataclass(frozen=True)
class DescribeAnswer:
    """The model, and one descriptor (float32 [length]) or failure per image, in order."""

    model: str
    version: int
    fingerprint: str
    results: tuple[NDArray[np.float32] | ItemFailure, ...]


@dataclass(frozen=True)
class PhotoAnswer(Generic[Result]):
    """One image of many, the model, and a Classification or a descriptor, or a failure.

    A Classification is novel above `novelty_threshold` (None: unknown). `max_error` is as in ClassifyAnswer.
    """

    photo: Photo
    model: str
    version: int
    fingerprint: str
    scorer: str
    result: Result | ItemFailure
    novelty_threshold: float | None = None
    max_error: float | None = None


@dataclass(frozen=True)
class LookupAnswer:
    """The model that described the images ("" for descriptors), and the neighbours of each, nearest first."""

    model: str
    version: int
    fingerprint: str
    results: tuple[tuple[Neighbour, ...] | ItemFailure, ...]


@dataclass(frozen=True)
class NewItem:
    """An item to store: an image, or its descriptor (float32 [length]).

    `source` and `thumbnail` (a JPEG) are stored unchanged, to show the item and to describe it again. `fingerprint` is
    that of the descriptor's model; the server rejects another model's.
    """

    id: str
    photo: Photo | None = None
    descriptor: NDArray[np.float32] | None = None
    label: str = ""
    metadata: Mapping[str, Value] = field(default_factory=dict)
    source: str = ""
    thumbnail: bytes = b""
    fingerprint: str = ""


@dataclass(frozen=True)
class StoredItem:
    """A stored item, with descriptor and thumbnail if requested."""

    id: str
    label: str
    metadata: Mapping[str, Value]
    source: str
    descriptor: NDArray[np.float32] | None
    thumbnail: bytes


@dataclass(frozen=True)
class CollectionInfo:
    """Properties and size of a collection; `index` is exact or hnsw, bytes are 0 if unknown."""

    name: str
    items: int
    model: str
    fingerprint: str
    dimension: int
    metric: str
    fields: Mapping[str, str]
    index: str
    memory_bytes: int
    disk_bytes: int
