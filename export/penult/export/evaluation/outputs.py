"""The outputs of the exported model on one split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.scores import Floats
from penult.export.data.loader import Batch
from penult.export.data.thumbnails import SIDE, Grey, thumbnails
from penult.export.onnx.runtime import ExportedModel


@dataclass(frozen=True)
class SplitOutputs:
    """Logits [N, logits_length], descriptors [N, length] and labels [N] of one split.

    `thumbnails`, uint8 [N, SIDE, SIDE], show near-copies across splits; None if the photos were not at hand.
    """

    logits: Floats
    descriptors: Floats
    labels: np.ndarray
    thumbnails: Grey | None = None


def run_split(exported: ExportedModel, batches: Iterable[Batch]) -> SplitOutputs:
    """Run the exported model on every batch of a split; keep thumbnails of the photos, unless its crops are small."""
    small: list[Grey] = []

    def kept() -> Iterator[Batch]:
        for pixels, labels in batches:
            if pixels.shape[1] >= SIDE:
                small.append(thumbnails(pixels))
            yield pixels, labels

    return SplitOutputs(*exported.run_all(kept()), np.concatenate(small) if small else None)


def unit_rows(rows: Floats) -> NDArray[np.float64]:
    """Scale descriptors [N, length] to length 1, in double precision."""
    exact = rows.astype(np.float64)
    unit: NDArray[np.float64] = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    return unit
