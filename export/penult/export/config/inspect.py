"""The options of `penult inspect`. Light to import: the command line shows help without loading scikit-learn."""

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from penult.export.config import photos
from penult.export.config.photos import named_by
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError
from penult.settings import setting


@dataclass(frozen=True)
class InspectSettings(photos.LearningSettings):
    """What to inspect, and the network that describes it."""

    PREFIX: ClassVar[str] = "PENULT_INSPECT_"

    data: Path = setting(MISSING, photos.DATA_HELP, is_positional=True)
    out: Path = setting(MISSING, "folder of the results", metavar="DIR", shown="inspect/ and DATA's own name")
    arch: str = setting(TrainSettings.arch, "network that describes images", metavar="NAME", group="network")
    weights: str = setting(TrainSettings.weights, "ImageNet weights or a state-dict file", metavar="imagenet|FILE|none")
    model: Path | None = setting(None, "take the network of this model, a folder like models/NAME", metavar="MODEL")
    version: int | None = setting(None, "version of the model", metavar="V", minimum=1, shown="the newest")

    val: str = setting("0.15", "validation images; DATA/val takes precedence", metavar="DIR|FRACTION", group="images")
    test: str = setting("0.15", "test images; DATA/test takes precedence", metavar="DIR|FRACTION")
    images: Path | None = photos.images()
    skip_missing: bool = photos.skip_missing()
    exclude: Path | None = photos.exclude()
    group_by: str = photos.group_by()
    seed: int = setting(0, "seed of splits", minimum=0, below=2**32)

    def __post_init__(self) -> None:
        """Reject a version without a model."""
        super().__post_init__()
        refuse_version_alone(self.version, self.model)

    @classmethod
    def given(
        cls, flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> dict[str, Any]:
        """Merge what is given, and name the folder of the results after DATA if there is no --out."""
        found = super().given(flags, file, environment)
        refuse_two_networks(found)
        if "out" not in found:
            from penult.bundle.naming import last_part  # brings NumPy and Pillow along

            name = re.sub(r"[^A-Za-z0-9_-]+", "-", last_part(named_by(found["data"])))[:64]
            found["out"] = Path("inspect") / (name or "photos")
        return found


def refuse_two_networks(found: Mapping[str, Any]) -> None:
    """Raise SettingsError if a model is given, whose network describes images, and a network beside it."""
    if "model" in found and (idle := [f"--{name}" for name in ("arch", "weights") if name in found]):
        raise SettingsError(
            "NO_EFFECT",
            f"{' and '.join(idle)} would have no effect with --model, which has a network; leave it out",
        )


def refuse_version_alone(version: int | None, model: Path | None) -> None:
    """Raise SettingsError for a version without a model."""
    if version is not None and model is None:
        raise SettingsError("NO_EFFECT", "--version is that of a model; add --model models/NAME, or leave it out")
