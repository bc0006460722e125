"""svm.pkl is opened by an allow-list: a pickle that holds more than a plain SVM is refused, and nothing of it runs."""

import os
import pickle
import struct
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
from penult.service.models.svm.pickle_reader import KNOWN
from penult.service.models.svm.scorer import load_scorer

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


def _made_with(data: bytes, version: str) -> bytes:
    """Return a pickle as another scikit-learn would have made it."""
    here = sklearn.__version__.encode()
    other = data.replace(bytes([0x8C, len(here)]) + here, bytes([0x8C, len(version)]) + version.encode())
    assert other != data
    return other


@pytest.mark.parametrize("last", [LinearSVC(random_state=0), SVC()], ids=["linear", "rbf"])
@pytest.mark.parametrize("version", ["0.24.2", "1.6.1", "2.0.0", "", "1", "newest", "1.6\nrefused: x"])
def test_another_scikit_learn_version_is_refused(svm, version, last, caplog):
    """An SVM of another major.minor, or of an unknown one, is SVM_VERSION; where that is allowed, a warning and served."""
    model = svm(last)
    other = _made_with(pickle.dumps(model, protocol=5), version)
    assert refused(other) == "SVM_VERSION"
    descriptors = np.random.default_rng(1).normal(size=(5, LENGTH)).astype(np.float32)
    found = load_scorer(other, LENGTH, 3, allow_skew=True)(descriptors)
    np.testing.assert_allclose(found, model.decision_function(descriptors), atol=1e-5)
    (line,) = caplog.messages
    assert "scikit-learn" in line
    assert "\n" not in line


def test_what_is_known_is_what_fits():
    """The scikit-learn whose attributes the reader knows is the one that fits SVMs here: a new one asks for a look."""
    assert ".".join(sklearn.__version__.split(".")[:2]) == KNOWN


def test_another_patch_release_is_no_skew(svm, caplog):
    """An SVM of another patch release of the same scikit-learn is taken without a word."""
    version = ".".join([*sklearn.__version__.split(".")[:2], "77"])
    load_scorer(_made_with(pickle.dumps(svm(SVC()), protocol=5), version), LENGTH, 3)
    assert caplog.messages == []


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


_FORGERIES = {
    "ndarray": _OBJECTS_OVER_BYTES,
    "dtype": _OBJECTS_BEHIND_A_DTYPE,
    "state": _OBJECTS_IN_A_STATE,
    "fields": _FIELDS_IN_A_NUMBER,
}


def test_forged_pointers_are_refused(run_python):
    """Arrays of Python objects over bytes of the file's choice are refused by name: reading one would follow a forged pointer."""
    code = f"""
import pickle, sys
import numpy as np
from numpy._core.multiarray import _reconstruct
from numpy._core.numeric import _frombuffer
from penult.bundle.errors import BundleError
from penult.service.models.svm.scorer import load_scorer
from sklearn.svm import LinearSVC
for name, forge in {_FORGERIES!r}.items():
    exec(forge)
    model = LinearSVC()
    model.coef_, model.intercept_ = Forged(), np.zeros(3)
    data = pickle.dumps(model, protocol=5)
    try:
        load_scorer(data, 16, 3)
    except BundleError as error:
        print(name, error.reason, flush=True)
"""
    result = run_python("-c", code)
    expected = "".join(f"{name} SVM_FORBIDDEN\n" for name in _FORGERIES)
    assert (result.returncode, result.stdout) == (0, expected), result


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _list_of_arrays(times: int) -> bytes:
    """Pickle a list that holds an array of the same million bytes so many times."""
    name = _text("numpy._core.numeric") + _text("_frombuffer") + b"\x93"
    dtype = _text("numpy") + _text("dtype") + b"\x93" + _text("f8") + b"\x89\x88\x87R"
    array = name + b"(h\x00" + dtype + b"J" + struct.pack("<i", 125_000) + b"\x85" + _text("C") + b"tR"
    return b"\x80\x04](B" + struct.pack("<I", 1_000_000) + bytes(1_000_000) + b"\x94" + array * times + b"e."


