"""baseline.npz: what descriptors and answers were like when the model was made, for later ones to be held against.

How novel a photo is, is how far its descriptor lies from the nearest of some training photos' (Sun et al., "Out-of-
Distribution Detection with Deep Nearest Neighbors", ICML 2022), as 1 - cosine: the distance that lookup speaks of, too.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import BundleError
from penult.bundle.manifest import Manifest
from penult.bundle.npz import read_npz
from penult.bundle.scores import Floats

BASELINE_NAME = "baseline.npz"
_MOST_REFERENCES, _MOST_BYTES = 100_000, 128 << 20


@dataclass(frozen=True)
class Baseline:
    """What validation photos showed.

    `references`: unit descriptors of training photos, float32 [n, descriptor_length]. `threshold`: the novelty above
    which a photo counts as novel; `novel_share` of the validation photos lay above it, and `distance` is their mean
    novelty. `class_share`: how often the default scorer named each class, float32 [classes]. `confidence`: by scorer,
    the mean probability of the best class.
    """

    references: Floats
    threshold: float
    novel_share: float
    distance: float
    class_share: Floats
    confidence: Mapping[str, float]

    def novelty(self, descriptors: Floats) -> Floats:
        """Return 1 - cosine to the nearest reference, float32 [N], of descriptors float32 [N, descriptor_length]."""
        lengths = np.sqrt(np.einsum("ij,ij->i", descriptors, descriptors))
        nearest: NDArray[np.float32] = (descriptors @ self.references.T).max(axis=1)
        found: Floats = 1 - nearest / np.maximum(lengths, np.float32(1e-12))
        return np.maximum(found, np.float32(0))

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            references=self.references,
            numbers=np.array([self.threshold, self.novel_share, self.distance], dtype=np.float64),
            class_share=self.class_share,
            scorers=np.array(list(self.confidence), dtype=np.str_),
            confidence=np.array(list(self.confidence.values()), dtype=np.float64),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, manifest: Manifest) -> "Baseline":
        """Read the file's bytes; raise BundleError where they do not belong to the manifest."""
        try:
            arrays = read_npz(data, _MOST_BYTES)
            threshold, novel_share, distance = (float(number) for number in arrays["numbers"])
            confidence = dict(zip(arrays["scorers"].tolist(), arrays["confidence"].tolist(), strict=True))
            found = cls(
                np.ascontiguousarray(arrays["references"]), threshold, novel_share, distance,
                arrays["class_share"], confidence,
            )  # fmt: skip
            _check(found, manifest)
        except Exception as error:  # the file is input: a name may lack, a kind be another
            raise BundleError("BASELINE_INVALID", f"{BASELINE_NAME} cannot be right; restore the bundle") from error
        return found


def _check(found: Baseline, manifest: Manifest) -> None:
    """Raise ValueError for what would fail, or mislead, when it is used."""
    references, shares = found.references, found.class_share
    is_right = (
        references.dtype == shares.dtype == np.float32
        and references.ndim == 2
        and 1 <= len(references) <= _MOST_REFERENCES
        and references.shape[1] == manifest.descriptor_length
        and bool(np.isfinite(references).all() and np.abs(np.linalg.norm(references, axis=1) - 1).max() < 1e-3)
        and shares.shape == (len(manifest.classes),)
        and bool((shares >= 0).all() and (shares <= 1).all())
        and 0 < found.threshold <= 2
        and 0 <= found.novel_share <= 1
        and 0 <= found.distance <= 2
        and all(name in manifest.scorers for name in found.confidence)
        and all(0 <= value <= 1 for value in found.confidence.values())
        and math.isfinite(found.threshold)
    )
    if not is_right:
        raise ValueError("baseline")
