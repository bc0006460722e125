"""Arithmetic on scores."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from penult.bundle.scores import as_columns, largest_difference, softmax


def test_softmax_gives_probabilities():
    """Rows sum to one, keep the order of the scores, and equal the definition."""
    scores = np.random.default_rng(0).normal(0, 3, (50, 7)).astype(np.float32)
    found = softmax(scores)
    assert found.dtype == np.float32
    assert np.allclose(found, np.exp(scores) / np.exp(scores).sum(1, keepdims=True), atol=1e-6)
    assert np.allclose(found.sum(1), 1, atol=1e-6)


def test_softmax_of_large_scores_is_finite():
    """Scores of any size do not overflow."""
    assert softmax(np.array([[1e5, -1e5], [-1e30, 0.0]])).tolist() == [[1, 0], [0, 1]]


def test_temperature_divides_the_scores():
    """A temperature above one makes answers less sure, below one surer."""
    scores = np.array([[2.0, 0.0]])
    assert np.allclose(softmax(scores, 4.0), softmax(scores / 4))
    assert softmax(scores, 4.0)[0, 0] < softmax(scores)[0, 0] < softmax(scores, 0.25)[0, 0]


@pytest.mark.parametrize("classes", [2, 3])
def test_columns_pick_the_class_that_scikit_learn_predicts(classes: int):
    """For two classes as for more, the largest column is the estimator's own prediction."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    descriptors = rng.normal(labels[:, None], 1.0, (60, 5))
    svm = LinearSVC().fit(descriptors, labels)
    columns = as_columns(svm.decision_function(descriptors))
    assert columns.shape == (60, classes)
    assert columns.dtype == np.float32
    assert np.array_equal(columns.argmax(1), svm.predict(descriptors))


def test_the_difference_is_relative_to_the_largest_expected_value():
    """A difference of 1 beside an expected 50 is 0.02; equal arrays differ by nothing."""
    expected = np.array([[50.0, -2.0], [0.0, 1.0]], np.float32)
    actual = expected.copy()
    assert largest_difference(actual, expected) == 0
    actual[1, 0] = -1
    assert largest_difference(actual, expected) == pytest.approx(0.02)
    assert largest_difference(np.zeros((2, 2)), np.zeros((2, 2))) == 0


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["actual", "expected"])
def test_values_that_are_no_numbers_never_match(odd: float, side: str):
    """NaN and infinity on either side are an infinite difference, so that no threshold lets them pass."""
    sides = {"actual": np.ones((2, 2), np.float32), "expected": np.ones((2, 2), np.float32)}
    sides[side][0, 1] = odd
    assert largest_difference(**sides) == np.inf


def test_other_shapes_never_match():
    """Arrays of another shape differ infinitely, also where they could be broadcast."""
    assert largest_difference(np.ones((2, 1)), np.ones((2, 2))) == np.inf
    assert largest_difference(np.ones((0, 0)), np.ones((2, 2))) == np.inf
