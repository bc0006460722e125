"""The data of a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.evaluation.class_maps import PhotoMaps
from penult.export.evaluation.copies_across import Across
from penult.export.evaluation.diagnosis import Diagnosis
from penult.export.training.history import History

if TYPE_CHECKING:  # `penult svm` writes its report without PyTorch
    from penult.export.networks.architectures import Architecture
    from penult.export.networks.network import Weights


@dataclass(frozen=True)
class TrainingSummary:
    """The training of the network.

    Attributes:
        initial: The state dict of the PenultNet before training.
        final: The state dict after it.
        rates: The initial learning rate of each stage that was trained: "stage 1" to "stage 5", "dense", "head".
    """

    architecture: "Architecture"
    history: History
    diagnosis: Diagnosis
    initial: "Weights"
    final: "Weights"
    rates: Mapping[str, float]
    dropout: float


@dataclass(frozen=True)
class Validation:
    """Scores [N, classes] by scorer and labels [N] of the validation photos, in the order of `splits.val`."""

    scores: Mapping[str, Floats]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ReportData:
    """The contents of a report. Scores, labels and descriptors are of the test photos, in the order of `splits.test`.

    Attributes:
        scores: [N, classes] by scorer.
        labels: [N].
        descriptors: [N, length].
        learning: None if only the SVM is new.
        crops: Returns photos as uint8 [n, size, size, 3]; None if the report must not show photos.
        near_copies: Test and validation photos with near-copies in other splits.
        maps: Makes maps of test photos; None for none.
    """

    name: str
    manifest: Manifest
    splits: Splits
    metrics: dict[str, Any]
    scores: Mapping[str, Floats]
    labels: NDArray[np.int64]
    descriptors: Floats
    settings: TrainSettings | None = None
    learning: TrainingSummary | None = None
    validation: Validation | None = None
    crops: Callable[[Sequence[Photo]], Pixels] | None = None
    near_copies: Sequence[Across] = ()
    maps: PhotoMaps | None = None
