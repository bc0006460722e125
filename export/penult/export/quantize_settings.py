"""The options of `penult quantize`. Light to import: the command line shows help without loading onnxruntime."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from penult.export.errors import SettingsError
from penult.export.refit_settings import RefitSettings, add_photo_arguments
from penult.export.settings import TrainSettings, add_max_loss


@dataclass(frozen=True)
class QuantizeSettings(RefitSettings):
    """One int8 network, with its new SVM. None stands for what the network was trained with.

    `max_loss` is in percentage points. Kernel and class weights are those of the bundle's own SVM.
    """

    max_loss: float = TrainSettings.max_loss

    def __post_init__(self) -> None:
        """Refuse a seed that NumPy would refuse later, and a loss that is none."""
        super().__post_init__()
        if not 0 <= self.max_loss < 100:
            raise SettingsError("RANGE", f"--max-loss {self.max_loss:g} must be at least 0 and below 100")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult quantize`."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="a folder like models/NAME; gets a new version")
    parser.add_argument("data", metavar="DATA", type=Path, help="the photos it was trained on, as for penult train")
    parser.add_argument("--version", type=int, metavar="V", help="which version (default: the newest)")
    add_max_loss(parser)
    add_photo_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def from_arguments(arguments: argparse.Namespace) -> QuantizeSettings:
    """Turn parsed options into settings; raise SettingsError."""
    names = [name for name in QuantizeSettings.__dataclass_fields__ if hasattr(arguments, name)]
    return QuantizeSettings(**{name: getattr(arguments, name) for name in names})
