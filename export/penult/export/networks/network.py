"""The network that is fine-tuned: a body that ends in the descriptor, and a head on top of it.

Frozen layers have no gradient and their batch norms are in eval mode. Only then do they normalise as in serving
(research/learning.md). A test asserts that frozen parameters and buffers are bit-equal after training.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from penult.bundle.preprocess import Preprocess
from penult.export.config.train import ALL_STAGES, FREEZE_ALL, TrainSettings
from penult.export.errors import SettingsError
from penult.export.networks import timm_networks, weights_file
from penult.export.networks.architectures import Architecture
from penult.export.networks.layers import Layer, Taken, layer_of, taking
from penult.export.networks.weights import match, read, say_once
from penult.export.networks.weights_names import State

Weights = dict[str, torch.Tensor]


@dataclass
class Rows:
    """The rows of a batch that this process has, from `first` on. `total` is 0 if it has the whole batch."""

    first: int = 0
    total: int = 0


class BatchDropout(nn.Module):
    """Dropout with a mask for the whole batch, so that it does not depend on the number of processes."""

    def __init__(self, share: float, rows: Rows, whole_photos: bool = False, whole_channels: bool = False) -> None:
        """Drop this share in train mode: of the numbers, of the photos, or of the channels of each photo.

        Dropping photos is stochastic depth (Huang et al. 2016), dropping channels is spatial dropout (Tompson et al.
        2015).
        """
        super().__init__()
        self.share = share
        self.rows = rows
        self.whole_photos = whole_photos
        self.whole_channels = whole_channels

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map [n, …] to the same shape; unchanged in eval mode."""
        if not self.training or not self.share:
            return values
        total = self.rows.total or len(values)
        own = 0 if self.whole_photos else 1 if self.whole_channels else values.dim() - 1
        shape = [*values.shape[1 : own + 1], *[1] * (values.dim() - 1 - own)]
        kept = values.new_empty(total, *shape).bernoulli_(1 - self.share)
        return values * kept[self.rows.first : self.rows.first + len(values)] / (1 - self.share)

    def extra_repr(self) -> str:
        """Show the share."""
        return f"p={self.share}"


