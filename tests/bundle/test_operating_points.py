"""Operating points in manifest.json: read as written, absent without any, refused if they contradict the bundle."""

import json
from dataclasses import replace

import pytest

from penult.bundle.errors import BundleError
from penult.bundle.manifest import GOLDEN_NAME, MODEL_NAME, SVM_NAME, FileEntry, Manifest
from penult.bundle.operating_points import OperatingPoint, limits_by_class
from penult.bundle.preprocess import Preprocess

FILES = {name: FileEntry(1, "0") for name in (MODEL_NAME, GOLDEN_NAME, SVM_NAME)}
MANIFEST = Manifest("tiny5", ("cat", "dog"), Preprocess(32, 32), 4, "svm", {"dense": 1.0, "svm": 1.0}, files=FILES)
POINT = OperatingPoint("svm", 0.05, (0.7, None), photos=100, answered=60, wrong=1, is_default=True)


def test_points_are_read_as_they_were_written():
    """Thresholds, counts and the default return; a class without a threshold is never answered."""
    manifest = replace(MANIFEST, operating_points=(POINT, replace(POINT, max_error=0.1, is_default=False)))
    found = Manifest.from_json(manifest.to_json()).operating_points
    assert found == manifest.operating_points
    assert limits_by_class(found[0], MANIFEST.classes) == {"cat": 0.7, "dog": float("inf")}


def test_a_bundle_without_points_is_written_as_before():
    """The field is absent, so that bytes and signatures of other bundles do not change."""
    assert "operating_points" not in json.loads(MANIFEST.to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"scorer": "novelty"}, {"max_error": 0.0}, {"max_error": "5%"}, {"thresholds": [0.1, 0.2, 0.3]},
        {"thresholds": [1.5]}, {"thresholds": [float("nan")]}, {"wrong": 61}, {"answered": 101}, {"is_default": 1},
    ],
    ids=str,
)  # fmt: skip
def test_points_that_cannot_be_right_are_refused(change):
    """Scorers, shares, thresholds and counts are checked when a bundle is read."""
    values = json.loads(replace(MANIFEST, operating_points=(POINT,)).to_json())
    values["operating_points"][0] |= change
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(values).encode())
    assert caught.value.reason == "MANIFEST_INVALID"


def test_two_defaults_of_one_scorer_are_refused():
    """Requests without max_error could not choose between them."""
    values = json.loads(replace(MANIFEST, operating_points=(POINT, replace(POINT, max_error=0.1))).to_json())
    with pytest.raises(BundleError, match="two default"):
        Manifest.from_json(json.dumps(values).encode())
