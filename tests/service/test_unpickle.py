"""svm.pkl is opened by an allow-list: a pickle that holds more than a plain SVM is refused, and nothing of it runs."""

import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import SVC, LinearSVC

from penult.bundle.errors import BundleError
from penult.service.scorer import load_scorer

LENGTH = 16


@pytest.fixture
def svm():
    """Fit a pipeline of three classes: svm(LinearSVC(), Normalizer())."""

    def fit(last, *transforms):
        descriptors = np.random.default_rng(0).normal(size=(60, LENGTH)).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence does not matter here
            return make_pipeline(*transforms, clone(last)).fit(descriptors, np.arange(60) % 3)

    return fit


def refused(data: bytes) -> str:
    """Return the reason for which svm.pkl is refused."""
    with pytest.raises(BundleError) as caught:
        load_scorer(data, LENGTH, 3)
    assert "\n" not in caught.value.message
    return caught.value.reason


@pytest.mark.parametrize(
    "lay_out",
    [np.ascontiguousarray, np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], lambda a: a.astype(">f8"),
     lambda a: a.astype(np.float32), lambda a: a[::-1][::-1]],
    ids=["rows", "columns", "strided", "big-endian", "float32", "view"],
)  # fmt: skip
def test_arrays_of_any_layout_are_read_right(svm, lay_out):
    """However the weights lie in memory when they are pickled, the scores are scikit-learn's."""
    model = svm(LinearSVC(random_state=0))
    descriptors = np.random.default_rng(1).normal(size=(5, LENGTH)).astype(np.float32)
    expected = model.decision_function(descriptors)
    model[-1].coef_ = lay_out(model[-1].coef_)
    found = load_scorer(pickle.dumps(model, protocol=5), LENGTH, 3)(descriptors)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("pickled", [b"", b"garbage", b"\x80\x05.", b"\x80\x05K\x01", bytes(1000), None])
def test_garbage_is_refused(svm, pickled):
    """Bytes that are no whole pickle give BundleError, whatever pickle raises on them."""
    whole = pickle.dumps(svm(LinearSVC(random_state=0)), protocol=5)
    assert refused(whole[: len(whole) // 2] if pickled is None else pickled) == "SVM_INVALID"


def test_another_scikit_learn_version_is_refused(svm):
    """A pickle that scikit-learn itself warns of gives BundleError: reading it may give other scores silently."""
    pickled = pickle.dumps(svm(SVC(kernel="poly")), protocol=5)  # one that is left to scikit-learn
    other = pickled.replace(sklearn.__version__.encode(), b"0" * len(sklearn.__version__))
    assert other != pickled
    assert refused(other) == "SVM_VERSION"


class Evil:
    """Runs a shell command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        """Leave a file at `canary`."""
        self._canary = canary

    def __reduce__(self):
        """Tell pickle to call os.system."""
        return os.system, (f"touch {self._canary}",)


def _at_the_root(evil: Evil, model) -> object:
    return evil


def _in_an_attribute(evil: Evil, model) -> object:
    model[-1].random_state = evil
    return model


def _in_an_object_array(evil: Evil, model) -> object:
    model[-1].classes_ = np.array([evil, 1.0], dtype=object)
    return model


def _as_a_step(evil: Evil, model) -> object:
    model.steps.insert(0, ("evil", evil))
    return model


@pytest.mark.parametrize("hide", [_at_the_root, _in_an_attribute, _in_an_object_array, _as_a_step])
@pytest.mark.parametrize("last", [LinearSVC(random_state=0), SVC()], ids=["linear", "rbf"])
def test_an_evil_pickle_is_refused_and_not_executed(svm, tmp_path, last, hide):
    """A shell command in svm.pkl, wherever it hides, is refused by its name, and never runs."""
    canary = tmp_path / "canary"
    data = pickle.dumps(hide(Evil(canary), svm(last, Normalizer())), protocol=5)
    assert refused(data) == "SVM_FORBIDDEN"
    assert not canary.exists()
    pickle.loads(data)  # the pickle is a live one: without the allow-list, it does run
    assert canary.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "os system", "subprocess Popen", "importlib import_module", "numpy load",
     "numpy save", "sklearn.pipeline Pipeline.__init__", "sklearn.svm._classes LinearSVC.__class__", "copyreg _reconstructor",
     "sklearn.linear_model._logistic LogisticRegression"],
)  # fmt: skip
def test_no_other_name_can_be_looked_up(name):
    """Every global outside the short list is refused, also dotted ways out of a listed one."""
    module, attribute = (part.encode() for part in name.split())
    text = b"".join(b"\x8c" + bytes([len(part)]) + part for part in (module, attribute))
    assert refused(b"\x80\x04" + text + b"\x93.") == "SVM_FORBIDDEN"


_OBJECTS_OVER_BYTES = """
class Forged:
    def __reduce__(self):
        return np.ndarray, ((3, 16), np.dtype("O"), b"A" * 8 * 16 * 3)
"""
_OBJECTS_BEHIND_A_DTYPE = """
class Dtype:
    def __reduce__(self):
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)

class Forged:
    def __reduce__(self):
        return _frombuffer, (b"A" * 8 * 16 * 3, Dtype(), (3, 16), "C")
"""
_OBJECTS_IN_A_STATE = (
    _OBJECTS_BEHIND_A_DTYPE
    + """
    def __reduce__(self):
        return _reconstruct, (np.ndarray, (0,), b"b"), (1, (3, 16), Dtype(), False, b"A" * 8 * 16 * 3)
"""
)
_FIELDS_IN_A_NUMBER = """
class Dtype:
    def __reduce__(self):
        return np.dtype, ("f8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 0)

class Forged:
    def __reduce__(self):
        return _frombuffer, (b"A" * 8 * 16 * 3, Dtype(), (3, 16), "C")
"""


@pytest.mark.parametrize(
    "forge",
    [_OBJECTS_OVER_BYTES, _OBJECTS_BEHIND_A_DTYPE, _OBJECTS_IN_A_STATE, _FIELDS_IN_A_NUMBER],
    ids=["ndarray", "dtype", "state", "fields"],
)
def test_forged_pointers_are_refused(run_python, forge):
    """Arrays of Python objects over bytes of the file's choice are refused by name: reading one would follow a forged pointer."""
    code = f"""
import pickle, sys
import numpy as np
from numpy._core.multiarray import _reconstruct
from numpy._core.numeric import _frombuffer
from penult.bundle.errors import BundleError
from penult.service.scorer import load_scorer
from sklearn.svm import LinearSVC
{forge}
model = LinearSVC()
model.coef_, model.intercept_ = Forged(), np.zeros(3)
data = pickle.dumps(model, protocol=5)
try:
    load_scorer(data, 16, 3)
except BundleError as error:
    print(error.reason)
"""
    result = run_python("-c", code)
    assert (result.returncode, result.stdout) == (0, "SVM_FORBIDDEN\n"), result
