"""Pickles that an attacker would offer as svm.pkl: alive, hidden, self-referring, enormous, or with numbers changed."""

import builtins
import copy
import functools
import operator
import os
import pickle
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

Change = Callable[[np.ndarray], Any]


class Calls:
    """Makes pickle call a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        """Call this."""
        self._reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell pickle what to call."""
        return self._reduced


class Restored:
    """Hands pickle a state, as an estimator's __setstate__ would get it."""

    def __init__(self, of: type, state: object) -> None:
        """Take the class and the state."""
        self._of, self._state = of, state

    def __reduce__(self) -> tuple[Any, ...]:
        """Make an empty one, then set its state."""
        return self._of, (), self._state


def payloads(canary: Path) -> dict[str, Calls]:
    """Return objects that leave a file at `canary` when they are read with pickle.load."""
    touch, write = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, touch),
        "eval": Calls(builtins.eval, write),
        "exec": Calls(builtins.exec, write),
        "subprocess": Calls(subprocess.check_call, ["touch", str(canary)]),
        "partial": Calls(operator.call, functools.partial(os.system, touch)) if hasattr(operator, "call")
        else Calls(builtins.eval, write),
        "mknod": Calls(os.mknod, str(canary)),
    }  # fmt: skip


def _attribute(model: Pipeline, evil: Calls) -> object:
    model[-1].random_state = evil
    return model


def _object_array(model: Pipeline, evil: Calls) -> object:
    model[-1].classes_ = np.array([evil, 1, 2], dtype=object)
    return model


def _step(model: Pipeline, evil: Calls) -> object:
    model.steps.insert(0, ("evil", evil))
    return model


def _state(model: Pipeline, evil: Calls) -> object:
    return Restored(type(model[-1]), vars(model[-1]) | {"coef_": evil})


def _slots(model: Pipeline, evil: Calls) -> object:
    return Restored(type(model[-1]), (vars(model[-1]), {"extra": evil}))


def _key(model: Pipeline, evil: Calls) -> object:
    model[-1].class_weight = {0: evil}
    return model


DISGUISES: dict[str, Callable[[Pipeline, Calls], object]] = {
    "root": lambda model, evil: evil,
    "attribute": _attribute,
    "object array": _object_array,
    "step": _step,
    "state": _state,
    "slots": _slots,
    "class_weight": _key,
    "step's name": lambda model, evil: Pipeline([(evil, model[-1])]),
    "list": lambda model, evil: [model, evil],
}


