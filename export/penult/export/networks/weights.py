"""Read the file of `--weights` without unpickling, and check that its tensors fit the network.

If they do not fit, the message names the network with the most similar tensors, by names and shapes.
"""

import importlib.util
import re
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from penult.console import say
from penult.export.config import known_networks
from penult.export.errors import SettingsError
from penult.export.networks import architectures, timm_networks, weights_file
from penult.export.networks.weights_names import Candidate, State, candidates, mismatches, shape

_PICKLED = re.compile(r"GLOBAL (\S+)")
# A network is named in the message only if at least this share of its tensors fits.
_ALIKE = 0.5
# A file of fewer tensors is no network of timm.
_FEWEST = 20
# Of timm, those that a file is compared with if it fits no other network.
_COMMON_IN_TIMM = (
    "convnext_nano", "convnext_small", "convnext_base", "convnextv2_tiny", "cspdarknet53", "cspresnet50", "densenet121",
    "densenet201", "dla34", "dpn92", "efficientnet_b0", "efficientnet_b1", "efficientnet_b3", "efficientnetv2_rw_s",
    "tf_efficientnetv2_s", "fastvit_t8", "ghostnet_100", "hgnetv2_b0", "hrnet_w18", "inception_v3", "inception_v4",
    "legacy_seresnext50_32x4d", "mnasnet_100", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100",
    "mobilenetv4_conv_small", "mobilenetv4_conv_medium", "mobileone_s0", "regnetx_002", "regnety_002", "regnety_016",
    "repvgg_a0", "repvit_m1", "res2net50_26w_4s", "resnest50d", "resnet26d", "resnet50d", "resnetv2_50",
    "resnext50_32x4d", "rexnet_100", "seresnet50", "skresnet18", "vgg11", "vgg16_bn", "wide_resnet50_2", "xception",
)  # fmt: skip


def read(name: str, shown: str = "") -> Mapping[str, Any]:
    """Return the content of a file that weights_file.check() has passed, with named tensors; raise SettingsError.

    Messages name the file as `shown`, or as the value of --weights.
    """
    shown = shown or f"--weights {name}"
    content = _load(name, shown)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise _refusal(f"{shown} contains {kind}, not a state dict; save {weights_file.SAVE}")
    if next(candidates(content), None) is None:
        inside = _state_inside(content)
        save = f"torch.save(torch.load({name!r}, weights_only=True)[{inside!r}], 'weights.pth')"
        advice = f"it is under the key {inside!r}: {save}" if inside else f"save {weights_file.SAVE}"
        raise _refusal(f"{shown} has no named tensors, so it is not a state dict; {advice}")
    return content


def match(own: State, loaded: Mapping[str, Any], name: str, architecture: str) -> dict[str, torch.Tensor]:
    """Return the body's part of a file's content; raise SettingsError if it does not fit.

    Another model's head is left out. What training tools put around a network is taken off if all tensors then fit.
    A printed note says so.
    """
    found = fitting(own, loaded, known_networks.get(architecture).classifier)
    if found is None:
        classifier = known_networks.get(architecture).classifier
        nearest = max(candidates(loaded), key=lambda each: share_that_fits(own, each.state))
        first = next(mismatches(own, nearest.state, classifier))
        raise _refusal(f"--weights {name} does not fit --arch {architecture}: {first}{hint(loaded, architecture)}")
    if note := found.note(f"--weights {name}"):
        say_once(note)
    return {key: found.state.get(key, own[key]) for key in own}


def fitting(own: State, content: Mapping[str, Any], classifier: tuple[str, ...]) -> Candidate | None:
    """Return the reading of a file that fits a body exactly, with the least taken off, or None.

    Args:
        own: The state dict of the body.
        content: What read() returned.
        classifier: What the names of another head's tensors start with, which may be there too.
    """
    fits = (each for each in candidates(content) if next(mismatches(own, each.state, classifier), None) is None)
    return next(fits, None)


