"""The options of `penult quantize`. Light to import: the command line shows help without loading onnxruntime."""

from dataclasses import dataclass
from typing import ClassVar

from penult.bundle.manifest import FLOAT, FP16, INT8, Manifest
from penult.export.config import train
from penult.export.config.refit import VersionSettings
from penult.export.errors import QuantizeError
from penult.settings import setting


@dataclass(frozen=True)
class QuantizeSettings(VersionSettings):
    """One network in a lower precision, with its new SVM, whose options are those of the bundle's own.

    `to` is INT8 (for CPUs) or FP16 (a float16 body between float32 ends, for GPUs). `max_loss` is in percentage points.
    """

    PREFIX: ClassVar[str] = "PENULT_QUANTIZE_"

    to: str = setting(INT8, "int8 for resnets on CPUs; fp16 for GPUs, half the bytes", choices=(INT8, FP16))
    max_loss: float = train.max_loss("percentage points of validation accuracy that may be lost")


def check_precision(manifest: Manifest, name: str, version: int, kind: str) -> None:
    """Refuse a network that is of a lower precision already, or that would not gain; raise PenultError."""
    if (now := manifest.precision) != FLOAT:
        raise QuantizeError(
            f"{now.upper()}_ALREADY", f"version {version} of {name} is {now} already; give --version of a float one"
        )
    if kind == INT8:
        train.check_int8(manifest.architecture)


def check_several(classes: tuple[str, ...]) -> None:
    """Raise QuantizeError for photos of one class, because there is no accuracy to compare."""
    if len(classes) == 1:
        raise QuantizeError(
            "ONE_CLASS",
            f"only one class ({classes[0]!r}) was found, and precisions are compared by accuracy, which needs several; "
            "serve the float version of a model with one class",
        )
