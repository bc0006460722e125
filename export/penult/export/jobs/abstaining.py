"""Operating points of a bundle that is about to be published: which photos certify them, and for which settings."""

from collections.abc import Mapping
from typing import Any

from penult.bundle.baseline import Baseline
from penult.bundle.manifest import SVM, Manifest
from penult.bundle.operating_points import OperatingPoint
from penult.bundle.scores import Floats
from penult.console import say
from penult.export.data.certifying import independent_rows
from penult.export.data.dataset import Splits
from penult.export.data.split_folders import CERTIFY
from penult.export.evaluation.abstaining_report import Evidence, Wanted, certify_bundle, nothing
from penult.export.evaluation.outputs import SplitOutputs

# The entry of a manifest's training record for operating points that further photos certified.
CALIBRATE = "calibrate"


def note_dropped(manifest: Manifest, version: int) -> None:
    """Print that a new version has no operating points, if the version that it is made of has some."""
    if manifest.operating_points:
        say(f"note: the thresholds of version {version} are not those of a new version; run penult calibrate for it")


def wanted_by(settings: Any, manifest: Manifest | None = None) -> Wanted | None:
    """Return what settings ask for, or else what a bundle's training recorded; None if no thresholds are wanted."""
    if getattr(settings, "max_error", None) is not None:
        return Wanted(settings.max_error, bool(settings.per_class))
    if manifest is None:
        return None
    refitted = manifest.training.get(SVM)
    records = (refitted, manifest.training.get("settings"))
    for record in records:
        found = record if isinstance(record, dict) else {}
        max_error = found.get("max_error")
        if isinstance(max_error, float) and 0 < max_error < 1:
            return Wanted(max_error, found.get("per_class") is True)
    return None


def certified(
    wanted: Wanted,
    manifest: Manifest,
    splits: Splits,
    outputs: Mapping[str, SplitOutputs],
    scores: Mapping[str, Mapping[str, Floats]],
    baseline: Baseline,
    seed: int,
) -> tuple[tuple[OperatingPoint, ...], dict[str, Any]]:
    """Return the operating points that the photos set aside certify, and the entry "abstaining" of metrics.json.

    Args:
        wanted: What is to be certified.
        manifest: With temperatures and default scorer.
        splits: With certifying photos.
        outputs: By split.
        scores: [N, classes] by split and scorer: those that the bundle gives.
        baseline: Decides which photos are novel.
        seed: Chooses one photo of each group.
    """
    if not splits.certify:
        return (), nothing(wanted)
    evidence = {
        part: Evidence(
            scores[part], outputs[part].labels, baseline.novelty(outputs[part].descriptors) > baseline.threshold
        )
        for part in ("val", CERTIFY, "test")
    }
    rows = independent_rows(splits.certify, (*splits.train, *splits.val), seed)
    alone = evidence[CERTIFY].at(rows)
    points, entry = certify_bundle(wanted, manifest, evidence["val"], alone, evidence["test"])
    entry |= {"photos_set_aside": len(splits.certify)}
    if len(rows) < len(splits.certify):
        say(f"note: {len(splits.certify) - len(rows)} certifying photos do not count, since others of their group do")
    return points, entry
