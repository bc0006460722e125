"""Opening svm.pkl without trusting it: a pickle is code, and this one may only rebuild arrays and a few estimators.

Even NumPy's own reconstruction functions are replaced: given an object dtype, they turn bytes of the file's choice into
pointers (tested: a segmentation fault). Here an array is plain numbers or it is refused.
"""

import io
import pickle
import re
import warnings
from typing import Any

import numpy as np

from penult.bundle.errors import BundleError

_ESTIMATORS = {
    ("sklearn.pipeline", "Pipeline"),
    ("sklearn.preprocessing._data", "Normalizer"),
    ("sklearn.preprocessing._data", "StandardScaler"),
    ("sklearn.svm._classes", "LinearSVC"),
    ("sklearn.svm._classes", "SVC"),
}
_PLAIN_NUMBERS = re.compile(r"[biuf][1248]")


class Shell:
    """Stands for an estimator: keeps its attributes and does nothing. `kind` is the estimator's class name."""

    kind = ""


def open_pickle(data: bytes, as_shells: bool) -> Any:
    """Return the estimator in a pickle, as itself or as Shells; raise BundleError for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # scikit-learn only warns of a version that cannot read the pickle right
            return _Unpickler(data, as_shells).load()
    except BundleError:
        raise
    except Warning as warning:
        line = " ".join(str(warning).split())
        raise BundleError("SVM_VERSION", f"svm.pkl was made with another scikit-learn: {line}") from warning
    except Exception as error:  # a damaged pickle raises almost anything
        raise BundleError("SVM_INVALID", "svm.pkl cannot be read; restore the bundle, or fit the SVM again") from error


class _Unpickler(pickle.Unpickler):
    """Knows stand-ins for NumPy's reconstruction functions, and the estimators above; refuses every other name."""

    def __init__(self, data: bytes, as_shells: bool) -> None:
        super().__init__(io.BytesIO(data))
        self._as_shells = as_shells

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        if (module, name) in _ESTIMATORS:
            return type(name, (Shell,), {"kind": name}) if self._as_shells else super().find_class(module, name)
        raise BundleError("SVM_FORBIDDEN", f"svm.pkl refers to {module}.{name}, which no SVM needs; it is not opened")


class _Dtype:
    """A dtype of plain numbers; its state may only set the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not _PLAIN_NUMBERS.fullmatch(code):
            raise BundleError(
                "SVM_FORBIDDEN", "svm.pkl holds an array of something else than numbers; it is not opened"
            )
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[2:5] != (None, None, None):
            raise BundleError("SVM_FORBIDDEN", "svm.pkl holds an array of structures; it is not opened")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that is filled from plain numbers only."""

    def __setstate__(self, state: Any, /) -> None:
        version, shape, dtype, is_fortran, numbers = state
        super().__setstate__((version, shape, dtype.dtype, is_fortran, bytes(numbers)))


def _reconstruct(kind: object, shape: Any, code: Any) -> _Array:
    return np.ndarray.__new__(_Array, (0,), "b")


def _frombuffer(numbers: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Any:
    return np.frombuffer(numbers, dtype.dtype).reshape(shape, order="F" if order == "F" else "C").copy(order="K")


def _scalar(dtype: _Dtype, number: bytes) -> Any:
    return np.frombuffer(number, dtype.dtype)[0]


_NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "only named as _reconstruct's argument; a string cannot be called",
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}
