"""Read svm.pkl as untrusted input: a pickle is a program, and this reader runs none of it.

Python's unpickler is not used, because an allow-list of names is not enough. In our tests a pickle of 3 MB crashed the
process (the hash of tuples nested 3 million deep), one of 70 bytes never ended (the hash of a tuple of shared halves)
and one of 8 bytes took 4 GB (a high index in the memo). This reader executes only the opcodes that a fitted SVM needs.
It imports and calls nothing. Objects become EstimatorState, keys are text or whole numbers, and arrays are plain,
finite numbers that are all in the file.
"""

import logging
import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bundle.errors import BundleError
from penult.service.models.svm.estimator_state import EstimatorState

log = logging.getLogger(__name__)

_ESTIMATORS = {
    ("sklearn.pipeline", "Pipeline"),
    ("sklearn.preprocessing._data", "Normalizer"),
    ("sklearn.preprocessing._data", "StandardScaler"),
    ("sklearn.svm._classes", "LinearSVC"),
    ("sklearn.svm._classes", "OneClassSVM"),
    ("sklearn.svm._classes", "SVC"),
}
# The version of scikit-learn whose attributes this reader knows; a test compares it with the installed one.
KNOWN = "1.9"
_PLAIN_NUMBERS = re.compile(r"[biuf][1248]")
_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}[0-9A-Za-z.+-]{0,20}")
# A pipeline has about two hundred, and three more for each class that has a weight.
_MAX_OPCODES = 10_000
_MAX_DIMENSIONS = 2


def open_pickle(data: bytes, allow_skew: bool = False) -> Any:
    """Return the content of a pickle, with estimators as EstimatorState; raise BundleError for anything unexpected.

    The pickle must come from the major.minor version of scikit-learn that this reader knows. Patch releases keep the
    meaning of attributes, other releases may change it. With `allow_skew` another version is only a warning. The
    goldens verify the numbers either way. scikit-learn need not be installed.
    """
    try:
        machine = _Machine(len(data))
        found = machine.run(data)
    except BundleError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise BundleError("SVM_INVALID", "svm.pkl cannot be read; restore the bundle, or fit the SVM again") from error
    if skew := _skew(machine.estimators):
        if not allow_skew:
            raise BundleError("SVM_VERSION", f"{skew}; fit the SVM again, or allow it with --allow-version-skew")
        log.warning("%s; it is served because --allow-version-skew is set", skew)
    return found


def _skew(estimators: list[EstimatorState]) -> str:
    """Return a message if an estimator comes from another version of scikit-learn than KNOWN, else ""."""
    for estimator in estimators:
        made = estimator.state.get("_sklearn_version")
        if not isinstance(made, str) or not _VERSION.fullmatch(made):
            return f"svm.pkl does not say which scikit-learn its {estimator.kind} was made with; {KNOWN} is known here"
        if ".".join(made.split(".")[:2]) != KNOWN:
            return f"svm.pkl was made with scikit-learn {made}, and {KNOWN} is known here"
    return ""


def _forbidden(what: str) -> BundleError:
    return BundleError("SVM_FORBIDDEN", f"svm.pkl {what}; it is not opened")


class _Array(np.ndarray):
    """An array without its numbers yet; only these are filled."""


