"""Manifest and goldens of a bundle with one class: novelty alone, with what it needs, and for no other bundle."""

import json
from dataclasses import replace

import pytest

from penult.bundle.errors import BundleError
from penult.bundle.goldens import Goldens
from penult.bundle.manifest import BASELINE_NAME, NEAREST, NOVELTY, Manifest
from penult.bundle.reader import read_bundle, read_manifest


@pytest.fixture(scope="module")
def folder(one_class):
    """Version 1 of the zeros."""
    return one_class / "zero" / "1"


def test_it_states_its_class_and_its_scorer(folder):
    """One class, the scorer novelty, no temperature: read as written."""
    manifest = read_manifest(folder)
    assert (manifest.classes, manifest.scorers, manifest.measure) == (("0",), (NOVELTY,), NEAREST)
    assert (manifest.has_one_class, manifest.temperatures, manifest.logits_length) == (True, {}, 1)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "edit",
    [{"scorers": ["dense"]}, {"scorers": ["svm"]}, {"scorers": ["novelty", "svm"]}, {"scorers": []},
     {"classes": ["0", "1"]}, {"classes": []}, {"default_scorer": "dense"}, {"logits_length": 0}],
)  # fmt: skip
def test_scorers_that_do_not_fit_the_classes_are_refused(folder, edit):
    """One class has novelty and nothing else; several classes never have it."""
    values = json.loads((folder / "manifest.json").read_bytes()) | edit
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(values).encode())
    assert caught.value.reason == "MANIFEST_INVALID"


def test_it_needs_a_baseline(folder):
    """Without baseline.npz there is nothing to measure novelty with."""
    values = json.loads((folder / "manifest.json").read_bytes())
    del values["files"][BASELINE_NAME]
    with pytest.raises(BundleError, match=r"baseline\.npz must be listed"):
        Manifest.from_json(json.dumps(values).encode())


def test_goldens_hold_the_novelty(one_class):
    """Goldens keep the novelty of their photos; wrong shapes and values are refused."""
    golden = read_bundle(one_class / "zero", 1).goldens
    assert len(golden.novelty) == len(golden.images)
    assert (Goldens.from_bytes(golden.to_bytes()).novelty == golden.novelty).all()
    for wrong in (golden.novelty[:-1], golden.novelty.astype(float), golden.novelty + 3, golden.novelty[:, None]):
        with pytest.raises(BundleError):
            Goldens.from_bytes(replace(golden, novelty=wrong).to_bytes())
