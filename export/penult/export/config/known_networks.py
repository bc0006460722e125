"""Facts about each network that need no PyTorch, so that wrong options are rejected before it is imported.

A network has five stages from the input; each ends where the resolution halves (AlexNet's are its five convolutions).
`dense` are hidden dense layers between the last convolution and the descriptor. They are frozen by `--freeze all` only.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from penult.bundle.preprocess import SRGB, Preprocess
from penult.export.config.train import STRETCH, TrainSettings
from penult.export.errors import SettingsError
from penult.nearest import did_you_mean

IMAGENET, IMAGENET_V2 = "imagenet", "imagenet-v2"


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        stages: The module names of each conv stage.
        descriptor_length: Numbers per descriptor.
        dense: The module names of hidden dense layers.
        downloads: The weights that torchvision has for it.
    """

    name: str
    stages: tuple[tuple[str, ...], ...]
    descriptor_length: int
    dense: tuple[str, ...] = ()
    dropout: float = 0.2
    preprocess: Preprocess = field(default_factory=Preprocess)
    downloads: tuple[str, ...] = (IMAGENET,)


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
        Network("resnet18", _RESNET, 512),
        Network("resnet34", _RESNET, 512),
        Network("resnet50", _RESNET, 2048, downloads=_BOTH),
        Network("resnet101", _RESNET, 2048, downloads=_BOTH),
        Network("convnext_tiny", _features(0, 1, 2, 4, 6, 8), 768, _DENSE, preprocess=Preprocess(resize=236)),
        Network("mobilenet_v2", _features(0, 2, 4, 7, 14, 19), 1280, downloads=_BOTH),
        Network("mobilenet_v3_small", _features(0, 1, 2, 4, 9, 13), 1024, _DENSE),
        Network("mobilenet_v3_large", _features(0, 2, 4, 7, 13, 17), 1280, _DENSE, downloads=_BOTH),
        Network("squeezenet1_1", _features(0, 3, 6, 9, 11, 13), 512),
        Network("efficientnet_b0", _features(0, 2, 3, 4, 6, 9), 1280),
        Network("alexnet", _features(0, 3, 6, 8, 10, 13), 4096, _DENSE, 0.5),
        Network("vgg16", _features(0, 5, 10, 17, 24, 31), 4096, _DENSE, 0.5),
        Network("tiny5", tuple((f"stages.{i}",) for i in range(5)), 128, preprocess=_TINY, downloads=()),
    )
}


def get(name: str) -> Network:
    """Return the network of that name; raise SettingsError, which lists all names, if there is none."""
    if name not in NETWORKS:
        raise SettingsError(
            "ARCHITECTURE", f"--arch {name} is not one of {', '.join(names())}{did_you_mean(name, NETWORKS)}"
        )
    return NETWORKS[name]


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
