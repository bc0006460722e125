"""What the exported model answers on one split."""

from dataclasses import dataclass

import numpy as np

from penult.bundle.scores import Floats


@dataclass(frozen=True)
class SplitOutputs:
    """The exported model's outputs on one split: logits [N, logits_length], descriptors [N, length], labels [N]."""

    logits: Floats
    descriptors: Floats
    labels: np.ndarray