def looks_like(loaded: State) -> tuple[str, float]:
    """Return the network whose tensors fit best by name and shape, and the share that fits, 0 to 1.

    Common ones of timm are compared if no other fits.
    """
    known = {name: (own, known_networks.get(name).classifier) for name, own in _known().items()}
    best = _most_alike(loaded, known)
    if best[1] < 1 and len(loaded) >= _FEWEST and importlib.util.find_spec("timm"):
        best = max(best, _most_alike(loaded, timm_networks.shapes(_COMMON_IN_TIMM, loaded)), key=lambda each: each[1])
    return best


def _most_alike(loaded: State, known: Mapping[str, tuple[State, tuple[str, ...]]]) -> tuple[str, float]:
    shares = {name: share_that_fits(own, loaded) for name, (own, _) in known.items()}
    for name, (own, classifier) in known.items():
        if next(mismatches(own, loaded, classifier), None) is None:
            shares[name] = 1.0
    best = max(shares, key=lambda name: shares[name], default="")
    return best, shares.get(best, 0.0)


def share_that_fits(own: State, loaded: State) -> float:
    """Return the share of a network's tensors that fit, always below 1."""
    return 0.99 * sum(key in loaded and shape(loaded[key]) == tuple(own[key].shape) for key in own) / len(own)


@cache
def _known() -> dict[str, State]:
    with torch.device("meta"):  # only shapes, nothing is allocated
        return {name: architectures.get(name).body().state_dict() for name in known_networks.names()}


@cache
def say_once(line: str) -> None:
    """Print a line, the first time in this process: a sweep builds its network for every trial."""
    say(line)


def hint(content: Mapping[str, Any], architecture: str) -> str:
    """Return a hint at the network that the weights belong to, or at the prefix to remove from their names."""
    readings = [each.state for each in candidates(content)]
    best, share = max((looks_like(state) for state in readings), key=lambda each: each[1])
    prefix = ""
    for candidate in _shared_prefixes(readings[0]):
        stripped = {key.removeprefix(candidate): v for key, v in readings[0].items() if key.startswith(candidate)}
        other, other_share = looks_like(stripped)
        if other_share > max(share, _ALIKE):
            best, share, prefix = other, other_share, candidate
    if share < _ALIKE:
        return "; they fit none of the networks that penult knows"
    if prefix:
        strip = f"{{k.removeprefix({prefix!r}): v for k, v in state.items() if k.startswith({prefix!r})}}"
        other = "" if best == architecture else f", and give --arch {best}"
        return f"; without the prefix {prefix!r} they fit {best}: torch.save({strip}, …){other}"
    if best == architecture:
        return f"; {share:.0%} of the tensors fit"
    return f"; they {'fit' if share == 1 else 'are most similar to'} {best}: give --arch {best}"


def _shared_prefixes(loaded: State) -> list[str]:
    """Return prefixes that most tensor names share, up to the first, second and third dot."""
    found = []
    for depth in (1, 2, 3):
        heads = [".".join(key.split(".")[:depth]) + "." for key in loaded if key.count(".") >= depth]
        if heads and heads.count(common := max(set(heads), key=heads.count)) > len(loaded) / 2:
            found.append(common)
    return found


def _load(name: str, shown: str) -> Any:
    if weights_file.is_safetensors(Path(name)):
        try:
            return safetensors.torch.load_file(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise _refusal(f"{shown} is truncated or damaged; copy or download it again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below replaces the warning
            return torch.load(name, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever zipfile, pickle or its own reader does
        if pickled := _PICKLED.search(str(error)):
            raise _refusal(
                f"{shown} contains pickled objects ({pickled[1]}), which penult does not load; on the machine "
                f"that made it, save {weights_file.SAVE}"
            ) from error
        raise _refusal(
            f"{shown} is damaged or was not written by torch.save(); copy it again, or save {weights_file.SAVE}"
        ) from error


def _state_inside(content: Mapping[str, Any]) -> str | None:
    """Return the key of the largest dictionary of tensors in another tool's checkpoint; None if there is none."""
    sizes = {
        key: sum(isinstance(each, torch.Tensor) for each in value.values())
        for key, value in content.items()
        if isinstance(value, Mapping)
    }
    best = max(sizes, key=lambda key: sizes[key], default=None)
    return best if best is not None and sizes[best] else None


def _refusal(message: str) -> SettingsError:
    return SettingsError("WEIGHTS", message)
