"""The networks that penult can fine-tune: which modules make each conv stage, and where the descriptor is.

Five stages from the input, cut where the resolution halves (for AlexNet: its five convolutions). `dense` are hidden
dense layers between the last convolution and the descriptor; they always learn, unless everything is frozen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torchvision
from torch import nn

from penult.bundle.preprocess import Preprocess
from penult.export.errors import SettingsError


@dataclass(frozen=True)
class Architecture:
    """One network. `cut` turns torchvision's model into one whose output is the descriptor, before any dropout."""

    name: str
    stages: tuple[tuple[str, ...], ...]
    cut: Callable[[nn.Module], None]
    dense: tuple[str, ...] = ()
    dropout: float = 0.2
    preprocess: Preprocess = field(default_factory=Preprocess)

    def body(self) -> nn.Module:
        """Build the network up to the descriptor, with random weights."""
        model = Tiny5() if self.name == "tiny5" else torchvision.models.get_model(self.name, weights=None)
        self.cut(model)
        return model


class Tiny5(nn.Module):
    """Five 3x3 convolutions for pictures of about 32 x 32 pixels, such as digits; 128 numbers per descriptor."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        widths, strides = (3, 16, 32, 64, 96, 128), (1, 2, 1, 2, 1)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
                )
                for before, after, stride in zip(widths, widths[1:], strides, strict=False)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map float [N, 3, H, W] to descriptors, float [N, 128]."""
        return self.pool(self.stages(pixels)).flatten(1)


def get(name: str) -> Architecture:
    """Return the architecture of that name; raise SettingsError naming those there are."""
    if name not in _ALL:
        raise SettingsError("ARCHITECTURE", f"--arch {name}: not one of {', '.join(sorted(_ALL))}")
    return _ALL[name]


def names() -> list[str]:
    """Return the names of all architectures."""
    return sorted(_ALL)


def _replace_head(attribute: str, keep: int = 0) -> Callable[[nn.Module], None]:
    """Keep the first `keep` modules of a classifier, and no more."""

    def cut(model: nn.Module) -> None:
        classifier = getattr(model, attribute)
        setattr(model, attribute, nn.Sequential(*list(classifier.children())[:keep]) if keep else nn.Identity())

    return cut


def _pool_instead(model: nn.Module) -> None:
    model.classifier = nn.AdaptiveAvgPool2d(1)


def _features(*bounds: int) -> tuple[tuple[str, ...], ...]:
    """Name the modules features.A … features.B-1 of each stage."""
    return tuple(tuple(f"features.{i}" for i in range(a, b)) for a, b in pairwise(bounds))


_RESNET = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_TINY = Preprocess(resize=32, crop=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

_ALL = {
    architecture.name: architecture
    for architecture in (
        *(
            Architecture(name, _RESNET, _replace_head("fc"))
            for name in ("resnet18", "resnet34", "resnet50", "resnet101")
        ),
        Architecture(
            "convnext_tiny",
            _features(0, 1, 2, 4, 6, 8),
            _replace_head("classifier", 2),
            ("classifier",),
            preprocess=Preprocess(resize=236),
        ),
        Architecture("mobilenet_v2", _features(0, 2, 4, 7, 14, 19), _replace_head("classifier")),
        Architecture(
            "mobilenet_v3_small", _features(0, 1, 2, 4, 9, 13), _replace_head("classifier", 2), ("classifier",)
        ),
        Architecture(
            "mobilenet_v3_large", _features(0, 2, 4, 7, 13, 17), _replace_head("classifier", 2), ("classifier",)
        ),
        Architecture("squeezenet1_1", _features(0, 3, 6, 9, 11, 13), _pool_instead),
        Architecture("efficientnet_b0", _features(0, 2, 3, 4, 6, 9), _replace_head("classifier")),
        Architecture("alexnet", _features(0, 3, 6, 8, 10, 13), _replace_head("classifier", 6), ("classifier",), 0.5),
        Architecture("vgg16", _features(0, 5, 10, 17, 24, 31), _replace_head("classifier", 5), ("classifier",), 0.5),
        Architecture("tiny5", tuple((f"stages.{i}",) for i in range(5)), lambda model: None, preprocess=_TINY),
    )
}
