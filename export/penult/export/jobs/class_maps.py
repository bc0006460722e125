"""Prove the class maps of a bundle before it is published: their sums are the scores of its golden photos."""

from collections.abc import Mapping
from dataclasses import replace

from penult.bundle.class_map import LinearHead, largest_error
from penult.bundle.manifest import DENSE, DENSE_HEAD_NAME, FP16, NOVELTY, SCORERS, SVM, Manifest
from penult.bundle.map_support import OLDER, MapSupport, tolerance
from penult.bundle.preprocess import Pixels
from penult.console import say
from penult.export.evaluation.svm import FittedSvm
from penult.export.onnx.runtime import ExportedModel

_NO_SUM = "its scores are no sum over places"


def proved(
    manifest: Manifest, exported: ExportedModel, crops: Pixels, svm: FittedSvm | None
) -> tuple[Manifest, dict[str, bytes]]:
    """Return a manifest with the scorers whose maps add up, and the files that the maps need.

    Args:
        manifest: The manifest, with its scorers. If it has class maps, they are those of an earlier version with the
            same network.
        exported: The network.
        crops: The golden photos, uint8 [N, crop, crop, 3].
        svm: The SVM of the bundle; None if it has none.
    """
    scorers = manifest.stated_scorers or SCORERS
    known = manifest.class_maps
    if not exported.has_features:
        support = _found(exported, manifest, ())[0] if known is None else known
        reasons = {name: support.reasons.get(name, _NO_SUM if name == NOVELTY else OLDER) for name in scorers}
        _say({}, reasons)
        return replace(manifest, class_maps=MapSupport((), reasons)), {}
    logits, descriptors, features = exported.run_features(crops)
    shape = tuple(int(size) for size in features.shape[1:])
    support, head = (known, exported.dense_head) if known else _found(exported, manifest, shape)
    if known and head is None and DENSE in scorers:  # the earlier version had other classes
        head = _found(exported, manifest, shape)[1]
    reasons = {name: support.reasons.get(name, _NO_SUM) for name in scorers}
    heads = {DENSE: head} if head and DENSE in scorers else {}
    if svm is not None and SVM in scorers and manifest.descriptor_length == shape[0]:
        if svm.head is None:
            reasons[SVM] = "its kernel is RBF; penult svm --kernel linear fits one that has maps"
        elif known or SVM in support.scorers:
            heads[SVM] = svm.head
    for scorer, each in list(heads.items()):
        scores = logits if scorer == DENSE or svm is None else svm.scores(descriptors)
        off = largest_error(each, features, descriptors, scores, support.views)
        if off <= tolerance(manifest.precision == FP16):
            del reasons[scorer]
            continue
        del heads[scorer]
        if reasons[scorer] == _NO_SUM:
            reasons[scorer] = f"on golden photos the maps differ from the scores by {off:.1e} of the largest score"
    _say(heads, reasons)
    files = {DENSE_HEAD_NAME: heads[DENSE].to_bytes()} if DENSE in heads else {}
    return replace(manifest, class_maps=MapSupport(tuple(heads), reasons, shape, support.views)), files


def _found(exported: ExportedModel, manifest: Manifest, shape: tuple[int, ...]) -> tuple[MapSupport, LinearHead | None]:
    from penult.export.onnx.class_maps import find  # a new SVM for a known network does not need onnx

    found = find(exported.onnx, manifest, shape)
    return found.support, found.head


def _say(usable: Mapping[str, LinearHead], reasons: Mapping[str, str]) -> None:
    parts = [f"exact for {' and '.join(usable)}"] if usable else []
    parts += [f"none for {scorer}, {why}" for scorer, why in reasons.items()]
    say(f"class maps: {'; '.join(parts)}")
