"""The options of `penult train`, checked once. Light to import: the command line shows help without loading torch."""

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from penult.export.config import abstaining, no_effect, one_class, photos
from penult.export.config import budget as budgets
from penult.export.errors import SettingsError
from penult.settings import setting

ALL_STAGES = 5
# What `--freeze all` means: the five conv stages and the hidden dense layers; only the head learns.
FREEZE_ALL = ALL_STAGES + 1
# As penult.bundle.preprocess has them, which takes longer to import.
CROP, STRETCH = FITS = ("crop", "stretch")
VIEWS = (1, 2, 4, 8)
AUGMENTATIONS = ("photo", "topdown", "gentle", "none")
PLATEAU, ONE_CYCLE = "plateau", "onecycle"
BALANCED = "balanced"
SWEEPS = ("no", "freeze", "labels", "layers")
# What may leave a network as the descriptor, from the input: the mean of a conv stage's output, the first of several
# hidden dense layers (fc6 of AlexNet and VGG), or what the dense head reads.
DENSE1, PENULTIMATE = "dense1", "penultimate"
STAGES = tuple(f"stage{number}" for number in range(1, ALL_STAGES + 1))
LAYERS = (*STAGES, DENSE1, PENULTIMATE)
DESCRIPTORS = (PENULTIMATE, *STAGES[2:], DENSE1)
SVM_KERNELS = ("auto", "linear", "rbf")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Where int8 pays on CPUs; on mobilenet_v3_small it took 2.2 times as long as float, on efficientnet_b0 1.3 times
# (research/ceilings.md, section 2): depthwise convolutions have too little arithmetic to save.
INT8_ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "tiny5")


def freeze_text(count: int) -> int | str:
    """Return what --freeze takes for a number of stages: 0 to 5, or all."""
    return "all" if count > ALL_STAGES else count


def _freeze(text: str) -> int:
    if text == "all":
        return FREEZE_ALL
    if text in map(str, range(ALL_STAGES + 1)):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2, 3, 4, 5 or all")


def _file_name(value: str) -> str:
    """Return a file's name without the folders of this machine; a fraction as it is."""
    return Path(value).name


_count = partial(setting, minimum=1)
_amount = partial(setting, minimum=0)
_pixels = partial(setting, 0, minimum=0, below=4096, metavar="PIXELS")
# What decides nothing about the network that is learnt, or is a place on this machine.
_unrecorded = partial(setting, recorded=False)
max_loss = partial(_unrecorded, 0.5, minimum=0, below=100, metavar="POINTS")
class_weights = partial(
    setting, "none", "balanced weighs rare classes as much as common ones", choices=("none", BALANCED)
)


