"""The networks that penult can fine-tune, as PyTorch modules that end at the descriptor.

penult.export.config.known_networks has what is known of them without building them.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torchvision
from torch import nn

from penult.export.config import known_networks
from penult.export.config.known_networks import Network
from penult.export.networks import timm_networks

names = known_networks.names


@dataclass(frozen=True)
class Architecture(Network):
    """A network that can be built. Its output is the descriptor, before any dropout."""

    def body(self) -> nn.Module:
        """Build the network up to the descriptor, with random weights."""
        if self.name.startswith(known_networks.TIMM):
            return timm_networks.body(self.name, self.dense)
        model = Tiny5() if self.name == "tiny5" else torchvision.models.get_model(self.name, weights=None)
        _CUTS[self.name](model)
        return model


class Tiny5(nn.Module):
    """Five 3x3 convolutions for images of about 32 x 32 pixels, such as digits; descriptors have 128 numbers."""

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
        """Map float [N, 3, H, W] to descriptors float [N, 128]."""
        pooled: torch.Tensor = self.pool(self.stages(pixels))
        return pooled.flatten(1)


def get(name: str) -> Architecture:
    """Return the architecture of that name; raise SettingsError, which lists all names, if there is none."""
    network = known_networks.get(name)
    return Architecture(**{f.name: getattr(network, f.name) for f in fields(Network)})


def _replace_head(attribute: str, keep: int = 0) -> Callable[[nn.Module], None]:
    """Return a function that keeps only the first `keep` modules of a model's classifier."""

    def cut(model: nn.Module) -> None:
        classifier = getattr(model, attribute)
        setattr(model, attribute, nn.Sequential(*list(classifier.children())[:keep]) if keep else nn.Identity())

    return cut


def _pool_instead(model: nn.Module) -> None:
    model.classifier = nn.AdaptiveAvgPool2d(1)


# Each turns torchvision's model into its body.
_CUTS: dict[str, Callable[[nn.Module], None]] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), _replace_head("fc")),
    **dict.fromkeys(("convnext_tiny", "mobilenet_v3_small", "mobilenet_v3_large"), _replace_head("classifier", 2)),
    **dict.fromkeys(("mobilenet_v2", "efficientnet_b0"), _replace_head("classifier")),
    "squeezenet1_1": _pool_instead,
    "alexnet": _replace_head("classifier", 6),
    "vgg16": _replace_head("classifier", 5),
    "tiny5": lambda model: None,
}
