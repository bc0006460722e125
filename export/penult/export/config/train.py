"""The options of `penult train`, checked once. Light to import: the command line shows help without loading torch."""

import argparse
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from penult.export.config import no_effect
from penult.export.errors import SettingsError

ALL_STAGES = 5
# What `--freeze all` means: the five conv stages and the hidden dense layers; only the head learns.
FREEZE_ALL = ALL_STAGES + 1
_RANGES = (
    ("seed", 0, 2**32),
    ("lr_head", 0, math.inf),
    ("lr_backbone", 0, math.inf),
    ("lr_stage_decay", 0, math.inf),
    ("lr_factor", 0, 1),
    ("lr_patience", 0, math.inf),
    ("weight_decay", 0, math.inf),
    ("cache_mb", 0, math.inf),
    ("crop", 0, 4096),
    ("resize", 0, 4096),
    ("train_crop", 0, 4096),
    ("max_loss", 0, 100),
    ("whiten", 0, math.inf),
)
# As penult.bundle.preprocess has them, which takes longer to import.
CROP, STRETCH = FITS = ("crop", "stretch")
VIEWS = (1, 2, 4, 8)
AUGMENTATIONS = ("photo", "topdown", "gentle", "none")
PLATEAU, ONE_CYCLE = "plateau", "onecycle"
BALANCED = "balanced"
SWEEPS = ("no", "freeze", "labels")
SVM_KERNELS = ("auto", "linear", "rbf")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Where int8 pays on CPUs; on mobilenet_v3_small it took 2.2 times as long as float, on efficientnet_b0 1.3 times
# (research/ceilings.md, section 2): depthwise convolutions have too little arithmetic to save.
INT8_ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "tiny5")