def evil(model: Pipeline, canary: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every payload in every disguise, by name."""
    for payload, act in payloads(canary).items():
        for disguise, hide in DISGUISES.items():
            protocol = 4 if len(payload + disguise) % 2 else 5
            yield f"{payload} as {disguise}", pickle.dumps(hide(copy.deepcopy(model), act), protocol=protocol)


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _name(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


_HEAD, _GIB = b"\x80\x04", 1 << 30
_LINEAR = _name("sklearn.svm._classes", "LinearSVC") + b")\x81"
_DTYPE = _name("numpy", "dtype") + _text("f8") + b"\x89\x88\x87R"
_NEW_ARRAY = (
    _name("numpy._core.multiarray", "_reconstruct") + _name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
)  # fmt: skip
_FROM_BUFFER = _name("numpy._core.numeric", "_frombuffer")


def _integer(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def _as_coef(value: bytes) -> bytes:
    return _HEAD + _LINEAR + b"}" + _text("coef_") + value + b"sb."


# What only a reader with a mind of its own withstands. Python's own would call, wait, crash or take gigabytes.
CRAFTED: dict[str, bytes] = {
    "dotted name": _HEAD + _name("sklearn.svm._classes", "LinearSVC.__init__.__globals__") + b".",
    "dotted way to os": _HEAD + _name("sklearn.pipeline", "Pipeline.fit.__globals__") + b".",
    "getattr": _HEAD + _name("builtins", "getattr") + _name("sklearn.pipeline", "Pipeline") + _text("fit") + b"\x86R.",
    "_reconstructor": _HEAD + _name("copyreg", "_reconstructor") + _name("sklearn.svm._classes", "SVC")
    + _name("builtins", "object") + b"N\x87R.",
    "newline in a name": _HEAD + _name("os\nrefused light version 1: (FAKE)", "system") + b".",
    "very long name": _HEAD + b"X" + struct.pack("<I", 100_000) + b"x" * 100_000 + _text("y") + b"\x93.",
    "GLOBAL": b"\x80\x02cposix\nsystem\n.",
    "INST": b"\x80\x02(S'true'\niposix\nsystem\n.",
    "OBJ": b"\x80\x02(cposix\nsystem\nS'true'\no.",
    "EXT1": _HEAD + b"\x82\x01.",
    "EXT2": _HEAD + b"\x83\x01\x00.",
    "EXT4": _HEAD + b"\x84\x01\x00\x00\x00.",
    "persistent id": b"\x80\x02Pevil\n.",
    "binary persistent id": _HEAD + _text("evil") + b"Q.",
    "NEWOBJ_EX": _HEAD + _name("sklearn.svm._classes", "SVC") + b")}\x92.",
    "next buffer": b"\x80\x05\x97.",
    "place 0x0FFFFFFF of the memo": _HEAD + b"Nr" + struct.pack("<I", 0x0FFFFFFF) + b".",
    "tuples hashed 3 million deep": _HEAD + b"}()" + b"\x85" * 3_000_000 + b"K\x01u.",
    "tuples hashed 9 thousand deep": _HEAD + b"}()" + b"\x85" * 9_000 + b"K\x01u.",
    "tuple of halves, hashed": _HEAD + b"}()" + b"2\x86" * 200 + b"K\x01u.",
    "tuple of halves by memo": _HEAD + b"}()" + b"".join(b"\x94h" + bytes([n]) + b"\x86" for n in range(200)) + b"K\x01u.",
    "lists 1 million deep": _HEAD + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "lists 4 thousand deep": _HEAD + b"]" * 4_000 + b"a" * 3_999 + b".",
    "list in itself": _HEAD + b"]\x94h\x00a.",
    "marks": _HEAD + b"(" * 5_000 + b".",
    "below the stack": _HEAD + b"0000.",
    "8 GiB of bytes claimed": _as_coef(b"\x8e" + struct.pack("<Q", 8 * _GIB) + b"abc"),
    "8 GiB of a bytearray claimed": b"\x80\x05" + b"\x96" + struct.pack("<Q", 8 * _GIB) + b"abc.",
    "2 GiB of text claimed": _HEAD + b"X" + struct.pack("<I", 2 * _GIB - 1) + b"abc.",
    "frame of 2^62": _HEAD + b"\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "array of 8 GiB from a number": _as_coef(_NEW_ARRAY + b"(K\x01" + _integer(_GIB) + b"\x85" + _DTYPE + b"\x89"
                                             + _integer(8 * _GIB) + b"tb"),
    "array that claims 8 GiB": _as_coef(_FROM_BUFFER + b"(C\x08AAAAAAAA" + _DTYPE + _integer(_GIB) + b"\x85"
                                        + _text("C") + b"tR"),
    "array of negative size": _as_coef(_FROM_BUFFER + b"(C\x08AAAAAAAA" + _DTYPE + _integer(-1) + b"\x85"
                                       + _text("C") + b"tR"),
    "object pointers": _as_coef(_FROM_BUFFER + b"(C\x08AAAAAAAA" + _DTYPE.replace(b"f8", b"O8") + b"K\x01\x85"
                                + _text("C") + b"tR"),
    "state of a class": _HEAD + _name("numpy", "dtype") + b"N}" + _text("dtype") + b"K\x07s\x86b.",
    "state of an estimator's class": _HEAD + _name("sklearn.svm._classes", "SVC") + b"N}"
    + _text("decision_function") + _name("numpy", "dtype") + b"s\x86b.",
    "state of a function": _HEAD + _name("numpy._core.numeric", "_frombuffer") + b"}" + _text("x") + b"K\x07sb.",
    "the same 1 MB 5,000 times": _HEAD + b"](B" + struct.pack("<I", 1_000_000) + bytes(1_000_000) + b"\x94" + b"".join(
        _FROM_BUFFER + b"(h\x00" + _DTYPE + _integer(125_000) + b"\x85" + _text("C") + b"tR" for _ in range(5_000)) + b"e.",
    "a list of one weight": _as_coef(b"](G" + struct.pack(">d", 1.0) + b"e"),
    "no state": _HEAD + _LINEAR + b".",
}  # fmt: skip


def damaged(model: Pipeline) -> Iterator[tuple[str, bytes]]:
    """Yield a real pipeline with one attribute made unusable, by what was done; no digest or type can tell."""
    for step, name, what, value in _damages(model):
        broken = copy.deepcopy(model)
        setattr(broken[step], name, value)
        yield f"{type(broken[step]).__name__}.{name} {what}", pickle.dumps(broken, protocol=5)


_SPOILT: dict[str, Change] = {
    "shorter": lambda a: a[..., :-1],
    "fewer rows": lambda a: a[:-1],
    "longer": lambda a: np.concatenate([a, a[:1]]),
    "empty": lambda a: a[:0],
    "of more dimensions": lambda a: a[None],
    "a number": lambda a: float(a.flat[0]),
    "text": lambda a: "weights",
    "None": lambda a: None,
    "a list": lambda a: a.tolist(),
    "complex": lambda a: a.astype(complex),
    "objects": lambda a: a.astype(object),
    "booleans": lambda a: a.astype(bool),
}
_FLOAT: dict[str, Change] = {
    "NaN": lambda a: _with(a, np.nan),
    "inf": lambda a: _with(a, np.inf),
    "-inf": lambda a: _with(a, -np.inf),
    "huge": lambda a: _with(a, 1e300),
    "whole numbers": lambda a: (a * 10).astype(np.int32),
    "bytes": lambda a: (a * 10).astype(np.uint8),
    "half": lambda a: a.astype(np.float16),
    "other numbers": lambda a: a * 1.5 + 0.1,
    "zeros": np.zeros_like,
}
_WHOLE: dict[str, Change] = {
    "negative": lambda a: _with(a, -1),
    "enormous": lambda a: _with(a, 2**31 - 1),
    "off by a hundred": lambda a: a + 100,
    "float": lambda a: a.astype(np.float64),
}
_FLOATS = {"SVC": ("support_vectors_", "_dual_coef_", "_intercept_"), "LinearSVC": ("coef_", "intercept_"),
           "StandardScaler": ("mean_", "scale_"), "Normalizer": (), "Pipeline": ()}  # fmt: skip
_WHOLES = {"SVC": ("_n_support", "support_", "classes_"), "LinearSVC": ("classes_",)}
_PLAIN: dict[str, tuple[tuple[str, Any], ...]] = {
    "SVC": (("kernel", "precomputed"), ("kernel", 7), ("kernel", "cosine"), ("_gamma", -1.0), ("_gamma", float("nan")),
            ("_gamma", float("inf")), ("_gamma", "x"), ("_gamma", 10**400), ("decision_function_shape", "ovo"),
            ("_sparse", True), ("_sparse", None), ("kernel", "poly"), ("kernel", "linear"), ("kernel", "sigmoid")),
    "LinearSVC": (("fit_intercept", "yes"), ("fit_intercept", False)),
    "StandardScaler": (("with_mean", 7), ("with_std", "no"), ("with_mean", False), ("with_std", False)),
    "Normalizer": (("norm", 7), ("norm", "l3"), ("norm", "l1"), ("norm", "max"), ("norm", None)),
}  # fmt: skip


def _with(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[changed.size // 2] = value
    return changed


def _damages(model: Pipeline) -> Iterator[tuple[int, str, str, Any]]:
    for step in range(len(model)):
        kind = type(model[step]).__name__
        changes = [(_FLOATS, _SPOILT | _FLOAT), (_WHOLES, _SPOILT | _WHOLE)]
        for names, ways in changes:
            for name in names.get(kind, ()):
                for what, change in ways.items():
                    array = getattr(model[step], name)
                    if not (array.ndim == 1 and what == "fewer rows"):
                        yield step, name, what, change(array)
        for name, value in _PLAIN.get(kind, ()):
            yield step, name, f"= {str(value)[:20]}", value
    if type(model[0]).__name__ == "StandardScaler":
        yield 0, "scale_", "with a zero", _with(model[0].scale_, 0)
        yield 0, "scale_", "with a negative", _with(model[0].scale_, -1)
