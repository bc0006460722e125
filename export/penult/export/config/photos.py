"""The options that say which labelled photos a command reads, and what must stay together."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from penult.export.errors import SettingsError
from penult.settings import Settings, setting

NO_GROUPS, BY_FOLDER, BY_TIME, BY_LIKENESS = GROUPINGS = ("no", "folder", "exif-time", "near-duplicates")

LABEL_FILES = (".csv", ".tsv", ".parquet", ".json")
DATA_HELP = "labelled images: class folders, train/ with val/ and test/, or label file"
# None of these is a number that decides a network, or they are places on this machine.
images = partial(
    setting, None, "folder that a label file's paths start from", recorded=False, metavar="ROOT", shown="the file's own"
)
skip_missing = partial(setting, False, "leave out images of a label file that do not exist", recorded=False)
exclude = partial(setting, None, "leave out the images that a file lists", recorded=False, metavar="FILE")
group_by = partial(setting, NO_GROUPS, "also keep together images of one folder, moment or look", choices=GROUPINGS)


class LearningSettings(Settings):
    """Base of the options of the commands that read labelled photos."""

    @staticmethod
    def error(message: str) -> Exception:
        """Return the error of a value out of range."""
        return SettingsError("RANGE", message)


class _HasPhotos(Protocol):
    @property
    def data(self) -> Path: ...
    @property
    def images(self) -> Path | None: ...
    @property
    def skip_missing(self) -> bool: ...
    @property
    def exclude(self) -> Path | None: ...
    @property
    def group_by(self) -> str | None: ...


@dataclass(frozen=True)
class PhotoSource:
    """The photos of a command.

    Attributes:
        data: A folder, or a label file.
        images: The folder that a label file's paths start from; None is the file's own.
        skip_missing: Whether images that do not exist are left out.
        exclude: A file that names images to leave out.
        group_by: What else keeps photos in one split, one of GROUPINGS.
        outliers: Photos of other things than the one class. If it is a split's folder, its others are no classes.
    """

    data: Path
    images: Path | None = None
    skip_missing: bool = False
    exclude: Path | None = None
    group_by: str = NO_GROUPS
    outliers: Path | None = None

    @classmethod
    def of(cls, settings: _HasPhotos) -> Self:
        """Return the photos of a command's settings."""
        return cls(
            settings.data,
            settings.images,
            settings.skip_missing,
            settings.exclude,
            settings.group_by or NO_GROUPS,
            getattr(settings, "outliers", None),
        )


def named_by(data: Path) -> Path:
    """Return the path after which a model of these photos is named: a label file's without its ending."""
    return data.with_suffix("") if data.suffix.lower() in LABEL_FILES else data