@dataclass(frozen=True)
class TrainSettings:
    """One training run. Rates are AdamW's; patience counts epochs; fractions are of the photos left for training."""

    data: Path
    out: Path
    arch: str = "resnet18"
    weights: str = "imagenet"
    freeze: int = 3
    reinit: bool = False
    epochs: int = 30
    head_epochs: int = 40
    seed: int = 0
    val: str = "0.15"
    test: str = "0.15"
    device: str = "auto"
    resume: bool = False
    dry_run: bool = False
    batch_size: int = 32
    lr: str = "fixed"
    lr_head: float = 1e-3
    lr_backbone: float = 1e-4
    lr_stage_decay: float = 0.3
    schedule: str = PLATEAU
    lr_factor: float = 0.3
    lr_patience: int = 3
    stop_patience: int = 10
    weight_decay: float = 1e-2
    class_weights: str = "none"
    svm: str = "auto"
    whiten: int = 0
    dropout: float | None = None
    precision: str = "auto"
    augment: str = "photo"
    fit: str = CROP
    crop: int = 0
    resize: int = 0
    train_crop: int = 0
    views: int = 1
    cache_mb: int = 2048
    save_weights: Path | None = None
    tensorboard: Path | None = None
    report_photos: bool = True
    sweep: str = "no"
    repeats: int = 1
    int8: bool = False
    max_loss: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, each with what to change."""
        if self.weights == "none" and self.freeze:
            raise SettingsError(
                "FREEZE", "--weights none starts at random, and random layers must learn: add --freeze 0"
            )
        if self.reinit and self.freeze == FREEZE_ALL:
            raise SettingsError("FREEZE", "--reinit restarts what is not frozen, and --freeze all freezes everything")
        if min(self.epochs, self.head_epochs, self.batch_size, self.repeats) < 1:
            raise SettingsError("EPOCHS", "--epochs, --head-epochs, --batch-size and --repeats must be at least 1")
        for name, lowest, below in _RANGES:
            if not lowest <= getattr(self, name) < below:
                flag = "--" + name.replace("_", "-")
                raise SettingsError(
                    "RANGE", f"{flag} {getattr(self, name)} must be at least {lowest:g} and below {below:g}"
                )
        no_effect.refuse(self)
        self._check_schedule()
        if self.int8:
            check_int8(self.arch)
        self._check_views()
        self._check_sweep()
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise SettingsError("DROPOUT", f"--dropout {self.dropout} must be at least 0 and below 1")

    @property
    def freezes_all(self) -> bool:
        """Whether nothing but the head learns."""
        return self.freeze == FREEZE_ALL

    def _check_sweep(self) -> None:
        """Refuse a sweep that would have nothing to compare."""
        if self.sweep != "no" and self.weights == "none":
            raise SettingsError(
                "SWEEP", "--sweep compares what given weights are worth; give --weights FILE or imagenet"
            )
        if self.sweep == "labels" and self.freeze == FREEZE_ALL:
            raise SettingsError(
                "FREEZE",
                "--sweep labels compares a frozen network with a fine-tuned one, and --freeze all leaves nothing to "
                "fine-tune; leave it out, or give --freeze 0 to 5",
            )

    def _check_views(self) -> None:
        """Refuse to serve views of a photo that the network is kept from learning."""
        if self.views not in VIEWS:
            raise SettingsError("VIEWS", f"--views {self.views} must be one of {', '.join(map(str, VIEWS))}")
        if self.views > 1 and self.augment == "gentle":
            raise SettingsError(
                "VIEWS", "--views shows the network mirror images, which --augment gentle keeps from it; leave one out"
            )
        if self.views > 2 and self.augment != "topdown":
            raise SettingsError(
                "VIEWS", f"--views {self.views} turns photos, which only --augment topdown learns from; add it"
            )

    def _check_schedule(self) -> None:
        """Refuse a schedule whose parts work against each other."""
        if self.schedule == PLATEAU and self.stop_patience <= 2 * (self.lr_patience + 1):
            raise SettingsError(
                "PATIENCE",
                f"--stop-patience {self.stop_patience} would stop before a lower learning rate could help; it must be "
                f"more than 2 x (--lr-patience + 1) = {2 * (self.lr_patience + 1)}",
            )
        if self.lr == "auto" and self.freeze == FREEZE_ALL:
            raise SettingsError("LR", "--lr auto looks for the rate of the layers that learn; --freeze all leaves none")

    @property
    def starts_fresh(self) -> bool:
        """Whether the layers that learn start at random: then no head can be learnt on their descriptors first."""
        return self.reinit or self.weights == "none"

    @property
    def class_weight(self) -> str | None:
        """The class weights as scikit-learn names them."""
        return None if self.class_weights == "none" else self.class_weights

    def as_json(self) -> dict[str, object]:
        """Return the values that a manifest records: no path of this machine."""
        local = {
            "data",
            "out",
            "resume",
            "dry_run",
            "device",
            "cache_mb",
            "save_weights",
            "tensorboard",
            "report_photos",
            # What becomes of the network afterwards; an int8 bundle's manifest tells it.
            "int8",
            "max_loss",
        }
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in local}
        values["weights"] = Path(self.weights).name
        values["freeze"] = freeze_text(self.freeze)
        return values | {name: Path(str(values[name])).name for name in ("val", "test")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `penult train`."""
    default = {f.name: f.default for f in fields(TrainSettings)}
    parser.add_argument("data", metavar="DATA", type=Path, help="a folder of class/photo, or with train/ [val/ test/]")
    parser.add_argument("--out", type=Path, metavar="MODEL", help="models/NAME (default: models/ and DATA's own name)")

    learn = parser.add_argument_group("what to start from")
    learn.add_argument("--arch", default=default["arch"], help="the network; an unknown name lists them (%(default)s)")
    learn.add_argument(
        "--weights", default=default["weights"], metavar="imagenet|FILE|none",
        help="torchvision's ImageNet weights, a state-dict file, or a random start (%(default)s)",
    )  # fmt: skip
    learn.add_argument(
        "--freeze", type=_freeze, metavar="0..5|all",
        help="conv stages, from the input, that keep their weights and statistics (3; 0 with --weights none)",
    )  # fmt: skip
    learn.add_argument("--reinit", action="store_true", help="start what is not frozen at random (default: continue)")
    learn.add_argument("--resume", action="store_true", help="go on with a run that was cut off, if there is one")

    _add_photos(parser.add_argument_group("photos"), default)
    _add_learning(parser.add_argument_group("learning"), default)
    parser.add_argument(
        "--int8", action="store_true",
        help="then publish an int8 version too, about twice as fast on CPUs; resnets only (default: float alone)",
    )  # fmt: skip
    add_max_loss(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_max_loss(parser: argparse.ArgumentParser) -> None:
    """Add --max-loss, which `penult train` and `penult quantize` share."""
    parser.add_argument(
        "--max-loss", type=float, default=TrainSettings.max_loss, metavar="POINTS",
        help="most percentage points of validation accuracy that may be lost, else it is refused (%(default)s)",
    )  # fmt: skip


def check_int8(architecture: str) -> None:
    """Raise SettingsError for a network that int8 would not make faster."""
    if architecture not in INT8_ARCHITECTURES:
        raise SettingsError(
            "INT8_ARCHITECTURE",
            f"int8 is for {', '.join(INT8_ARCHITECTURES)}: {architecture} was not measured to gain by it, and mobile "
            "networks were measured slower than in float; serve the float model",
        )


def _add_photos(split: Any, default: dict[str, Any]) -> None:
    """Add the options of what is learnt from, and how a photo is looked at."""
    split.add_argument(
        "--val", default=default["val"], metavar="DIR|FRACTION",
        help="photos that decide rates and stopping; DATA/val wins over a fraction (%(default)s)",
    )  # fmt: skip
    split.add_argument(
        "--test", default=default["test"], metavar="DIR|FRACTION",
        help="photos that only the final report sees; DATA/test wins over a fraction (%(default)s)",
    )  # fmt: skip
    split.add_argument(
        "--augment", choices=AUGMENTATIONS, default=default["augment"],
        help="photo: random crops and mirroring; topdown: quarter turns too, for what is seen from above and has no "
        "upside; gentle: small turns and shifts, never mirrored (%(default)s)",
    )  # fmt: skip
    split.add_argument(
        "--fit", choices=FITS, default=default["fit"],
        help="crop: the network looks at the middle square of a photo; stretch: at the whole of it, squeezed to a "
        "square (%(default)s)",
    )  # fmt: skip
    split.add_argument(
        "--crop", type=int, default=default["crop"], metavar="PIXELS",
        help="side of what the network looks at: more shows finer detail and costs its square (0: its own, 224)",
    )  # fmt: skip
    split.add_argument(
        "--resize", type=int, default=default["resize"], metavar="PIXELS",
        help="a photo's shorter side before the middle is cut out; less shows more of it (0: its own, 256, or --crop; "
        "with --fit stretch --crop)",
    )  # fmt: skip
    split.add_argument(
        "--train-crop", type=int, default=default["train_crop"], metavar="PIXELS",
        help="side of the crops learnt from: 176 instead of 224 learns 1.6 times faster (0: as in serving)",
    )  # fmt: skip
    split.add_argument(
        "--views", type=int, choices=VIEWS, default=default["views"],
        help="serve the mean descriptor of so many views of each photo: 2 with its mirror image, 4 and 8 turned too; a "
        "point better or so, at so many times the cost (%(default)s)",
    )  # fmt: skip
    split.add_argument(
        "--cache-mb", type=int, default=default["cache_mb"], help="memory for decoded photos, MiB (%(default)s)"
    )


def _add_learning(fit: Any, default: dict[str, Any]) -> None:
    """Add the options of learning to their group."""
    fit.add_argument(
        "--schedule", choices=(PLATEAU, ONE_CYCLE), default=default["schedule"],
        help="plateau: validation loss lowers the rate and stops; onecycle: up and down over all epochs (%(default)s)",
    )  # fmt: skip
    fit.add_argument(
        "--lr", choices=("fixed", "auto"), default=default["lr"],
        help="auto: a range test of 50 steps scales the rates below (%(default)s)",
    )  # fmt: skip
    fit.add_argument(
        "--class-weights", choices=("none", BALANCED), default=default["class_weights"],
        help="balanced: rare classes weigh as much as common ones (%(default)s)",
    )  # fmt: skip
    fit.add_argument(
        "--svm", choices=SVM_KERNELS, default=default["svm"],
        help="the SVM's kernel; auto: rbf where it is clearly better in cross-validation; it is tried on 5 photos per "
        "class or more, 4,000 photos or fewer, and where that takes minutes (%(default)s)",
    )  # fmt: skip
    fit.add_argument(
        "--whiten", type=int, default=default["whiten"], metavar="N",
        help="descriptors of N numbers by PCA-whitening, for neighbours: smaller, and seldom worse (0: as they are)",
    )  # fmt: skip
    fit.add_argument(
        "--precision", choices=PRECISIONS, default=default["precision"],
        help="auto: bf16 on GPUs that have it, fp16 on others, fp32 on the CPU (%(default)s)",
    )  # fmt: skip
    for name, unit, kind in (
        ("epochs", "most epochs over all layers that learn", int),
        ("head_epochs", "most epochs of the head alone, on cached descriptors", int),
        ("batch_size", "photos per step", int),
        ("lr_head", "learning rate of the head", float),
        ("lr_backbone", "learning rate of the last conv stage", float),
        ("lr_stage_decay", "times this per stage towards the input", float),
        ("lr_factor", "times this when validation loss stalls", float),
        ("lr_patience", "epochs without a better validation loss before that", int),
        ("stop_patience", "epochs without a better validation loss before stopping", int),
        ("weight_decay", "AdamW's weight decay", float),
        ("seed", "decides splits, order, augmentation and dropout", int),
    ):
        flag = "--" + name.replace("_", "-")
        fit.add_argument(flag, type=kind, default=default[name], help=f"{unit} (%(default)s)")
    fit.add_argument("--dropout", type=float, help="before the dense layers (default: 0.2; 0.5 for alexnet and vgg16)")
    fit.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where to learn (%(default)s)")
    fit.add_argument("--save-weights", type=Path, metavar="FILE", help="also write the network's state dict")
    fit.add_argument(
        "--sweep", choices=SWEEPS, default=default["sweep"],
        help="freeze: all depths of freezing; labels: accuracy by labels per class; publishes nothing (%(default)s)",
    )  # fmt: skip
    fit.add_argument("--repeats", type=int, default=default["repeats"], help="seeds per trial of a sweep (%(default)s)")
    fit.add_argument("--tensorboard", type=Path, metavar="DIR", help="also write TensorBoard event files")
    fit.add_argument(
        "--no-report-photos", dest="report_photos", action="store_false",
        help="show none of the test photos in the report (default: those that were most surely named wrong)",
    )  # fmt: skip
    fit.add_argument(
        "--dry-run", action="store_true",
        help="only say what a run would do, how large it would be and how long it would take; learn and write nothing",
    )  # fmt: skip


def from_arguments(arguments: argparse.Namespace) -> TrainSettings:
    """Turn parsed options into settings; raise SettingsError."""
    values = {f.name: getattr(arguments, f.name) for f in fields(TrainSettings)}
    if values["out"] is None:
        from penult.bundle.naming import last_part  # brings NumPy and Pillow along

        values["out"] = Path("models") / (re.sub(r"[^A-Za-z0-9_-]+", "-", last_part(arguments.data))[:64] or "model")
    if values["freeze"] is None:
        values["freeze"] = 0 if values["weights"] == "none" else TrainSettings.freeze
    return TrainSettings(**values)


def freeze_text(count: int) -> int | str:
    """Return what --freeze takes for a number of stages: 0 to 5, or all."""
    return "all" if count > ALL_STAGES else count


def _freeze(text: str) -> int:
    if text == "all":
        return FREEZE_ALL
    if text in map(str, range(ALL_STAGES + 1)):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2, 3, 4, 5 or all")
