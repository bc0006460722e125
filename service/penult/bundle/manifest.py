"""manifest.json: what a bundle says of itself.

Unknown fields are ignored (a newer penult may add some); a newer `format_version` is refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from penult.bundle import map_support, operating_points
from penult.bundle.errors import BundleError
from penult.bundle.map_support import MapSupport
from penult.bundle.operating_points import OperatingPoint
from penult.bundle.preprocess import AS_STORED, CROP, PREPROCESS_VERSION, Preprocess

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
SVM_NAME = "svm.pkl"
GOLDEN_NAME = "golden.npz"
BASELINE_NAME = "baseline.npz"
# The weights of the dense head, if its scores have class maps.
DENSE_HEAD_NAME = "dense_head.npz"

DENSE, SVM = "dense", "svm"
SCORERS = (DENSE, SVM)
# The only scorer of a model with one class. It is measured by one of two.
NOVELTY = "novelty"
NEAREST = "nearest"
MEASURES = (NEAREST, SVM)
FLOAT, INT8, FP16 = "float", "int8", "fp16"
# The layer before last, which is the descriptor unless the record of the training names another.
PENULTIMATE = "penultimate"

_TYPES = {
    "format_version": int,
    "architecture": str,
    "classes": list,
    "preprocess": dict,
    "descriptor_length": int,
    "default_scorer": str,
    "temperatures": dict,
    "libraries": dict,
    "training": dict,
    "files": dict,
    "input_name": str,
    "logits_name": str,
    "descriptor_name": str,
    "scorers": list,
    "logits_length": int,
    "operating_points": list,
    "class_maps": dict,
}
# Files are read into memory: no ONNX file is larger, and a sparse one of any size costs its sender nothing.
_FILE_MOST_BYTES, _BUNDLE_MOST_BYTES = 2 << 30, 4 << 30
# Optional in the file, under the names of what they decide.
_STATED = {"stated_scorers": "scorers", "stated_logits_length": "logits_length"}
_MAX_SAID = 200
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def is_model_name(name: str) -> bool:
    """Return True if `name` is a valid model name."""
    return _NAME.fullmatch(name) is not None


def check_model_name(name: str) -> str:
    """Return `name` if it can name a model (it becomes a folder, never a path); raise BundleError."""
    if not is_model_name(name):
        raise BundleError("MODEL_NAME", "a model name is 1 to 64 letters, digits, '_' and '-'")
    return name


def parse_version(folder_name: str) -> int | None:
    """Return the version that a folder's name stands for, or None if it is no version."""
    return int(folder_name) if _VERSION.fullmatch(folder_name) else None


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: its size and SHA-256 (hex)."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "FileEntry":
        """Measure some bytes."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The values of manifest.json.

    `classes` is in the order of the logits and of the SVM's integer classes. `temperatures` holds the divisor of each
    scorer's scores before the softmax. `files` has an entry for every file but the manifest and its signature. If an
    SVM has other classes than the network was trained on, the dense head is not used. The manifest then holds its
    scorers and the number of logits, which are None otherwise. A bundle with one class has the scorer NOVELTY alone,
    and its logits mean nothing. `operating_points` are empty for bundles whose answers are never withheld.
    `class_maps` is None for bundles of before.
    """

    architecture: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    descriptor_length: int
    default_scorer: str
    temperatures: Mapping[str, float]
    libraries: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    input_name: str = "pixels"
    logits_name: str = "logits"
    descriptor_name: str = "descriptor"
    format_version: int = FORMAT_VERSION
    stated_scorers: tuple[str, ...] | None = None
    stated_logits_length: int | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    class_maps: MapSupport | None = None

    @property
    def scorers(self) -> tuple[str, ...]:
        """The scorers that this bundle has."""
        if self.stated_scorers is not None:
            return self.stated_scorers
        return SCORERS if SVM_NAME in self.files else (DENSE,)

    @property
    def has_one_class(self) -> bool:
        """Whether the bundle knows one class, so that novelty is all that it can score."""
        return len(self.classes) == 1

    @property
    def measure(self) -> str:
        """What measures the novelty of a bundle with one class: SVM (a one-class SVM) or NEAREST."""
        return SVM if SVM_NAME in self.files else NEAREST

    @property
    def logits_length(self) -> int:
        """How many logits the network gives: one per class, unless the dense head knows other classes."""
        return len(self.classes) if self.stated_logits_length is None else self.stated_logits_length

    @property
    def precision(self) -> str:
        """INT8 or FP16 where the record of the training says that the network was brought to that, else FLOAT."""
        stated = self.training.get("precision")
        return stated if stated in (INT8, FP16) else FLOAT

    @property
    def is_whitened(self) -> bool:
        """Whether the descriptor is whitened (`--whiten`), so that the dense head reads another one."""
        return isinstance(self.training.get("whitening"), dict)

    @property
    def descriptor_layer(self) -> str:
        """The layer that the descriptor is of, as `--descriptor` takes it."""
        settings = self.training.get("settings")
        stated = settings.get("descriptor") if isinstance(settings, dict) else None
        return stated if isinstance(stated, str) else PENULTIMATE

    @property
    def head_reads_descriptor(self) -> bool:
        """Whether the dense head reads the descriptor: it is the penultimate layer's, and not whitened."""
        return self.descriptor_layer == PENULTIMATE and not self.is_whitened

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what decides the descriptor: the network's bytes and the preprocessing.

        The SVM is left out on purpose: descriptors stay comparable when only a new SVM is fitted on them.
        """
        decisive = {
            "model": self.files[MODEL_NAME].sha256,
            "preprocess": self.preprocess.as_json(),
            "preprocess_version": PREPROCESS_VERSION,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> bytes:
        """Return the file's bytes."""
        values = asdict(self) | {"preprocess": self.preprocess.as_json(), "fingerprint": self.fingerprint}
        for field_name, name in _STATED.items():
            if (stated := values.pop(field_name)) is not None:
                values[name] = stated
        values.pop("operating_points")
        if self.operating_points:
            values["operating_points"] = [point.as_json() for point in self.operating_points]
        values.pop("class_maps")
        if self.class_maps is not None:
            values["class_maps"] = self.class_maps.as_json()
        return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Read the file's bytes; raise BundleError for anything that cannot be right."""
        try:
            values = json.loads(data)
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise BundleError(
                    "MANIFEST_VERSION",
                    f"the bundle has format version {version!a:.20}; this penult reads {FORMAT_VERSION}: update penult "
                    "or train again",
                )
            _check_types(values)
            known = {name: values[name] for name in cls.__dataclass_fields__ if name in values and name not in _STATED}
            manifest = cls(**known | _typed(values))
            _check(manifest)
        except BundleError:
            raise
        except Exception as error:  # the file is input: any type may be wrong, any nesting too deep
            raise BundleError("MANIFEST_INVALID", f"{MANIFEST_NAME} cannot be read: {_one_line(error)}") from error
        if values.get("fingerprint") != manifest.fingerprint:
            raise BundleError(
                "MANIFEST_FINGERPRINT",
                "the fingerprint does not match: restore the bundle, or train again if another penult made it",
            )
        return manifest


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields whose JSON form differs from their Python form."""
    spec = values["preprocess"]
    return {
        "classes": tuple(values["classes"]),
        "preprocess": Preprocess(
            spec["resize"],
            spec["crop"],
            spec["interpolation"],
            tuple(spec["mean"]),
            tuple(spec["std"]),
            spec.get("fit", CROP),
            spec.get("colors", AS_STORED),
        ),
        "files": {name: FileEntry(int(e["size"]), str(e["sha256"])) for name, e in values["files"].items()},
        "stated_scorers": tuple(values["scorers"]) if "scorers" in values else None,
        "stated_logits_length": values.get("logits_length"),
        "operating_points": tuple(map(OperatingPoint.from_json, values.get("operating_points", ()))),
        "class_maps": MapSupport.from_json(values["class_maps"]) if "class_maps" in values else None,
    }


def _check_types(values: dict[str, Any]) -> None:
    """Raise TypeError where a field that is there has another JSON type than the manifest's."""
    for name, kind in _TYPES.items():
        if name in values and type(values[name]) is not kind:
            raise TypeError(f"{name} must be {kind.__name__}")
    for entry in values["files"].values():
        if type(entry["size"]) is not int or type(entry["sha256"]) is not str:
            raise TypeError("every file needs a size and a sha256")
    sizes = [entry["size"] for entry in values["files"].values()]
    if max(sizes, default=0) > _FILE_MOST_BYTES or sum(sizes) > _BUNDLE_MOST_BYTES:
        raise ValueError("files must have 2 GiB at most, and 4 GiB together")


