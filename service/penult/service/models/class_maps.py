"""Load what class maps are computed with, and check on the golden photos that maps add up to scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.bundle.class_map import LinearHead, by_views, largest_error
from penult.bundle.errors import BundleError
from penult.bundle.manifest import DENSE, FP16, SVM, Manifest
from penult.bundle.map_support import tolerance, why_none
from penult.bundle.preprocess import Pixels
from penult.bundle.reader import Bundle
from penult.bundle.scores import Floats
from penult.service.errors import LacksScorer
from penult.service.models.svm.scorer import Score, load_linear

RunFeatures = Callable[[Sequence[Pixels]], tuple[Floats, Floats, Floats]]


@dataclass(frozen=True)
class ClassMapper:
    """The linear heads of the scorers that have exact class maps, and the number of views of a photo."""

    heads: Mapping[str, LinearHead]
    views: int

    def rows(self, features: Floats) -> Floats:
        """Return a feature map [views x N, channels, h, w] as [views, N, channels, h, w]."""
        return by_views(features, self.views)

    def best(self, scorer: str, logits: Floats, descriptor: Floats, count: int) -> NDArray[np.intp]:
        """Return the columns of the `count` best classes of one photo, by its logits and descriptor [length]."""
        scores = logits if scorer == DENSE else self.heads[scorer].scores(descriptor)
        return np.argsort(-scores, kind="stable")[:count]


def load(
    bundle: Bundle, run: RunFeatures, svm: Score | None, allow_skew: bool, device_tolerance: float | None
) -> ClassMapper | None:
    """Return what maps are computed with; None if no scorer has exact maps.

    Args:
        bundle: The bundle.
        run: Runs golden photos on the device.
        svm: The SVM, if requests can choose it.
        allow_skew: As in load_scorer().
        device_tolerance: By how much sums may differ from scores on a device; None on CPUs.

    Raises:
        BundleError: The maps of a golden photo do not add up to its scores.
    """
    manifest, support = bundle.manifest, bundle.manifest.class_maps
    if support is None or not support.scorers:
        return None
    heads: dict[str, LinearHead] = {}
    if DENSE in support.scorers and bundle.dense_head is not None:
        heads[DENSE] = bundle.dense_head
    if SVM in support.scorers and svm is not None and bundle.svm is not None:
        head = load_linear(bundle.svm, manifest.descriptor_length, len(manifest.classes), allow_skew)
        if head is None:
            raise BundleError(
                "CLASS_MAPS", "the manifest promises class maps of an SVM that is not linear; fit it again"
            )
        heads[SVM] = head
    try:
        logits, descriptors, features = run(list(bundle.goldens.crops))
    except Exception as error:  # onnxruntime has a dozen of its own
        raise BundleError("MODEL_FAILED", "the model cannot return its feature map for golden photos") from error
    if features.shape != (support.views * len(logits), *support.shape):
        raise BundleError(
            "CLASS_MAPS",
            f"the feature map of a golden photo is {features.shape[1:]}, and the manifest says {support.shape}; "
            "restore the bundle",
        )
    limit = device_tolerance or tolerance(manifest.precision == FP16)
    for scorer, head in heads.items():
        scores = logits if scorer == DENSE or svm is None else svm(descriptors)
        off = largest_error(head, features, descriptors, scores, support.views)
        if not off <= limit:
            raise BundleError(
                "CLASS_MAPS",
                f"class maps of {scorer} differ from its scores by {off:.1e} of the largest on golden photos; at most "
                f"{limit:.0e} is allowed; restore the bundle",
            )
    return ClassMapper(heads, support.views)


def check_has_maps(name: str, version: int, manifest: Manifest, mapper: ClassMapper | None, scorer: str) -> ClassMapper:
    """Return the mapper of a model if it has exact maps for a scorer; raise LacksScorer."""
    if mapper is None or scorer not in mapper.heads:
        why = why_none(manifest.class_maps, scorer) or "its SVM is not in use"
        raise LacksScorer("CLASS_MAPS_MISSING", f"{name} version {version} has no exact class maps for {scorer}: {why}")
    return mapper