class _Dtype:
    """A dtype of plain numbers; its state may only set the byte order."""

    def __init__(self, code: Any) -> None:
        if type(code) is not str or not _PLAIN_NUMBERS.fullmatch(code):
            raise _forbidden("holds an array of something else than numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: tuple[Any, ...]) -> None:
        if state[2:5] != (None, None, None):
            raise _forbidden("holds an array of structures")
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


@dataclass(frozen=True)
class _Kind:
    """The class of an estimator, by name."""

    name: str


class _Machine:
    """Executes the opcodes of a pickle: a stack, a memo and the estimators made so far."""

    def __init__(self, room_bytes: int) -> None:
        """Limit all arrays together to `room_bytes`, since each number is in the file once."""
        self.estimators: list[EstimatorState] = []
        self._room_bytes = room_bytes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Return the one value that is left; raise BundleError, or any exception for a damaged pickle."""
        for count, (opcode, argument, at) in enumerate(pickletools.genops(data)):
            if count >= _MAX_OPCODES:
                raise _forbidden(f"has more than {_MAX_OPCODES} opcodes, which no SVM needs")
            if opcode.name == "STOP":
                return self._last(at == len(data) - 1)
            if opcode.name not in _OPCODES:
                raise _forbidden(f"has the opcode {opcode.name}, which no SVM needs")
            _OPCODES[opcode.name](self, argument)
        raise ValueError("no end")  # pickletools says so itself

    def _last(self, is_at_end: bool) -> Any:
        if len(self._stack) != 1 or self._marks or not is_at_end:
            raise ValueError("something is left over")
        return self._stack[0]

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def mark(self, _: Any) -> None:
        """Mark the current height of the stack."""
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        """Take the values above the last mark."""
        at = self._marks.pop()
        taken = self._stack[at:]
        del self._stack[at:]
        return taken

    def take(self, count: int) -> list[Any]:
        """Take so many values, the lowest first; never more than came since the last mark."""
        at = len(self._stack) - count
        if at < (self._marks[-1] if self._marks else 0):
            raise ValueError("too few values")
        taken = self._stack[at:]
        del self._stack[at:]
        return taken

    def memoize(self, place: int | None) -> None:
        """Remember the topmost value under a number, by default the next."""
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def recall(self, place: int) -> None:
        """Put a remembered value on the stack."""
        self.push(self._memo[place])

    def extend(self, values: list[Any]) -> None:
        """Append values to the list on top."""
        if type(self._stack[-1]) is not list:
            raise ValueError("no list")
        self._stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Put keys and values into the dict on top. Other keys than these could take for ever to hash."""
        keys = values[::2]
        if type(self._stack[-1]) is not dict or len(values) % 2 or not {type(key) for key in keys} <= {str, int}:
            raise ValueError("no dict, or keys that are neither text nor whole numbers")
        self._stack[-1].update(zip(keys, values[1::2], strict=True))

    def name(self, module: Any, name: Any) -> None:
        """Push the stand-in of a global."""
        found = _NAMES.get((module, name)) if type(module) is type(name) is str else None
        if found is None:
            said = ascii(f"{module}.{name}")[1:100].rstrip("'\"") if type(module) is type(name) is str else "no name"
            raise _forbidden(f"refers to {said}, which no SVM needs")
        self.push(found)

    def new_object(self, kind: Any, arguments: Any) -> None:
        """Push a new EstimatorState."""
        if type(kind) is not _Kind or type(arguments) is not tuple or arguments:
            raise ValueError("no estimator's class")
        self.estimators.append(EstimatorState(kind.name))
        self.push(self.estimators[-1])

    def call(self, function: Any, arguments: Any) -> None:
        """Call the stand-in of one of NumPy's functions."""
        if type(arguments) is not tuple or not any(function is known for known in _FUNCTIONS):
            raise _forbidden("calls what no SVM calls")
        self.push(function(self, *arguments))

    def build(self, target: Any, state: Any) -> None:
        """Set the state of the object on the stack."""
        if type(target) is EstimatorState and type(state) is dict and all(type(key) is str for key in state):
            target.state = state
        elif type(target) is _Dtype and type(state) is tuple:
            target.set_state(state)
        elif type(target) is _Array and type(state) is tuple:
            self._fill(target, *state)
        else:
            raise ValueError("a state of something else")
        self.push(target)

    def _fill(self, target: _Array, version: Any, shape: Any, dtype: Any, is_fortran: Any, numbers: Any) -> None:
        values = self.numbers(numbers, dtype, shape, "F" if is_fortran is True else "C")
        state: Any = (1, shape, values.dtype, is_fortran is True, bytes(numbers))
        target.__setstate__(state)

    def numbers(self, numbers: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
        """Return an array over numbers of the pickle."""
        is_plain = type(numbers) in (bytes, bytearray) and type(dtype) is _Dtype and type(shape) is tuple
        if not is_plain or len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("no array")
        if math.prod(shape) * dtype.dtype.itemsize != len(numbers):
            raise ValueError("an array of another length")
        self._room_bytes -= len(numbers)
        if self._room_bytes < 0:
            raise _forbidden("holds the same numbers many times")
        found = np.frombuffer(numbers, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise BundleError("SVM_INVALID", "svm.pkl holds a number that is not finite; fit the SVM again")
        return found


def _make_dtype(machine: _Machine, code: Any, *_: Any) -> _Dtype:
    return _Dtype(code)


def _reconstruct(machine: _Machine, *_: Any) -> _Array:
    return np.ndarray.__new__(_Array, (0,), "b")


def _frombuffer(machine: _Machine, numbers: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    return machine.numbers(numbers, dtype, shape, order)


def _scalar(machine: _Machine, dtype: Any, number: Any) -> Any:
    return machine.numbers(number, dtype, (1,), "C")[0]


_FUNCTIONS = (_make_dtype, _reconstruct, _frombuffer, _scalar)
_NAMES: dict[tuple[str, str], Any] = {
    **{(module, name): _Kind(name) for module, name in _ESTIMATORS},
    ("numpy", "ndarray"): "only named as _reconstruct's argument",
    ("numpy", "dtype"): _make_dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}
_PUSHED = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES",
    "BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_Act = Callable[[_Machine, Any], None]
_OPCODES: dict[str, _Act] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(_PUSHED, _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "MEMOIZE": _Machine.memoize,
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": lambda machine, both: machine.name(*str(both).split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.take(2)),
    "NEWOBJ": lambda machine, _: machine.new_object(*machine.take(2)),
    "REDUCE": lambda machine, _: machine.call(*machine.take(2)),
    "BUILD": lambda machine, _: machine.build(*machine.take(2)),
}