SWELLING = {
    "memo": b"\x80\x04Nr" + struct.pack("<I", 0x0FFFFFFF) + b".",
    "hash of deep tuples": b"\x80\x04}()" + b"\x85" * 3_000_000 + b"K\x01u.",
    "hash of tuples of halves": b"\x80\x04}()" + b"2\x86" * 200 + b"K\x01u.",
    "the same without DUP": b"\x80\x04}()" + b"".join(b"\x94h" + bytes([n, 0x86]) for n in range(200)) + b"K\x01u.",
    "many copies": _list_of_arrays(3_000),
    "bytes that are not there": b"\x80\x05\x8e" + struct.pack("<Q", 8 << 30) + b"abc.",
    "a bytearray that is not there": b"\x80\x05\x96" + struct.pack("<Q", 8 << 30) + b"abc.",
}


@pytest.mark.parametrize("name", SWELLING)
def test_a_pickle_cannot_crash_hang_or_swell(name, run_python, tmp_path):
    """Pickles that end, hold up or fill Python's own unpickler are refused at once, in 200 MB."""
    (tmp_path / "svm.pkl").write_bytes(SWELLING[name])
    code = f"""
import pathlib, re
from penult.bundle.errors import BundleError
from penult.service.models.svm.scorer import load_scorer
data = pathlib.Path({str(tmp_path / "svm.pkl")!r}).read_bytes()
try:
    load_scorer(data, {LENGTH}, 3)
except BundleError as error:
    print(error.reason, int(re.search(r"VmHWM:\\s+([0-9]+)", pathlib.Path("/proc/self/status").read_text())[1]) < 200_000)
"""
    result = run_python("-c", code)
    assert result.stdout in ("SVM_FORBIDDEN True\n", "SVM_INVALID True\n"), result


def test_a_pickle_changes_nothing_of_the_reader(svm):
    """After pickles that set the state of classes and functions, good ones are read as before."""
    for module, name in (("numpy", "dtype"), ("sklearn.svm._classes", "SVC"), ("numpy._core.numeric", "_frombuffer")):
        target = _text(module) + _text(name) + b"\x93"
        assert refused(b"\x80\x04" + target + b"N}" + _text("__init__") + b"Ns\x86b.").startswith("SVM_")
    load_scorer(pickle.dumps(svm(SVC()), protocol=5), LENGTH, 3)


def test_a_name_cannot_write_log_lines():
    """What a pickle calls for is told in one line of bounded length and plain characters, whatever its name."""
    name = "system\n\x1b[31mloaded light version 2" + "\u2028" + "x" * 150
    with pytest.raises(BundleError) as caught:
        load_scorer(b"\x80\x04" + _text("os") + _text(name) + b"\x93.", LENGTH, 3)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("count", [2, 7, 10**6])
def test_bytes_behind_the_end_are_refused(svm, count):
    """A pickle ends with its file."""
    assert refused(pickle.dumps(svm(SVC()), protocol=5) + bytes(count)) == "SVM_INVALID"


@pytest.mark.parametrize("attributes", [
    {"_dual_coef_": np.ones((2, 3))}, {"_n_support": np.array([9, 9, 9], np.int32)}, {"_gamma": -1.0}, {"_gamma": 10**400},
    {"_n_support": np.array([-1, 30, 31], np.int32)}, {"support_": np.array([], np.int32)}, {"_intercept_": np.zeros(2)},
    {"_intercept_": np.zeros(3, np.int64)}, {"_sparse": 1}, {"classes_": np.array([2, 1, 0])}, {"shape_fit_": None},
    {"support_vectors_": np.ones((60, LENGTH), np.complex128)}, {"kernel": None}, {"degree": 1.5, "kernel": "poly"},
    {"degree": 10**9, "kernel": "poly"}, {"coef0": "x", "kernel": "sigmoid"},
], ids=str)  # fmt: skip
def test_an_svc_of_other_arrays_is_refused(svm, attributes):
    """Arrays of other shapes, kinds or sums than an SVC's are refused before they are used."""
    model = svm(SVC())
    for name, value in attributes.items():
        setattr(model[-1], name, value)
    assert refused(pickle.dumps(model, protocol=5)) in ("SVM_INVALID", "SVM_SHAPE", "SVM_FORBIDDEN", "SVM_UNSUPPORTED")
