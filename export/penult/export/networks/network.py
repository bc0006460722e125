"""The network that learns: a body that ends in the descriptor, a head on top, and a frozen beginning.

Frozen means no gradient *and* BatchNorm in eval mode: of the three ways in use, only that normalises as serving does
(research/learning.md). A test asserts that frozen parameters and buffers are bit-equal after training.
"""

from collections.abc import Iterator
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
from penult.export.networks import weights_file
from penult.export.networks.architectures import Architecture
from penult.export.networks.weights import State, match, read

Weights = dict[str, torch.Tensor]


@dataclass
class Rows:
    """Which rows of a batch this process holds: from `first` on, of `total` (0: all, there is no other process)."""

    first: int = 0
    total: int = 0


class BatchDropout(nn.Module):
    """Dropout whose mask is drawn for the whole batch, so that it does not depend on how many processes share it."""

    def __init__(self, share: float, rows: Rows, whole_photos: bool = False) -> None:
        """Drop this share of the numbers while learning; or of the photos (stochastic depth, Huang et al. 2016)."""
        super().__init__()
        self.share, self.rows, self.whole_photos = share, rows, whole_photos

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map [n, …] to the same shape: unchanged in eval mode."""
        if not self.training or not self.share:
            return values
        total = self.rows.total or len(values)
        shape = [1] * (values.dim() - 1) if self.whole_photos else values.shape[1:]
        kept = values.new_empty(total, *shape).bernoulli_(1 - self.share)
        return values * kept[self.rows.first : self.rows.first + len(values)] / (1 - self.share)

    def extra_repr(self) -> str:
        """Show the share."""
        return f"p={self.share}"


class Normalise(nn.Module):
    """Scale and normalise: uint8 [N, H, W, 3] → float [N, 3, H, W]. Part of the exported graph."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: Preprocess) -> None:
        """Take mean and std from the preprocessing values."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean) * 255)
        self.register_buffer("std", torch.tensor(spec.std) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise per channel, then put channels first.

        A row of the picture at a time, mean and deviation repeated along it: onnxruntime subtracts and divides long
        rows fifteen times faster than triples of channels (at 224 pixels 0.1 ms instead of 1.5: a third of
        mobilenet_v3_small's whole time). The values are the same, bit for bit.
        """
        width = pixels.shape[2]
        rows = (pixels.flatten(2).float() - self.mean.repeat(width)) / self.std.repeat(width)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


