"""What goes into a client and comes out of it, in plain values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Crop:
    """A photo as the network looks at it: uint8 RGB [crop, crop, 3] (`get_model().preprocess.crop`), not resized."""

    pixels: NDArray[np.uint8]


Result = TypeVar("Result")
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


@dataclass(frozen=True)
class PhotoAnswer(Generic[Result]):
    """One photo of many: what answered, and a Classification or a descriptor, or why there is none."""

    photo: Photo
    model: str
    version: int
    fingerprint: str
    scorer: str
    result: Result | ItemFailure
