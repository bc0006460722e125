"""Measure by how much scores fall if a place of a photo is hidden.

Networks without exact class maps get such a map in the report.
"""

from collections.abc import Callable

import numpy as np

from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats

# Places across and down a photo. Each is hidden with half a place around it, so that neighbours overlap.
PLACES = 6
RUNS = PLACES**2 + 1


def falls(scores_of: Callable[[Pixels], Floats], crop: Pixels) -> Floats:
    """Return by how much the score of every class falls if a place is hidden, float32 [classes, PLACES, PLACES].

    A hidden place has the mean colour of the photo. The falls do not add up to the score.

    Args:
        scores_of: Maps crops uint8 [n, size, size, 3] to scores [n, classes]. It is called for RUNS crops at once.
        crop: The network's input, uint8 [size, size, 3].
    """
    scores = scores_of(np.stack([crop, *hidden(crop)]))
    return (scores[:1] - scores[1:]).T.reshape(-1, PLACES, PLACES).astype(np.float32)


def hidden(crop: Pixels) -> list[Pixels]:
    """Return a crop with each of its places hidden in turn, row by row."""
    size = len(crop)
    mean = crop.mean(axis=(0, 1)).round().astype(np.uint8)
    edges = [(max(0.0, at - 0.5) / PLACES, min(at + 1.5, PLACES) / PLACES) for at in range(PLACES)]
    spans = [slice(int(low * size), max(int(low * size) + 1, round(high * size))) for low, high in edges]
    found = []
    for rows in spans:
        for columns in spans:
            changed = crop.copy()
            changed[rows, columns] = mean
            found.append(changed)
    return found
