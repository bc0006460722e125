"""The options of `penult svm`. Light to import: the command line shows help without loading scikit-learn."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from penult.export.config import abstaining, one_class, photos
from penult.export.config.photos import GROUPINGS
from penult.export.config.train import SVM_KERNELS, class_weights
from penult.export.errors import SettingsError
from penult.settings import setting

as_trained = partial(setting, None, shown="as the network was trained")


@dataclass(frozen=True)
class VersionSettings(photos.LearningSettings):
    """A new version of a model. None stands for what the network was trained with, so that splits are the same."""

    model: Path = setting(MISSING, "folder like models/NAME, which gets a new version", is_positional=True)
    data: Path = setting(MISSING, "images as for penult train, which the network learnt from", is_positional=True)
    version: int | None = setting(None, "version to start from", metavar="V", minimum=1, shown="the newest")
    val: str | None = as_trained("images for probabilities and default scorer; DATA/val wins", metavar="DIR|FRACTION")
    test: str | None = as_trained("images for the final report only; DATA/test wins", metavar="DIR|FRACTION")
    seed: int | None = as_trained("seed of splits and folds", minimum=0, below=2**32)
    images: Path | None = photos.images()
    skip_missing: bool = photos.skip_missing()
    exclude: Path | None = photos.exclude()
    group_by: str | None = as_trained("also keep together images of one folder, moment or look", choices=GROUPINGS)
    report_photos: bool = setting(True, "show test images in the report")


@dataclass(frozen=True)
class RefitSettings(VersionSettings):
    """A new SVM, on a folder of photos or on the items of a collection."""

    PREFIX: ClassVar[str] = "PENULT_SVM_"

    data: Path = setting(Path(), photos.DATA_HELP, is_positional=True)
    kernel: str = setting("auto", "kernel of the SVM; auto chooses by cross-validation", choices=SVM_KERNELS)
    class_weights: str = class_weights()
    max_error: float | None = abstaining.max_error(shown="as the network was trained")
    per_class: bool = setting(False, abstaining.PER_CLASS_HELP)
    novelty: str | None = one_class.measure(None, shown="as the network was trained")
    false_alarms: float | None = one_class.false_alarms(None, shown="as the network was trained, or 2.5%")
    outliers: Path | None = one_class.outliers()
    out: Path | None = setting(None, "folder of the model that gets the version", metavar="MODEL", shown="MODEL itself")
    from_collection: str = setting("", "collection at PENULT_TARGET whose labelled items replace DATA", metavar="C")

    @property
    def published(self) -> Path:
        """The folder of the model that gets the new version."""
        return self.out or self.model

    @property
    def class_weight(self) -> str | None:
        """The class weights as scikit-learn names them."""
        return None if self.class_weights == "none" else self.class_weights

    @classmethod
    def given(
        cls, flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> dict[str, Any]:
        """Merge what is given: photos or a collection, one of them."""
        found = super().given(flags, file, environment)
        if "max_error" in found and "data" not in found:
            raise SettingsError(
                "NO_EFFECT", "--max-error needs photos, and --from-collection has none: run penult calibrate afterwards"
            )
        if ("data" in found) == bool(found.get("from_collection")):
            raise SettingsError("DATA", "give either a folder of photos or --from-collection C")
        if "data" not in found and (idle := [f"--{part}" for part in ("val", "test") if part in found]):
            raise SettingsError(
                "NO_EFFECT",
                f"{' and '.join(idle)} would have no effect with --from-collection, which sets 15 % of each label's "
                "items aside; leave it out",
            )
        if found.get("per_class") and found.get("max_error") is None:
            raise SettingsError("NO_EFFECT", abstaining.PER_CLASS_ALONE)
        return found