class Whitening(nn.Module):
    """PCA-whitening as a layer (evaluation/whitening.py): descriptors float [N, length] → float [N, kept]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Take weight [kept, length] and bias [kept]."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, descriptors: torch.Tensor) -> torch.Tensor:
        """Bring descriptors to unit length, then map them."""
        return F.linear(F.normalize(descriptors, dim=1), self.weight, self.bias)


class PenultNet(nn.Module):
    """Body and head. forward(): float [N, 3, H, W] → (logits float [N, classes], descriptor float [N, length]).

    `descriptor_length` is what the body gives and the head reads; `whitening` maps what leaves, once it is learnt.
    """

    def __init__(self, body: nn.Module, descriptor_length: int, classes: int, dropout: float, views: int = 1) -> None:
        """Put a new head (dropout, then dense) on a body that ends in `descriptor_length` numbers.

        What is served looks at each photo in so many `views`: 1, 2, 4 or 8, as look() has them.
        """
        super().__init__()
        self.rows = Rows()
        self.body = body
        _replace_dropout(body, dropout, self.rows)
        self.head = nn.Sequential(BatchDropout(dropout, self.rows), nn.Linear(descriptor_length, classes))
        self.descriptor_length, self.classes, self.views = descriptor_length, classes, views
        self.whitening: nn.Module = nn.Identity()
        self._frozen: list[nn.Module] = []

    @contextmanager
    def looking_once(self) -> Iterator[None]:
        """Look at each photo in one view for now: enough to tell epochs apart, at a part of the cost."""
        served, self.views = self.views, 1
        try:
            yield
        finally:
            self.views = served

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the descriptor (before dropout) and the logits."""
        descriptor = self.describe(pixels)
        return self.head(descriptor), self.whitening(descriptor)

    def describe(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the raw descriptors, float [N, length], of normalised pixels, float [N, 3, H, W].

        In eval mode they are means over views of each photo (Krizhevsky et al. 2012, section 4.1, averaged over such);
        while learning each is that of one view, since the others are learnt from anyway.
        """
        if self.training or self.views == 1:
            return cast("torch.Tensor", self.body(pixels))
        seen = self.body(look(pixels, self.views))
        return cast("torch.Tensor", seen.view(self.views, -1, self.descriptor_length).mean(0))

    def freeze(self, modules: list[nn.Module]) -> None:
        """Freeze these modules of the body, and no others."""
        self._frozen = modules
        self.requires_grad_(True)
        for module in modules:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch modes; frozen modules stay in eval mode, so that their running statistics cannot move."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def look(pixels: torch.Tensor, views: int) -> torch.Tensor:
    """Return square photos, [N, 3, S, S], in 2, 4 or 8 views, [views x N, 3, S, S].

    As they are and mirrored; from 4 on those turned by a quarter too; 8 are all ways a photo can lie.
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
    """Build the network with its weights loaded and nothing frozen; raise SettingsError if the weights do not fit."""
    torch.manual_seed(settings.seed)
    body = architecture.body()
    if settings.weights != "none":
        own = body.state_dict()
        loaded = match(own, _load(architecture, settings.weights), settings.weights, architecture.name)
        if settings.reinit:
            kept = tuple(f"{path}." for stage in architecture.stages[: settings.freeze] for path in stage)
            loaded = {key: value if key.startswith(kept) else own[key] for key, value in loaded.items()}
        body.load_state_dict(loaded)
    size = architecture.preprocess.crop
    with torch.no_grad():
        length = body.eval()(torch.zeros(1, 3, size, size)).shape[1]
    dropout = architecture.dropout if settings.dropout is None else settings.dropout
    return PenultNet(body, length, classes, dropout, settings.views)


def copy_weights(net: nn.Module) -> Weights:
    """Return a copy of all parameters and buffers."""
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def stage_modules(net: PenultNet, architecture: Architecture) -> list[list[nn.Module]]:
    """Return the modules of the five conv stages, then those of the hidden dense layers (maybe none)."""
    return [[net.body.get_submodule(path) for path in paths] for paths in (*architecture.stages, architecture.dense)]


def freeze_stages(net: PenultNet, architecture: Architecture, count: int) -> None:
    """Freeze the first `count` conv stages; FREEZE_ALL freezes the whole body, hidden dense layers too."""
    stages = stage_modules(net, architecture)
    net.freeze([net.body] if count >= FREEZE_ALL else [module for stage in stages[:count] for module in stage])


def parameter_groups(net: PenultNet, architecture: Architecture, settings: TrainSettings) -> list[dict[str, Any]]:
    """Return AdamW's groups: the head, the hidden dense layers, then stage 5 … 1 at ever lower rates."""
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
    """Use the same dropout before hidden dense layers (AlexNet, VGG) as before the head; stochastic depth keeps its."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, BatchDropout(share, rows))
            elif isinstance(child, StochasticDepth):
                setattr(parent, name, BatchDropout(child.p, rows, whole_photos=True))


def _load(architecture: Architecture, weights: str) -> State:
    """Return a state dict: torchvision's own, or a local file's; raise SettingsError."""
    weights_file.check(weights, architecture)
    return _download(architecture.name, weights) if weights in weights_file.DOWNLOADS else read(weights)


def _download(arch: str, weights: str) -> State:
    try:
        choices = torchvision.models.get_model_weights(arch)
        wanted = "IMAGENET1K_V2" if weights == "imagenet-v2" else "IMAGENET1K_V1"
        state: State = choices[wanted].get_state_dict(progress=True, check_hash=True)
        return state
    except (ValueError, KeyError):
        raise SettingsError(
            "WEIGHTS", f"torchvision has no {weights} weights for {arch}; give a file, or none"
        ) from None
    except (URLError, OSError, RuntimeError) as error:
        raise SettingsError(
            "WEIGHTS",
            f"the {arch} weights cannot be downloaded ({error}); download them elsewhere and give --weights FILE",
        ) from error