def _check(manifest: Manifest) -> None:
    """Raise ValueError for values that contradict each other."""
    if not manifest.classes or len(set(manifest.classes)) != len(manifest.classes):
        raise ValueError("classes must be one or more different names")
    # encode() refuses lone surrogates, which no answer could carry.
    if not all(isinstance(name, str) and name.encode() for name in manifest.classes):
        raise ValueError("classes must be non-empty strings")
    if MODEL_NAME not in manifest.files or GOLDEN_NAME not in manifest.files:
        raise ValueError(f"{MODEL_NAME} and {GOLDEN_NAME} must be listed in files")
    _check_scorers(manifest)
    if manifest.default_scorer not in manifest.scorers:
        raise ValueError(f"default_scorer {manifest.default_scorer!r} is not one of {', '.join(manifest.scorers)}")
    if manifest.descriptor_length < 1:
        raise ValueError("descriptor_length must be a whole number above 0")
    if not all(0 < manifest.temperatures[scorer] < math.inf for scorer in manifest.scorers if scorer != NOVELTY):
        raise ValueError("temperatures must be finite and above 0")
    operating_points.check(manifest.operating_points, _calibrated(manifest), len(manifest.classes))
    map_support.check(
        manifest.class_maps, manifest.scorers, manifest.descriptor_length, DENSE_HEAD_NAME in manifest.files
    )


