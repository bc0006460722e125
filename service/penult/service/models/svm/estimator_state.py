"""Estimators read from svm.pkl: their attributes, each verified when it is read, and no behaviour."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import BundleError

_MIN_ITEM_BYTES = 4


class EstimatorState:
    """The state of an estimator: `kind` is the name of its class, `state` its attributes."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: dict[str, Any] = {}

    def floats(self, name: str, *shape: int | None) -> NDArray[np.float64]:
        """Return an array of float32 or float64 as float64 of this shape, None for any length; raise BundleError."""
        return np.asarray(self._array(name, "f", shape), dtype=np.float64)

    def integers(self, name: str, *shape: int | None) -> NDArray[np.int64]:
        """Return an array of whole numbers as int64 of this shape, None for any length; raise BundleError."""
        return np.asarray(self._array(name, "iu", shape), dtype=np.int64)

    def number(self, name: str) -> float:
        """Return a finite number; raise BundleError."""
        found = self.state.get(name)
        if isinstance(found, (int, float, np.number)) and not isinstance(found, bool) and math.isfinite(found):
            return float(found)
        raise self.unusable(name)

    def flag(self, name: str) -> bool:
        """Return True or False; raise BundleError."""
        found = self.state.get(name)
        if isinstance(found, bool):
            return found
        raise self.unusable(name)

    def text(self, name: str) -> str:
        """Return text; raise BundleError."""
        found = self.state.get(name)
        if isinstance(found, str):
            return found
        raise self.unusable(name)

    def unusable(self, name: str) -> BundleError:
        """Return the error for an attribute that is missing or wrong."""
        return BundleError(
            "SVM_INVALID", f"the {self.kind} in svm.pkl has no usable {name}; restore the bundle, or fit the SVM again"
        )

    def _array(self, name: str, kinds: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        found = self.state.get(name)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds or found.dtype.itemsize < _MIN_ITEM_BYTES:
            raise self.unusable(name)
        if len(found.shape) != len(shape) or any(w not in (None, s) for s, w in zip(found.shape, shape, strict=True)):
            wanted = " x ".join("any" if side is None else str(side) for side in shape)
            raise BundleError(
                "SVM_SHAPE", f"{name} of the {self.kind} in svm.pkl is {found.shape}; {wanted} fits the model"
            )
        return found
