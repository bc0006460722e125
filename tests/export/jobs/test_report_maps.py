"""What makes the maps of a report: the default scorer, another exact one, or hiding places."""

import pickle
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from penult.bundle.manifest import DENSE_HEAD_NAME, SVM_NAME
from penult.bundle.map_support import MapSupport
from penult.bundle.reader import Bundle, read_bundle
from penult.bundle.scores import as_columns
from penult.export.evaluation.class_maps import PhotoMaps
from penult.export.evaluation.svm import FittedSvm
from penult.export.evaluation.svm_search import Search
from penult.export.jobs.report_maps import photo_maps
from penult.export.onnx.runtime import ExportedModel


@pytest.fixture(scope="module")
def bundle(trained: Any) -> Bundle:
    """The trained digits."""
    return read_bundle(trained.folder.parent)


@pytest.fixture(scope="module")
def svm(trained: Any) -> FittedSvm:
    """Their SVM."""
    pipeline = pickle.loads((trained.folder / SVM_NAME).read_bytes())
    return FittedSvm(
        pipeline, (Search("linear", 1.0, 0.0, {}, np.arange(0), np.zeros((1, 0), bool)),), 5, None, 0, 1, 0.0
    )


def made(bundle: Bundle, svm: FittedSvm, default: str, support: MapSupport | None) -> PhotoMaps:
    """Return what makes maps if the default scorer and the exact scorers are these."""
    manifest = replace(bundle.manifest, default_scorer=default, class_maps=support)
    return photo_maps(
        manifest, ExportedModel(bundle.onnx, manifest), svm, {DENSE_HEAD_NAME: bundle.dense_head.to_bytes()}
    )


@pytest.mark.parametrize("default", ["dense", "svm"])
def test_exact_maps_of_the_default_scorer_add_up(bundle: Bundle, svm: FittedSvm, default: str):
    """The sum of places and offset is the score that the default scorer gives."""
    maps = made(bundle, svm, default, bundle.manifest.class_maps)
    assert (maps.scorer, maps.is_exact, maps.why_not) == (default, True, "")
    crops = bundle.goldens.crops[:3]
    logits, descriptors = ExportedModel(bundle.onnx, bundle.manifest).run(crops)
    scores = logits if default == "dense" else as_columns(svm.pipeline.decision_function(descriptors))
    found = maps.of(crops, [[0, 7], [3], [9]])
    wanted = [scores[0, 0], scores[0, 7], scores[1, 3], scores[2, 9]]
    assert [each.score for photo in found for each in photo] == pytest.approx(
        wanted, abs=1e-4 * float(np.abs(scores).max())
    )
    assert [each.label for each in found[0]] == ["0", "7"]


def test_another_exact_scorer_stands_in(bundle: Bundle, svm: FittedSvm):
    """If the default scorer has no exact maps, those of the other one are shown, with the reason."""
    support = replace(bundle.manifest.class_maps, scorers=("dense",), reasons={"svm": "its kernel is RBF"})
    maps = made(bundle, svm, "svm", support)
    assert (maps.scorer, maps.is_exact, maps.why_not) == ("dense", True, "its kernel is RBF")


def test_without_exact_maps_places_are_hidden(bundle: Bundle, svm: FittedSvm):
    """The occlusion maps are of the default scorer's own scores: hiding all of a digit lowers that of its class."""
    support = MapSupport((), {"svm": "hidden dense layers lie between", "dense": "the same"})
    maps = made(bundle, svm, "svm", support)
    assert (maps.scorer, maps.is_exact, maps.why_not) == ("svm", False, "hidden dense layers lie between")
    crop = bundle.goldens.crops[0]
    (answer,) = svm.scores(ExportedModel(bundle.onnx, bundle.manifest).run(crop[None])[1]).argmax(axis=1)
    ((found,),) = maps.of(crop[None], [[int(answer)]])
    assert found.values.max() > 0 and abs(found.values.max()) > abs(found.values.min())


def test_a_trained_bundle_shows_where_it_looked(trained: Any):
    """The report of a real run has the section, with exact maps of its default scorer."""
    page = (trained.folder / "report" / "index.html").read_text()
    section = re.search(r'<section id="class-maps">.*?</section>', page, re.DOTALL)[0]
    assert "add up to the score" in " ".join(section.split()) and section.count("<img") >= 10
