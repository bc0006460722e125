"""Compare the exported model with the trained network on real photos before publishing."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from penult.bundle.goldens import TOLERANCE
from penult.bundle.scores import largest_difference
from penult.export.data.loader import Batch
from penult.export.errors import ParityError
from penult.export.networks.network import Normalise, PenultNet
from penult.export.onnx.runtime import ExportedModel


@dataclass(frozen=True)
class Parity:
    """The largest differences, relative to the largest value of the network's output."""

    photos: int
    logits_difference: float
    descriptor_difference: float


def check_parity(net: PenultNet, normalise: Normalise, exported: ExportedModel, batches: Iterable[Batch]) -> Parity:
    """Compare network and exported model; raise ParityError if a label differs or a value by more than 1e-4."""
    differences, wrong, photos = [], 0, 0
    net.eval()
    for pixels, _ in batches:
        with torch.inference_mode():
            expected = [output.numpy() for output in net(normalise(torch.from_numpy(pixels)))]
        actual = exported.run(pixels)
        differences.append([largest_difference(a, e) for a, e in zip(actual, expected, strict=True)])
        wrong += int((actual[0].argmax(1) != expected[0].argmax(1)).sum())
        photos += len(pixels)
    logits, descriptor = np.max(differences, axis=0).tolist()
    if wrong or max(logits, descriptor) > TOLERANCE:
        raise ParityError(
            "PARITY",
            f"the exported model differs from the trained network on {photos} photos: {wrong} labels differ, values "
            f"by {max(logits, descriptor):.1e} of the largest (at most {TOLERANCE:.0e}); nothing is published",
        )
    return Parity(photos, logits, descriptor)
