"""The novelty of a one-class SVM: scikit-learn's numbers without scikit-learn, and no file that is not one."""

import pickle

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import SVC, OneClassSVM

from penult.bundle.errors import BundleError
from penult.export.evaluation.one_class import OneClassSvm
from penult.service.models.svm.scorer import load_novelty, load_scorer

LENGTH = 16
POINTS = np.abs(np.random.default_rng(0).normal(size=(60, LENGTH))).astype(np.float32)
ASKED = np.concatenate([POINTS[:5], np.random.default_rng(1).normal(size=(40, LENGTH)).astype(np.float32) * 9])


def fitted(**changes):
    """A pipeline, fitted."""
    return make_pipeline(Normalizer(), OneClassSVM(**{"gamma": 20.0, "nu": 0.1} | changes)).fit(POINTS)


@pytest.mark.parametrize("gamma", [0.5, 20.0, 150.0])
def test_novelty_is_that_of_scikit_learn(gamma):
    """The service computes what the export measured; it falls with the decision value, and lies within 0 and 2."""
    pipeline = fitted(gamma=gamma)
    found = load_novelty(pickle.dumps(pipeline, protocol=5), LENGTH)(ASKED)
    np.testing.assert_allclose(found, OneClassSvm(pipeline).novelty(ASKED), atol=2e-5)
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 2
    decisions = pipeline.decision_function(ASKED)[np.argsort(found, kind="stable")]
    assert (np.diff(decisions) <= 1e-6 * np.abs(decisions).max()).all()


def test_an_svm_of_classes_has_no_novelty():
    """A one-class SVM scores no classes, and an SVM of classes gives no novelty."""
    classes = make_pipeline(Normalizer(), SVC()).fit(POINTS, np.arange(60) % 2)
    for load, pipeline in ((load_novelty, classes), (lambda data, length: load_scorer(data, length, 1), fitted())):
        with pytest.raises(BundleError) as caught:
            load(pickle.dumps(pipeline, protocol=5), LENGTH)
        assert caught.value.reason in ("SVM_UNSUPPORTED", "SVM_INVALID")


def _weights(svm, values):
    svm._dual_coef_ = values


@pytest.mark.parametrize(
    "change",
    [
        lambda svm: setattr(svm, "kernel", "linear"),
        lambda svm: setattr(svm, "_sparse", True),
        lambda svm: setattr(svm, "_gamma", -1.0),
        lambda svm: setattr(svm, "_gamma", 0.0),
        lambda svm: _weights(svm, -svm._dual_coef_),
        lambda svm: _weights(svm, 0 * svm._dual_coef_),
        lambda svm: _weights(svm, svm._dual_coef_[:, :-1]),
        lambda svm: _weights(svm, np.full_like(svm._dual_coef_, 1e308)),
        lambda svm: setattr(svm, "support_vectors_", svm.support_vectors_[:, 1:]),
    ],
)
def test_attributes_that_cannot_be_right_are_refused(change):
    """Another kernel, negative or no weights, other lengths: refused in one line, whatever they would give."""
    pipeline = fitted()
    change(pipeline[-1])
    with pytest.raises(BundleError) as caught:
        load_novelty(pickle.dumps(pipeline, protocol=5), LENGTH)
    assert caught.value.reason.startswith("SVM_")
