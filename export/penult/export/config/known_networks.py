"""Facts about each network that need no PyTorch, so that wrong options are rejected before it is imported.

A network has five stages from the input; each ends where the resolution halves (AlexNet's are its five convolutions).
`dense` are hidden dense layers between the last convolution and the descriptor. They are frozen by `--freeze all` only.
The networks of timm, `timm/NAME`, are in no table: timm_facts.py computes what is known of them when they are chosen.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from penult.bundle.preprocess import SRGB, Preprocess
from penult.export.config import timm_facts
from penult.export.config.train import DENSE1, LAYERS, STRETCH, TrainSettings
from penult.export.errors import SettingsError
from penult.nearest import did_you_mean

IMAGENET, IMAGENET_V2 = "imagenet", "imagenet-v2"
TIMM = timm_facts.PREFIX


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        stages: The module names of each conv stage.
        descriptor_length: Numbers per descriptor.
        dense: The module names of hidden dense layers.
        downloads: The weights that torchvision or timm has for it.
        parameters: Its parameters up to the descriptor.
        mean_is_last: The descriptor is the mean of the last map over its pixels, so that class maps are exact.
        classifier: What the names of its own classifier's tensors start with, which a weights file may have.
        notes: Lines to print when it is chosen.
        dense1: The module that ends the first of several hidden dense layers, "" if there are none.
        before_dense: The module whose maps those layers read.
    """

    name: str
    stages: tuple[tuple[str, ...], ...]
    descriptor_length: int
    dense: tuple[str, ...] = ()
    dropout: float = 0.2
    preprocess: Preprocess = field(default_factory=Preprocess)
    downloads: tuple[str, ...] = (IMAGENET,)
    parameters: int = 0
    mean_is_last: bool = True
    classifier: tuple[str, ...] = ("fc.", "classifier.", "head.")
    notes: tuple[str, ...] = ()
    dense1: str = ""
    before_dense: str = ""

    @property
    def library(self) -> str:
        """The library that has its code and its downloads."""
        return "timm" if self.name.startswith(TIMM) else "torchvision"


def _features(*bounds: int) -> tuple[tuple[str, ...], ...]:
    """Name the modules features.A … features.B-1 of each stage."""
    return tuple(tuple(f"features.{i}" for i in range(a, b)) for a, b in pairwise(bounds))


_RESNET = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_TINY = Preprocess(resize=32, crop=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_DENSE = ("classifier",)
_BOTH = (IMAGENET, IMAGENET_V2)

NETWORKS = {
    network.name: network
    for network in (
        Network("resnet18", _RESNET, 512, parameters=11_176_512),
        Network("resnet34", _RESNET, 512, parameters=21_284_672),
        Network("resnet50", _RESNET, 2048, downloads=_BOTH, parameters=23_508_032),
        Network("resnet101", _RESNET, 2048, downloads=_BOTH, parameters=42_500_160),
        Network(
            "convnext_tiny",
            _features(0, 1, 2, 4, 6, 8),
            768,
            _DENSE,
            preprocess=Preprocess(resize=236),
            parameters=27_820_128,
            mean_is_last=False,
        ),
        Network("mobilenet_v2", _features(0, 2, 4, 7, 14, 19), 1280, downloads=_BOTH, parameters=2_223_872),
        Network(
            "mobilenet_v3_small", _features(0, 1, 2, 4, 9, 13), 1024, _DENSE, parameters=1_517_856, mean_is_last=False
        ),
        Network(
            "mobilenet_v3_large",
            _features(0, 2, 4, 7, 13, 17),
            1280,
            _DENSE,
            downloads=_BOTH,
            parameters=4_202_032,
            mean_is_last=False,
        ),
        Network("squeezenet1_1", _features(0, 3, 6, 9, 11, 13), 512, parameters=722_496),
        Network("efficientnet_b0", _features(0, 2, 3, 4, 6, 9), 1280, parameters=4_007_548),
        Network(
            "alexnet",
            _features(0, 3, 6, 8, 10, 13),
            4096,
            _DENSE,
            0.5,
            parameters=57_003_840,
            mean_is_last=False,
            dense1="classifier.2",
            before_dense="avgpool",
        ),
        Network(
            "vgg16",
            _features(0, 5, 10, 17, 24, 31),
            4096,
            _DENSE,
            0.5,
            parameters=134_260_544,
            mean_is_last=False,
            dense1="classifier.1",
            before_dense="avgpool",
        ),
        Network(
            "tiny5", tuple((f"stages.{i}",) for i in range(5)), 128, preprocess=_TINY, downloads=(), parameters=190_032
        ),
    )
}


def get(name: str) -> Network:
    """Return the network of that name; raise SettingsError, which lists all names, if there is none."""
    if name.startswith(TIMM):
        return timm_facts.facts(name.removeprefix(TIMM), Network)
    if name not in NETWORKS:
        raise SettingsError(
            "ARCHITECTURE",
            f"--arch {name} is not one of {', '.join(names())}, or timm/NAME{did_you_mean(name, NETWORKS)}",
        )
    return NETWORKS[name]


def find(name: str) -> Network | None:
    """Return the network of that name; None if there is none, or if timm is not installed."""
    try:
        return get(name)
    except SettingsError:
        return None


def layers_of(network: Network) -> tuple[str, ...]:
    """Return the names of a network's layers, from the input, as --descriptor and --sweep layers name them."""
    return tuple(name for name in LAYERS if name != DENSE1 or network.dense1)


def check_layers(settings: TrainSettings) -> None:
    """Raise SettingsError if --descriptor or --dropout-channels needs hidden dense layers that the network lacks."""
    network = get(settings.arch)
    if settings.descriptor == DENSE1 and not network.dense1:
        raise SettingsError(
            "DESCRIPTOR",
            f"--descriptor {DENSE1} is for {_with_dense()}; penult knows no hidden dense layer before the penultimate "
            f"one of {network.name}; omit --descriptor",
        )
    if settings.dropout_channels and not network.before_dense:
        raise SettingsError(
            "DROPOUT_CHANNELS",
            f"--dropout-channels is for {_with_dense()}, not {network.name}; where each channel is averaged to one "
            "number, --dropout drops whole channels: use it",
        )


def _with_dense() -> str:
    return " and ".join(name for name in names() if NETWORKS[name].dense1)


def names() -> list[str]:
    """Return the names of all networks."""
    return sorted(NETWORKS)


def preprocess(settings: TrainSettings) -> Preprocess:
    """Return the network's preprocessing with the given sizes; raise SettingsError."""
    network = get(settings.arch)
    own = network.preprocess
    crop = settings.crop or own.crop
    if crop != own.crop:
        _check_crop(crop, network)
    if settings.resize and settings.resize < crop:
        raise SettingsError(
            "RESIZE", f"--resize {settings.resize} is smaller than the {crop} pixels of {settings.arch}'s input"
        )
    usual = crop if settings.fit == STRETCH else max(own.resize, crop)
    return replace(own, crop=crop, resize=settings.resize or usual, fit=settings.fit, colors=SRGB)


def _check_crop(crop: int, network: Network) -> None:
    """Raise SettingsError for an input size that the network cannot use or that is too small."""
    own = network.preprocess.crop
    if network.dense:
        raise SettingsError("CROP", f"--crop {crop}: the dense layers of {network.name} need {own} pixels; omit --crop")
    if crop < own // 2:
        raise SettingsError(
            "CROP",
            f"--crop {crop} is less than half of the {own} pixels of {network.name}; give at least {own // 2}",
        )