@dataclass(frozen=True)
class TrainSettings(photos.LearningSettings):
    """One training run. Rates are those of AdamW, patience counts epochs, fractions are shares of the photos left."""

    PREFIX: ClassVar[str] = "PENULT_TRAIN_"

    data: Path = _unrecorded(MISSING, photos.DATA_HELP, is_positional=True)
    out: Path = _unrecorded(MISSING, "folder of the model", metavar="MODEL", shown="models/ and DATA's own name")

    arch: str = setting("resnet18", "network to fine-tune; an unknown name lists all", metavar="NAME", group="start")
    weights: str = setting(
        "imagenet", "ImageNet weights, a state-dict file or a random start", metavar="imagenet|FILE|none",
        recorded=_file_name,
    )  # fmt: skip
    freeze: int = setting(
        3, "conv stages, from the input, that keep weights and statistics", read=_freeze, recorded=freeze_text,
        metavar="0..5|all", minimum=0, maximum=FREEZE_ALL, shown="3; 0 with --weights none",
    )  # fmt: skip
    reinit: bool = setting(False, "start layers that are not frozen at random")
    resume: bool = _unrecorded(False, "resume an interrupted run, if there is one")

    val: str = setting(
        "0.15", "images for learning rate and early stopping; DATA/val takes precedence", metavar="DIR|FRACTION",
        recorded=_file_name, group="images", shown="0.15; 0.3 with --max-error",
    )  # fmt: skip
    test: str = setting(
        "0.15", "images for the final report only; DATA/test takes precedence", metavar="DIR|FRACTION",
        recorded=_file_name,
    )  # fmt: skip
    images: Path | None = photos.images()
    skip_missing: bool = photos.skip_missing()
    exclude: Path | None = photos.exclude()
    group_by: str = photos.group_by()
    augment: str = setting(
        "photo", "crops and mirroring, topdown also turns, gentle small shifts only", choices=AUGMENTATIONS
    )
    fit: str = setting(CROP, "center crop, or stretch the whole image to a square", choices=FITS)
    crop: int = _pixels("side of the network's input; 0: the network's own")
    resize: int = _pixels("shorter side before the center crop; 0: the network's own")
    train_crop: int = _pixels("side of training crops; 0: as in serving")
    views: int = setting(1, "views of an image to average in serving, each at full cost", choices=VIEWS)
    cache_mb: int = _unrecorded(2048, "memory for decoded images, MiB", minimum=0)

    schedule: str = setting(
        PLATEAU, "plateau follows validation loss; onecycle spans all epochs", choices=(PLATEAU, ONE_CYCLE),
        group="learning",
    )  # fmt: skip
    lr: str = setting("fixed", "auto scales learning rates by a range test of 50 steps", choices=("fixed", "auto"))
    epochs: int = _count(30, "epochs at most over all layers that learn")
    head_epochs: int = _count(40, "epochs at most of the head alone")
    batch_size: int = _count(32, "images per step")
    lr_head: float = _amount(1e-3, "learning rate of the head")
    lr_backbone: float = _amount(1e-4, "learning rate of the last conv stage")
    lr_stage_decay: float = _amount(0.3, "factor on the learning rate per stage towards the input")
    lr_factor: float = _amount(0.3, "factor on learning rates when validation loss stalls", below=1)
    lr_patience: int = _amount(3, "epochs without improvement before learning rates fall")
    stop_patience: int = setting(10, "epochs without improvement before training stops")
    weight_decay: float = _amount(1e-2, "weight decay of AdamW")
    dropout: float | None = _amount(
        None, "dropout before the dense layers", below=1, shown="0.2; 0.5 for alexnet and vgg16"
    )
    dropout_channels: float = _amount(
        0.0, "dropout of whole channels before hidden dense layers; alexnet, vgg16", below=1, omits_default=True
    )
    class_weights: str = class_weights()
    descriptor: str = setting(
        PENULTIMATE, "layer that the SVM scores and collections store", choices=DESCRIPTORS, omits_default=True
    )
    svm: str = setting("auto", "kernel of the SVM; auto chooses by cross-validation", choices=SVM_KERNELS)
    whiten: int = _amount(0, "length of PCA-whitened descriptors; 0: no whitening")
    precision: str = setting("auto", "arithmetic; auto: bf16 or fp16 on GPUs, fp32 on CPUs", choices=PRECISIONS)
    seed: int = _amount(0, "seed of splits, order, augmentation and dropout", below=2**32)
    device: str = _unrecorded("auto", "where to train", choices=("auto", "cuda", "cpu"))

    max_error: float | None = abstaining.max_error(omits_default=True, group="answers", shown="none")
    per_class: bool = setting(False, abstaining.PER_CLASS_HELP, omits_default=True)

    # Recorded apart, by models with one class only.
    novelty: str = one_class.measure(one_class.NEAREST, recorded=False, group="one class")
    false_alarms: float = one_class.false_alarms(one_class.FALSE_ALARMS, recorded=False, shown="2.5%")
    outliers: Path | None = one_class.outliers(recorded=False)

    save_weights: Path | None = _unrecorded(
        None, "also write the network's state dict", metavar="FILE", group="results"
    )
    tensorboard: Path | None = _unrecorded(None, "also write TensorBoard event files", metavar="DIR")
    report_photos: bool = _unrecorded(True, "show test images in the report")
    # What becomes of the network afterwards; an int8 bundle's manifest records it.
    int8: bool = _unrecorded(False, "also publish an int8 version, faster on CPUs; resnets only")
    max_loss: float = max_loss("percentage points of validation accuracy that int8 may lose")
    sweep: str = setting("no", "compare freezing depths, numbers of labels, or layers; publish nothing", choices=SWEEPS)
    repeats: int = _count(1, "seeds per trial of a sweep")
    dry_run: bool = _unrecorded(False, "report what a run would do, without training or writing")

    budget: str = _unrecorded(
        "", "choose network and options, train, and publish within this time", read=budgets.budget_time,
        metavar="90s|20m|2h|quick", group="budget",
    )  # fmt: skip
    budget_plan: Path | None = _unrecorded(None, "repeat the final training of a budget.json exactly", metavar="FILE")
    # The options that are given, which --budget does not choose.
    pinned: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Reject settings that cannot work, each with what to change."""
        super().__post_init__()
        if self.weights == "none" and self.freeze:
            raise SettingsError(
                "FREEZE", "--weights none starts at random, and random layers must learn: add --freeze 0"
            )
        if self.reinit and self.freeze == FREEZE_ALL:
            raise SettingsError("FREEZE", "--reinit restarts what is not frozen, and --freeze all freezes everything")
        budgets.check(self)
        no_effect.refuse(self)
        self._check_schedule()
        if self.int8:
            check_int8(self.arch)
        self._check_views()
        self._check_sweep()

    @property
    def freezes_all(self) -> bool:
        """Whether nothing but the head learns."""
        return self.freeze == FREEZE_ALL

    @property
    def asks_for_frozen(self) -> bool:
        """Whether --freeze all is given to --budget."""
        return self.freezes_all and "freeze" in self.pinned

    def _check_sweep(self) -> None:
        """Refuse a sweep that would have nothing to compare."""
        if self.sweep in ("freeze", "labels") and self.weights == "none":
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

    @classmethod
    def given(
        cls, flags: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> dict[str, Any]:
        """Merge what is given, and add the defaults that depend on it: the model's name, and what is frozen."""
        found = super().given(flags, file, environment)
        if "out" not in found:
            from penult.bundle.naming import last_part  # brings NumPy and Pillow along

            name = last_part(photos.named_by(found["data"]))
            found["out"] = Path("models") / (re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:64] or "model")
        if found.get("weights") == "none":
            found.setdefault("freeze", 0)
        if found.get("max_error") is not None:  # half of them certify, and choose nothing
            found.setdefault("val", "0.3")
        if found.get("budget") or found.get("budget_plan"):
            found["pinned"] = budgets.pinned(found)
        return found


def check_int8(architecture: str) -> None:
    """Raise SettingsError for a network that int8 would not make faster."""
    # Those of timm with these names are the same networks; a tag names their weights.
    if architecture.removeprefix("timm/").partition(".")[0] not in INT8_ARCHITECTURES:
        raise SettingsError(
            "INT8_ARCHITECTURE",
            f"int8 is for {', '.join(INT8_ARCHITECTURES)}: {architecture} was not measured to gain by it, and mobile "
            "networks were measured slower than in float; serve the float model",
        )
