"""The options of `penult svm`. Light to import: the command line shows help without loading scikit-learn."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from penult.export.config.train import BALANCED, SVM_KERNELS
from penult.export.errors import SettingsError


@dataclass(frozen=True)
class RefitSettings:
    """One new SVM. None stands for what the network was trained with, so that the same photos are set aside."""

    model: Path
    data: Path
    version: int | None = None
    kernel: str = "auto"
    class_weights: str = "none"
    val: str | None = None
    test: str | None = None
    seed: int | None = None
    report_photos: bool = True
    from_collection: str = ""

    def __post_init__(self) -> None:
        """Refuse a seed that NumPy would refuse later."""
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise SettingsError("RANGE", f"--seed {self.seed} must be at least 0 and below {2**32}")

    @property
    def class_weight(self) -> str | None:
        """The class weights as scikit-learn names them."""
        return None if self.class_weights == "none" else self.class_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult svm`."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="a folder like models/NAME; gets a new version")
    parser.add_argument(
        "data", metavar="DATA", type=Path, nargs="?", help="a folder of class/photo, or with train/ [val/ test/]"
    )
    parser.add_argument(
        "--from-collection", default=RefitSettings.from_collection, metavar="C",
        help="in place of DATA: the labelled items of a collection of the server at PENULT_TARGET; needs no photos",
    )  # fmt: skip
    parser.add_argument("--version", type=int, metavar="V", help="whose network is used (default: the newest)")
    parser.add_argument(
        "--kernel", choices=SVM_KERNELS, default=RefitSettings.kernel,
        help="auto: rbf where it is clearly better in cross-validation; it is tried on 5 photos per class or more, "
        "4,000 photos or fewer, and where that takes minutes (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--class-weights", choices=("none", BALANCED), default=RefitSettings.class_weights,
        help="balanced: rare classes weigh as much as common ones (%(default)s)",
    )  # fmt: skip
    add_photo_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides the split of the photos and what the report shows of them."""
    for part, what in (("val", "set probabilities and the default scorer"), ("test", "only the final report sees")):
        parser.add_argument(
            f"--{part}", metavar="DIR|FRACTION",
            help=f"photos that {what}; DATA/{part} wins (default: as the network was trained, else 0.15)",
        )  # fmt: skip
    parser.add_argument("--seed", type=int, help="decides splits and folds (default: as the network was trained)")
    parser.add_argument(
        "--no-report-photos", dest="report_photos", action="store_false",
        help="show none of the test photos in the report (default: those that were most surely named wrong)",
    )  # fmt: skip


def from_arguments(arguments: argparse.Namespace) -> RefitSettings:
    """Turn parsed options into settings; raise SettingsError."""
    if bool(arguments.data) == bool(arguments.from_collection):
        raise SettingsError("DATA", "give either a folder of photos or --from-collection C")
    if arguments.from_collection and (idle := [f"--{part}" for part in ("val", "test") if getattr(arguments, part)]):
        raise SettingsError(
            "NO_EFFECT",
            f"{' and '.join(idle)} would have no effect with --from-collection, which sets 15 % of each label's items "
            "aside; leave it out",
        )
    given = {name: getattr(arguments, name) for name in RefitSettings.__dataclass_fields__}
    return RefitSettings(**given | {"data": arguments.data or Path()})
