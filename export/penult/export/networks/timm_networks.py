"""The CNNs of timm, as bodies that end at the descriptor, `forward_head(pre_logits=True)`.

`python -m penult.export.networks.timm_networks NAME` prints the facts of a network as JSON. timm_facts.py runs it if
PyTorch is not loaded.
"""

import json
import logging
import math
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from penult.bundle.preprocess import INTERPOLATIONS, Preprocess
from penult.export.config import timm_facts
from penult.export.config.known_networks import IMAGENET, Network
from penult.export.config.timm_facts import PREFIX
from penult.export.errors import SettingsError
from penult.export.networks.stage_cutting import NotCuttableError, cut
from penult.nearest import did_you_mean

State = Mapping[str, torch.Tensor]


def names(pattern: str = "*") -> list[str]:
    """Return the names of timm's networks that match a pattern with * and ?, without tags."""
    found: list[str] = _timm().list_models(pattern)
    return found


def body(name: str, dense: tuple[str, ...]) -> nn.Module:
    """Build a network of timm up to the descriptor, with random weights; its tensors are named as timm names them."""
    model = _create(name.removeprefix(PREFIX))
    model.__class__ = type(f"{type(model).__name__}Body", (_Body, type(model)), {})
    for path, parent in list(model.named_modules()):
        below = [each for each, _ in parent.named_children()]
        for place, (attribute, child) in enumerate(list(parent.named_children())):
            # As the networks of torchvision have it; network.py makes both depend on the whole batch.
            if type(child).__name__ == "DropPath":
                setattr(parent, attribute, StochasticDepth(float(getattr(child, "drop_prob", 0) or 0), "row"))
            # Only dropout before a hidden dense layer is kept, as in AlexNet and VGG.
            elif isinstance(child, nn.Dropout) and not any(f"{path}.{each}" in dense for each in below[place + 1 :]):
                setattr(parent, attribute, nn.Identity())
    return model