def _calibrated(manifest: Manifest) -> tuple[str, ...]:
    """Return the scorers that give probabilities of classes."""
    return tuple(scorer for scorer in manifest.scorers if scorer != NOVELTY)


def _check_scorers(manifest: Manifest) -> None:
    scorers = manifest.scorers
    if manifest.has_one_class or NOVELTY in scorers:
        if scorers != (NOVELTY,) or not manifest.has_one_class or manifest.logits_length < 1:
            raise ValueError(f"a bundle of one class has the scorer {NOVELTY} alone, and no other bundle has it")
        if BASELINE_NAME not in manifest.files:
            raise ValueError(f"{BASELINE_NAME} must be listed in files where {NOVELTY} is the scorer")
        return
    if not scorers or list(scorers) != [name for name in SCORERS if name in scorers]:
        raise ValueError(f"scorers must be some of {', '.join(SCORERS)}, in this order")
    if (SVM in scorers) != (SVM_NAME in manifest.files):
        raise ValueError(f"scorers must name {SVM} where {SVM_NAME} is listed in files, and only there")
    if manifest.logits_length < 1 or (DENSE in scorers and manifest.logits_length != len(manifest.classes)):
        raise ValueError(f"the {DENSE} scorer needs one logit per class")


def _one_line(error: Exception) -> str:
    """Return what an error says; the file may have put anything of any length into it."""
    said = f"missing field {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(said.encode("ascii", "backslashreplace").decode().split())[:_MAX_SAID]
