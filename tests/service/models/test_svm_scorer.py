"""svm.pkl's scores: matrix products of checked arrays, without scikit-learn, and always scikit-learn's numbers."""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from penult.bundle.errors import BundleError
from penult.bundle.scores import as_columns
from penult.service.models.svm.scorer import load_scorer

LENGTH = 16

TRANSFORMS = {
    "none": (),
    "normalizer": (Normalizer,),
    "scaler": (StandardScaler,),
    "both": (Normalizer, StandardScaler),
    "other-order": (StandardScaler, Normalizer),
    "scaler-without-mean": (lambda: StandardScaler(with_mean=False),),
    "scaler-without-std": (lambda: StandardScaler(with_std=False),),
    "scaler-without-either": (lambda: StandardScaler(with_mean=False, with_std=False),),
    "l1-normalizer": (lambda: Normalizer("l1"),),
    "max-normalizer": (lambda: Normalizer("max"),),
    "passthrough": (lambda: "passthrough",),
}


@pytest.fixture
def data():
    """Make training descriptors and labels: data(classes)."""

    def make(classes: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.random.default_rng(0)
        labels = np.arange(30 * classes) % classes
        centres = numbers.normal(size=(classes, LENGTH)) * 3
        return (centres[labels] + numbers.normal(size=(len(labels), LENGTH))).astype(np.float32), labels

    return make


@pytest.fixture
def svm(data):
    """Fit a pipeline: svm(LinearSVC(), Normalizer(), classes=3)."""

    def fit(last, *transforms, classes: int = 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence does not matter here
            return make_pipeline(*transforms, clone(last)).fit(*data(classes))

    return fit


def load(model, classes: int = 3):
    """Load a model as the service does."""
    return load_scorer(pickle.dumps(model, protocol=5), LENGTH, classes)


def refused(data: bytes, classes: int = 3) -> str:
    """Return the reason for which svm.pkl is refused."""
    with pytest.raises(BundleError) as caught:
        load_scorer(data, LENGTH, classes)
    assert "\n" not in caught.value.message
    return caught.value.reason


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize("transforms", TRANSFORMS)
def test_linear_scores_are_those_of_scikit_learn(svm, data, transforms, classes):
    """Normalise/standardise + LinearSVC scores within 1e-5 of scikit-learn's own, with the same classes."""
    model = svm(LinearSVC(random_state=0), *(make() for make in TRANSFORMS[transforms]), classes=classes)
    descriptors = data(classes)[0][:50] * 1.7
    descriptors[0] = 0  # a zero vector cannot be normalised and must stay zero
    found, expected = load(model, classes)(descriptors), as_columns(model.decision_function(descriptors))
    assert found.dtype == np.float32
    assert found.shape == (50, classes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert found.argmax(axis=1).tolist() == model.predict(descriptors).tolist()


def test_a_bare_linear_svm_works(data):
    """An estimator without a pipeline around it is scored alike."""
    model = LinearSVC(random_state=0).fit(*data(4))
    descriptors = data(4)[0]
    np.testing.assert_allclose(load(model, 4)(descriptors), model.decision_function(descriptors), atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("transforms", [(), (Normalizer,), (Normalizer, StandardScaler)], ids=len)
@pytest.mark.parametrize(
    "last",
    [SVC(kernel="rbf"), SVC(kernel="rbf", C=1000, gamma=0.5), SVC(kernel="rbf", C=0.1, class_weight="balanced"),
     SVC(kernel="linear", C=10), SVC(kernel="poly", degree=2), SVC(kernel="poly", coef0=0.7), SVC(kernel="sigmoid", coef0=-0.2), SVC(kernel="rbf", decision_function_shape="ovr", break_ties=True)],
    ids=str,
)  # fmt: skip
def test_kernel_scores_are_those_of_scikit_learn(svm, data, last, transforms, classes):
    """RBF, linear and other SVCs score within 1e-5 of scikit-learn's own numbers, with the same classes."""
    model = svm(last, *(make() for make in transforms), classes=classes)
    descriptors = data(classes)[0][:50] * 1.3
    found, expected = load(model, classes)(descriptors), as_columns(model.decision_function(descriptors))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()


def test_pairs_of_classes_are_refused(svm):
    """An SVC that answers per pair of classes has no score per class, and is refused."""
    assert refused(pickle.dumps(svm(SVC(decision_function_shape="ovo"), classes=4)), 4) == "SVM_UNSUPPORTED"


def test_a_precomputed_kernel_is_refused(data):
    """An SVC over a kernel that only its maker can compute is refused by name: it asks for descriptors of all photos."""
    descriptors, labels = data(3)
    model = SVC(kernel="precomputed").fit(descriptors @ descriptors.T, labels)
    with pytest.raises(BundleError) as caught:
        load_scorer(pickle.dumps(model), len(labels), 3)
    assert caught.value.reason in ("SVM_UNSUPPORTED", "SVM_SHAPE")


@pytest.mark.parametrize("last", [LinearSVC(random_state=0), SVC()], ids=["linear", "rbf"])
def test_an_svm_is_loaded_without_scikit_learn(svm, run_python, tmp_path, last):
    """Loading and scoring normalise + LinearSVC or SVC never imports scikit-learn, which would cost seconds at start."""
    (tmp_path / "svm.pkl").write_bytes(pickle.dumps(svm(last, Normalizer()), protocol=5))
    code = f"""
import pathlib, sys
import numpy as np
from penult.service.models.svm.scorer import load_scorer
score = load_scorer(pathlib.Path({str(tmp_path / "svm.pkl")!r}).read_bytes(), {LENGTH}, 3)
print(score(np.ones((2, {LENGTH}), dtype=np.float32)).shape, "sklearn" in sys.modules)
"""
    result = run_python("-c", code)
    assert result.stdout.strip() == "(2, 3) False", result.stderr


@pytest.mark.parametrize(("length", "classes"), [(LENGTH + 1, 3), (LENGTH - 1, 3), (LENGTH, 4), (LENGTH, 2)])
@pytest.mark.parametrize("last", [LinearSVC(random_state=0), SVC()])
def test_other_sizes_than_the_models_are_refused(svm, last, length, classes):
    """An SVM for other descriptors or classes than the network's gives BundleError."""
    with pytest.raises(BundleError) as caught:
        load_scorer(pickle.dumps(svm(last, Normalizer()), protocol=5), length, classes)
    assert caught.value.reason == "SVM_SHAPE"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["coef_", "intercept_"])
def test_numbers_that_are_not_finite_are_refused(svm, place, value):
    """One NaN or infinity among the weights gives BundleError: it would spoil a class for ever."""
    model = svm(LinearSVC(random_state=0))
    getattr(model[-1], place).flat[1] = value
    assert refused(pickle.dumps(model)) == "SVM_INVALID"


@pytest.mark.parametrize(
    "model", [{"coef_": 1}, [1, 2], "text", None, StandardScaler(), Normalizer(), LinearSVC(), SVC(),
              make_pipeline(Normalizer(), LinearSVC())],
)  # fmt: skip
def test_what_is_no_fitted_svm_is_refused(model):
    """Plain values, bare transforms and unfitted estimators give BundleError."""
    assert refused(pickle.dumps(model)) in {"SVM_INVALID", "SVM_SHAPE"}


def _damage(model, step: int, **attributes):
    for name, value in attributes.items():
        setattr(model[step], name, value)
    return model


@pytest.mark.parametrize(
    "attributes",
    [(-1, {"coef_": "text"}), (-1, {"coef_": None}), (-1, {"coef_": np.ones(LENGTH)}), (-1, {"intercept_": "x"}),
     (0, {"norm": 7}), (1, {"mean_": "x"}), (1, {"scale_": np.zeros(LENGTH)})],
    ids=str,
)  # fmt: skip
def test_damaged_attributes_are_refused(svm, attributes):
    """An SVM whose arrays are not arrays, or of the wrong rank, gives BundleError rather than a crash at start."""
    step, values = attributes
    model = _damage(svm(LinearSVC(random_state=0), Normalizer(), StandardScaler()), step, **values)
    assert refused(pickle.dumps(model)).startswith("SVM_")


@pytest.mark.parametrize("step", [0, 1])
def test_an_unfitted_step_is_refused(svm, step):
    """A pipeline that lost a step's fitted attributes gives BundleError."""
    model = svm(LinearSVC(random_state=0), StandardScaler())
    vars(model[step]).clear()
    assert refused(pickle.dumps(model)).startswith("SVM_")
