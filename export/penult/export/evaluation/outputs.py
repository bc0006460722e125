"""The outputs of the exported model on one split."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import Floats


@dataclass(frozen=True)
class SplitOutputs:
    """Logits [N, logits_length], descriptors [N, length] and labels [N] of one split."""

    logits: Floats
    descriptors: Floats
    labels: np.ndarray


def unit_rows(rows: Floats) -> NDArray[np.float64]:
    """Scale descriptors [N, length] to length 1, in double precision."""
    exact = rows.astype(np.float64)
    unit: NDArray[np.float64] = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    return unit
