"""The options of `penult quantize`. Light to import: the command line shows help without loading onnxruntime."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from penult.bundle.manifest import FLOAT, FP16, INT8, Manifest
from penult.export.config.refit import RefitSettings, add_photo_arguments
from penult.export.config.train import TrainSettings, add_max_loss, check_int8
from penult.export.errors import QuantizeError, SettingsError


@dataclass(frozen=True)
class QuantizeSettings(RefitSettings):
    """One network in a lower precision, with its new SVM. None stands for what the network was trained with.

    `to` is INT8 (for CPUs) or FP16 (a float16 body between float32 ends, for GPUs). `max_loss` is in percentage points.
    Kernel and class weights are those of the bundle's own SVM.
    """

    max_loss: float = TrainSettings.max_loss
    to: str = INT8

    def __post_init__(self) -> None:
        """Refuse a seed that NumPy would refuse later, and a loss that is none."""
        super().__post_init__()
        if not 0 <= self.max_loss < 100:
            raise SettingsError("RANGE", f"--max-loss {self.max_loss:g} must be at least 0 and below 100")


def check_precision(manifest: Manifest, name: str, version: int, kind: str) -> None:
    """Refuse a network that is of a lower precision already, or that would not gain; raise PenultError."""
    if (now := manifest.precision) != FLOAT:
        raise QuantizeError(
            f"{now.upper()}_ALREADY", f"version {version} of {name} is {now} already; give --version of a float one"
        )
    if kind == INT8:
        check_int8(manifest.architecture)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult quantize`."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="a folder like models/NAME; gets a new version")
    parser.add_argument("data", metavar="DATA", type=Path, help="the photos it was trained on, as for penult train")
    parser.add_argument("--version", type=int, metavar="V", help="which version (default: the newest)")
    parser.add_argument(
        "--to", choices=(INT8, FP16), default=QuantizeSettings.to,
        help="int8: resnets on CPUs; fp16: half the bytes, for GPUs, no gain on CPUs (%(default)s)",
    )  # fmt: skip
    add_max_loss(parser)
    add_photo_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def from_arguments(arguments: argparse.Namespace) -> QuantizeSettings:
    """Turn parsed options into settings; raise SettingsError."""
    names = [name for name in QuantizeSettings.__dataclass_fields__ if hasattr(arguments, name)]
    return QuantizeSettings(**{name: getattr(arguments, name) for name in names})
