"""Choose what makes the maps of a report: an exact scorer, or else hiding places of photos."""

from collections.abc import Mapping

from penult.bundle.class_map import LinearHead, by_views
from penult.bundle.manifest import DENSE, DENSE_HEAD_NAME, Manifest
from penult.bundle.map_support import MapSupport, why_none
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.export.evaluation.class_maps import ExactMaps, FeaturesOf, OcclusionMaps, PhotoMaps
from penult.export.evaluation.svm import FittedSvm
from penult.export.onnx.runtime import ExportedModel


def photo_maps(manifest: Manifest, exported: ExportedModel, svm: FittedSvm, files: Mapping[str, bytes]) -> PhotoMaps:
    """Return what makes maps of photos: exact ones of the default scorer, else of the other one, else occlusion.

    Args:
        manifest: The manifest, with its default scorer and its class maps.
        exported: The network.
        svm: The SVM of the bundle.
        files: The files of the bundle; the dense head is read from them.
    """
    default, support = manifest.default_scorer, manifest.class_maps
    why_not = why_none(support, default)
    for scorer in sorted(support.scorers if support else (), key=lambda name: name != default):
        assert support is not None  # it has a scorer
        head = _head(scorer, manifest, support, svm, files)
        if head:
            return ExactMaps(scorer, manifest.classes, head, _features(exported, support.views), why_not)

    def scores_of(crops: Pixels) -> Floats:
        logits, descriptors = exported.run(crops)
        return logits if default == DENSE else svm.scores(descriptors)

    return OcclusionMaps(default, why_not, manifest.classes, scores_of)


def _head(
    scorer: str, manifest: Manifest, support: MapSupport, svm: FittedSvm, files: Mapping[str, bytes]
) -> LinearHead | None:
    if scorer != DENSE:
        return svm.head
    return LinearHead.from_bytes(files[DENSE_HEAD_NAME], len(manifest.classes), support.shape[0])


def _features(exported: ExportedModel, views: int) -> FeaturesOf:
    def features_of(crops: Pixels) -> tuple[Floats, Floats]:
        _, descriptors, features = exported.run_features(crops)
        return by_views(features, views).swapaxes(0, 1), descriptors

    return features_of
