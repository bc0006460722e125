"""The options of `penult compare`. Light to import: the command line shows help without loading onnxruntime."""

import argparse
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from penult.bundle.manifest import SCORERS, Manifest
from penult.export.config import photos
from penult.export.config.refit import as_trained
from penult.export.errors import SettingsError
from penult.settings import setting

DEFAULT = "default"
TEST, ALL = "test", "all"
SPLITS = (TEST, "val", ALL)
Pair = tuple[int, int]


def _pair(text: str) -> Pair:
    """Read two different versions; raise ArgumentTypeError."""
    numbers = [part.strip() for part in text.strip("()[] ").split(",")]
    if len(numbers) != 2 or not all(part.isascii() and part.isdigit() for part in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not two versions; give them as 3,4")
    first, second = map(int, numbers)
    if first == second:
        raise argparse.ArgumentTypeError(f"{text!r} names one version twice; give two, as 3,4")
    return first, second


@dataclass(frozen=True)
class CompareSettings(photos.LearningSettings):
    """Two versions of a model, and the photos that both answer. None stands for what the network was trained with."""

    PREFIX: ClassVar[str] = "PENULT_COMPARE_"

    model: Path = setting(MISSING, "folder like models/NAME", is_positional=True)
    data: Path = setting(MISSING, photos.DATA_HELP, is_positional=True)
    versions: Pair | None = setting(
        None, "the two versions, the former one first", read=_pair, metavar="A,B", shown="the newest two"
    )
    scorer: str = setting(DEFAULT, "scorer of both; default is each version's own", choices=(DEFAULT, *SCORERS))
    out: Path | None = setting(None, "folder of the page and the table", metavar="DIR", shown="compare/NAME-A-B")
    report_photos: bool = setting(True, "show images on the page")
    fail_if_worse: bool = setting(
        False, "exit with 1 if B is worse by more than chance", name="fail-if-worse", group="gate"
    )
    max_loss: float | None = setting(
        None, "exit with 1 if B loses more percentage points", minimum=0, below=100, metavar="POINTS"
    )

    split: str = setting(
        TEST, "images to measure on; all for images of neither training", choices=SPLITS, group="images"
    )
    val: str | None = as_trained("validation images; DATA/val takes precedence", metavar="DIR|FRACTION")
    test: str | None = as_trained("test images; DATA/test takes precedence", metavar="DIR|FRACTION")
    images: Path | None = photos.images()
    skip_missing: bool = photos.skip_missing()
    exclude: Path | None = photos.exclude()
    group_by: str | None = as_trained(
        "also keep together images of one folder, moment or look", choices=photos.GROUPINGS
    )
    seed: int | None = as_trained("seed of splits", minimum=0, below=2**32)

    @property
    def pair(self) -> Pair:
        """The two versions, the former one first."""
        return self.versions or _newest(self.model)

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        from penult.bundle.naming import model_name

        before, after = self.pair
        return self.out or Path("compare") / f"{model_name(self.model)}-{before}-{after}"


def _newest(model: Path) -> Pair:
    """Return the newest two versions; raise SettingsError if there are fewer, and BundleNotFound if there are none."""
    from penult.bundle.naming import versions
    from penult.bundle.reader import choose_version

    newest, present = choose_version(model, None), versions(model)
    if len(present) < 2:
        raise SettingsError(
            "ONE_VERSION", f"{model} has one version, {newest}; make another with penult train, svm or quantize"
        )
    return present[-2], present[-1]


def check_comparable(manifest: Manifest, version: int, scorer: str) -> str:
    """Return the scorer of a version that is compared; raise SettingsError if it has none such."""
    if manifest.has_one_class:
        raise SettingsError(
            "ONE_CLASS",
            f"version {version} has one class, so it has no accuracy to compare; see `novelty` in its metrics.json",
        )
    if scorer == DEFAULT:
        return manifest.default_scorer
    if scorer not in manifest.scorers:
        raise SettingsError(
            "SCORER",
            f"version {version} has no scorer {scorer}; it has {', '.join(manifest.scorers)}: leave --scorer out",
        )
    return scorer
