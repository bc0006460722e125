"""The options of `penult calibrate`. Light to import: the command line shows help without loading onnxruntime."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from penult.export.config import abstaining, photos
from penult.settings import setting


@dataclass(frozen=True)
class CalibrateSettings(photos.LearningSettings):
    """Thresholds of a model, certified on further labelled photos."""

    PREFIX: ClassVar[str] = "PENULT_CALIBRATE_"

    model: Path = setting(MISSING, "folder like models/NAME, which gets a new version", is_positional=True)
    data: Path = setting(MISSING, "labelled images that the model has not seen", is_positional=True)
    max_error: float = abstaining.max_error(default=0.05, shown="5%")
    per_class: bool = setting(False, abstaining.PER_CLASS_HELP)
    version: int | None = setting(None, "version to start from", metavar="V", minimum=1, shown="the newest")
    seed: int = setting(0, "seed that divides the images", minimum=0, below=2**32)
    images: Path | None = photos.images()
    skip_missing: bool = photos.skip_missing()
    exclude: Path | None = photos.exclude()
    group_by: str = photos.group_by()