def whole(name: str, classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a network of timm with its own classifier and random weights; `options` are its keyword arguments."""
    return _create(name.removeprefix(PREFIX), num_classes=classes, **options)


def config_of(name: str) -> dict[str, Any]:
    """Return timm's configuration of a network: sizes, mean and deviation, classifier."""
    with torch.device("meta"):
        model: Any = _create(name.removeprefix(PREFIX))
    return dict(model.default_cfg)


def made_by() -> str:
    """Return the name and version of the library."""
    return f"timm {_timm().__version__}"


class _Body(nn.Module):
    """Mixed into the class of a model of timm, so that it returns the descriptor."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map float [N, 3, H, W] to descriptors float [N, length]."""
        model: Any = self
        descriptor: torch.Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
        return descriptor.flatten(1)


def compute(name: str) -> dict[str, Any]:
    """Return what timm_facts.answer() does for a name without prefix, and "unknown" if timm has no such network."""
    try:
        with torch.device("meta"):
            model = _create(name)
        if not (callable(getattr(model, "forward_features", None)) and callable(getattr(model, "forward_head", None))):
            raise NotCuttableError("does not separate its features from its head")
        return {"network": timm_facts.to_json(_network(name, model))}
    except _UnknownError as error:
        return {"refused": str(error), "unknown": True}
    except NotCuttableError as error:
        return {"refused": f"{error}; choose a CNN: penult networks --timm"}
    except Exception as error:  # whatever a network of timm raises on a pass of its own input
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        return {"refused": f"cannot be run by its parts ({type(error).__name__}: {reason})"}


def download(name: str) -> State:
    """Return the state dict that timm downloads; raise SettingsError if it cannot."""
    plain = name.removeprefix(PREFIX)
    try:
        with warnings.catch_warnings(), _hub():
            warnings.simplefilter("ignore")
            state: State = _timm().create_model(plain, pretrained=True, num_classes=0).state_dict()
        return state
    except Exception as error:  # of the hub's client, of its HTTP client, or of timm
        source = _timm().get_pretrained_cfg(plain)
        on_hub = getattr(source, "hf_hub_id", None)
        file = f"model.safetensors of {on_hub} from the Hugging Face hub" if on_hub else source.url
        raise SettingsError(
            "WEIGHTS",
            f"the weights of {name} cannot be downloaded ({type(error).__name__}); download {file} on a machine with "
            "internet, and give --weights FILE",
        ) from error


@contextmanager
def _hub() -> Iterator[None]:
    """Let the hub's client print nothing, and use its cache only if the hub has no address.

    Without this it tries to connect for a minute on a machine without internet.
    """
    import huggingface_hub

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    constants: Any = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        if not getproxies():
            socket.getaddrinfo(host, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def shapes(names: Iterable[str], loaded: Mapping[str, Any]) -> dict[str, tuple[State, tuple[str, ...]]]:
    """Return state dict, without data, and classifier of those networks whose first convolution `loaded` has."""
    found = {}
    for name in names:
        config = _timm().get_pretrained_cfg(name)
        if config is None or f"{config.first_conv}.weight" not in loaded:
            continue
        with torch.device("meta"):
            model: Any = _create(name)
        found[f"{PREFIX}{name}"] = (model.state_dict(), _classifier(dict(model.default_cfg)))
    return found


class _UnknownError(Exception):
    """timm has no such network or tag; the message is the end of a sentence."""


@cache
def _timm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own old modules
        import timm
    logging.getLogger("timm").setLevel(logging.ERROR)
    return timm


def _create(name: str, **options: Any) -> nn.Module:
    """Build a model of timm, without classifier by default, with random weights; raise _UnknownError."""
    timm = _timm()
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        hint = did_you_mean(f"{PREFIX}{plain}", [f"{PREFIX}{each}" for each in timm.list_models()])
        raise _UnknownError(
            f"is not a network of timm {timm.__version__}{hint or '; penult networks --timm lists them'}"
        )
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        there = f"it has {', '.join(tags)}" if tags else "it has none; omit it"
        raise _UnknownError(f"has a tag that timm {timm.__version__} does not know; {there}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, pretrained=False, **({"num_classes": 0} | options))
    return model


def _network(name: str, model: Any) -> Network:
    config: dict[str, Any] = dict(model.default_cfg)
    channels, *sizes = config["input_size"]
    if channels != 3 or sizes[0] != sizes[1]:
        raise NotCuttableError(f"needs inputs of {' x '.join(map(str, config['input_size']))}, not square RGB images")
    ends = [each["module"] for each in getattr(model, "feature_info", None) or []]
    found = cut(model, ends, sizes[0])
    spec, notes = preprocess_of(config, sizes[0])
    return Network(
        f"{PREFIX}{name}",
        found.stages,
        found.descriptor_length,
        found.dense,
        preprocess=spec,
        downloads=(IMAGENET,) if config.get("hf_hub_id") or config.get("url") else (),
        parameters=sum(p.numel() for p in model.parameters()),
        mean_is_last=found.mean_is_last,
        classifier=_classifier(config),
        notes=notes,
    )


def _classifier(config: dict[str, Any]) -> tuple[str, ...]:
    """Return what the names of a classifier's tensors start with: timm's, or that of `penult train --save-weights`."""
    named = config.get("classifier") or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    return (*(f"{head}." for head in heads), "head.1.")


def preprocess_of(config: Mapping[str, Any], size: int) -> tuple[Preprocess, tuple[str, ...]]:
    """Return timm's evaluation preprocessing as penult computes it, and a note for what differs."""
    notes = []
    wanted = config.get("interpolation", "bicubic")
    interpolation = wanted if wanted in INTERPOLATIONS else "bilinear"
    if interpolation != wanted:
        notes.append(f"photos are resized bilinear, because penult does not resize by {wanted}")
    mode = config.get("crop_mode", "center")
    if mode != "center":
        notes.append(f"photos are cropped from the center, although its weights expect {mode}; try --fit stretch")
    resize = max(size, math.floor(size / (config.get("crop_pct") or 1.0)))
    mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
    return Preprocess(resize, size, interpolation, mean, std), tuple(notes)  # type: ignore[arg-type]


timm_facts.in_process[:] = [compute]

if __name__ == "__main__":
    print(json.dumps(compute(sys.argv[1])))
