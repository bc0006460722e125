"""All that a report is made from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Photo, Splits
from penult.export.evaluation.diagnosis import Verdict
from penult.export.training.history import History

if TYPE_CHECKING:  # `penult svm` draws its report without PyTorch
    from penult.export.networks.architectures import Architecture
    from penult.export.networks.network import Weights


@dataclass(frozen=True)
class TrainingSummary:
    """What only a run knows that trained the network.

    `given` and `final` are state dicts of a PenultNet. `rates` holds the learning rate that each stage began with
    ("stage 1" to "stage 5", "dense", "head"); a stage that is not in it was frozen.
    """

    architecture: "Architecture"
    history: History
    verdict: Verdict
    given: "Weights"
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
    """What a report shows. Everything but `validation` is of the test photos, in the order of `splits.test`.

    `scores` holds [N, classes] by scorer (there may be only one), `labels` [N], `descriptors` [N, length].
    `learning` is None where only a new SVM was fitted. `crops` gives some photos as uint8 [n, size, size, 3]; it is
    None where no photo may be shown.
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