class Normalise(nn.Module):
    """Scale and normalise uint8 [N, H, W, 3] to float [N, 3, H, W]. It is part of the exported graph."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: Preprocess) -> None:
        """Use mean and std of the preprocessing values."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean) * 255)
        self.register_buffer("std", torch.tensor(spec.std) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise per channel, then move channels first.

        Mean and deviation are repeated along the rows of the image.
        Then onnxruntime subtracts and divides 15 times faster than triples of channels, with bit-identical results. At
        224 pixels it takes 0.1 instead of 1.5 ms, which is a third of the time of mobilenet_v3_small.
        """
        width = pixels.shape[2]
        rows = (pixels.flatten(2).float() - self.mean.repeat(width)) / self.std.repeat(width)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


class Whitening(nn.Module):
    """PCA-whitening as a layer (evaluation/whitening.py): descriptors float [N, length] to float [N, kept]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Use weight [kept, length] and bias [kept]."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, descriptors: torch.Tensor) -> torch.Tensor:
        """Normalise descriptors to unit length, then map them."""
        return F.linear(F.normalize(descriptors, dim=1), self.weight, self.bias)


class PenultNet(nn.Module):
    """Body and head. forward(): float [N, 3, H, W] → (logits float [N, classes], descriptor float [N, length]).

    `descriptor_length` is what the body gives and the head reads. If `layer` is set, another layer leaves the network
    as the descriptor, with `served_length` numbers. `whitening` maps what leaves, once it is learnt.
    """

    def __init__(self, body: nn.Module, descriptor_length: int, classes: int, dropout: float, views: int = 1) -> None:
        """Put a new head (dropout, then dense) on a body that ends in `descriptor_length` numbers.

        In eval mode the descriptor is the mean over `views` of the photo, 1, 2, 4 or 8; see make_views().
        """
        super().__init__()
        self.rows = Rows()
        self.body = body
        _replace_dropout(body, dropout, self.rows)
        self.head = nn.Sequential(BatchDropout(dropout, self.rows), nn.Linear(descriptor_length, classes))
        self.descriptor_length = self.served_length = descriptor_length
        self.layer: Layer | None = None
        self.classes = classes
        self.views = views
        self.whitening: nn.Module = nn.Identity()
        self._frozen: list[nn.Module] = []

    @contextmanager
    def single_view(self) -> Iterator[None]:
        """Use one view of each photo inside, which is enough to compare epochs and costs less."""
        served, self.views = self.views, 1
        try:
            yield
        finally:
            self.views = served

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the descriptor (before dropout) and the logits."""
        read, served = self.outputs(pixels)
        return self.head(read), self.whitening(served)

    def outputs(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the head reads, and the raw descriptor that leaves the network, float [N, length] each."""
        if self.layer is None:
            read = self.describe(pixels)
            return read, read
        read, taken = self.describe_layers(pixels, [self.layer])
        return read, taken[self.layer.name]

    def describe_layers(self, pixels: torch.Tensor, layers: Sequence[Layer]) -> tuple[torch.Tensor, Taken]:
        """Return what the head reads, and the output of each layer by name, float [N, length] each; as describe()."""
        with taking(self.body, layers) as taken:
            read = self.describe(pixels)
        return read, {name: self._mean_of_views(seen) for name, seen in taken.items()}

    def describe(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the head reads, float [N, length], of normalised pixels float [N, 3, H, W].

        In eval mode these are means over the views of each photo, as in Krizhevsky et al. 2012, section 4.1. In train
        mode one view is used, because augmentation produces the others.
        """
        if self._sees_one_view:
            return cast("torch.Tensor", self.body(pixels))
        return self._mean_of_views(self.body(make_views(pixels, self.views)))

    @property
    def _sees_one_view(self) -> bool:
        return self.training or self.views == 1

    def _mean_of_views(self, seen: torch.Tensor) -> torch.Tensor:
        return seen if self._sees_one_view else seen.view(self.views, -1, seen.shape[1]).mean(0)

    def freeze(self, modules: list[nn.Module]) -> None:
        """Freeze these modules of the body, and no others."""
        self._frozen = modules
        self.requires_grad_(True)
        for module in modules:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch modes. Frozen modules stay in eval mode, so that their running statistics do not change."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def make_views(pixels: torch.Tensor, views: int) -> torch.Tensor:
    """Return 2, 4 or 8 views [views x N, 3, S, S] of square photos [N, 3, S, S].

    Two views are the photo and its mirror image. Four add both rotated by a quarter turn. Eight are all rotations of
    both.
    """
    seen = [pixels]
    if views >= 2:
        seen += [view.flip(3) for view in seen]
    if views >= 8:
        seen += [view.flip(2) for view in seen]
    if views >= 4:
        seen += [view.transpose(2, 3) for view in seen]
    return torch.cat(seen)


def build(architecture: Architecture, settings: TrainSettings, classes: int) -> PenultNet:
    """Build the network and load its weights, with nothing frozen; raise SettingsError if the weights do not fit."""
    torch.manual_seed(settings.seed)
    body = architecture.body()
    for note in architecture.notes:
        say_once(f"note: --arch {architecture.name}: {note}")
    if settings.weights != "none":
        own = body.state_dict()
        weights_file.check(settings.weights, architecture)
        is_download = settings.weights in weights_file.DOWNLOADS
        state = _download(architecture, settings.weights) if is_download else read(settings.weights)
        loaded = match(own, state, settings.weights, architecture.name)
        if settings.reinit:
            kept = tuple(f"{path}." for stage in architecture.stages[: settings.freeze] for path in stage)
            loaded = {key: value if key.startswith(kept) else own[key] for key, value in loaded.items()}
        body.load_state_dict(loaded)
    size = architecture.preprocess.crop
    layer = layer_of(architecture, settings.descriptor)
    with torch.no_grad(), taking(body, [layer] if layer else []) as taken:
        length = body.eval()(torch.zeros(1, 3, size, size)).shape[1]
    dropout = architecture.dropout if settings.dropout is None else settings.dropout
    net = PenultNet(body, length, classes, dropout, settings.views)
    if layer:
        net.layer, net.served_length = layer, taken[layer.name].shape[1]
    if settings.dropout_channels:
        _drop_channels(net, architecture.before_dense, settings.dropout_channels)
    return net


def copy_weights(net: nn.Module) -> Weights:
    """Return a copy of all parameters and buffers."""
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def stage_modules(net: PenultNet, architecture: Architecture) -> list[list[nn.Module]]:
    """Return the modules of the five conv stages, then those of the hidden dense layers, which may be none."""
    return [[net.body.get_submodule(path) for path in paths] for paths in (*architecture.stages, architecture.dense)]


def freeze_stages(net: PenultNet, architecture: Architecture, count: int) -> None:
    """Freeze the first `count` conv stages; FREEZE_ALL freezes the whole body with its hidden dense layers."""
    stages = stage_modules(net, architecture)
    net.freeze([net.body] if count >= FREEZE_ALL else [module for stage in stages[:count] for module in stage])


def parameter_groups(net: PenultNet, architecture: Architecture, settings: TrainSettings) -> list[dict[str, Any]]:
    """Return AdamW's groups: the head, the hidden dense layers, then stages 5 to 1 with falling rates."""
    fresh = settings.starts_fresh
    groups: list[dict[str, Any]] = [{"name": "head", "params": list(net.head.parameters()), "lr": settings.lr_head}]
    *stages, dense = stage_modules(net, architecture)
    top = settings.lr_head if fresh else settings.lr_backbone
    decay = 1.0 if fresh else settings.lr_stage_decay
    rates = [("dense", dense, top)]
    rates += [(f"stage {n + 1}", stages[n], top * decay ** (ALL_STAGES - 1 - n)) for n in reversed(range(ALL_STAGES))]
    for name, modules, rate in rates:
        if learning := [p for module in modules for p in module.parameters() if p.requires_grad]:
            groups.append({"name": name, "params": learning, "lr": rate})
    return groups


def _replace_dropout(body: nn.Module, share: float, rows: Rows) -> None:
    """Set the dropout before hidden dense layers (AlexNet, VGG) to the head's; stochastic depth keeps its own."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, BatchDropout(share, rows))
            elif isinstance(child, StochasticDepth):
                setattr(parent, name, BatchDropout(child.p, rows, whole_photos=True))


def _drop_channels(net: PenultNet, path: str, share: float) -> None:
    """Drop whole channels of a module's maps; the module has no weights, so no name changes."""
    parent, _, name = path.rpartition(".")
    maps = net.body.get_submodule(path)
    dropout = BatchDropout(share, net.rows, whole_channels=True)
    setattr(net.body.get_submodule(parent), name, nn.Sequential(maps, dropout))


def _download(architecture: Architecture, weights: str) -> State:
    arch = architecture.name
    if architecture.library == "timm":
        return timm_networks.download(arch)
    try:
        choices = torchvision.models.get_model_weights(arch)
        wanted = "IMAGENET1K_V2" if weights == "imagenet-v2" else "IMAGENET1K_V1"
        state: State = choices[wanted].get_state_dict(progress=True, check_hash=True)
        return state
    except (ValueError, KeyError):
        raise SettingsError(
            "WEIGHTS", f"torchvision has no {weights} weights for {arch}; give a file or none"
        ) from None
    except (URLError, OSError, RuntimeError) as error:
        raise SettingsError(
            "WEIGHTS",
            f"the weights of {arch} cannot be downloaded ({error}); download them elsewhere and give --weights FILE",
        ) from error
