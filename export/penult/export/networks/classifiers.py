"""Build a classifier of torchvision or timm with its own head from a checkpoint, as its library builds it.

Every tensor of the network must be in the file, under its name and with its shape. The number of classes is that of
the head in the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from penult.bundle.preprocess import Preprocess
from penult.console import say
from penult.export.config import known_networks
from penult.export.errors import ImportModelError
from penult.export.networks import timm_networks, weights, weights_file
from penult.export.networks.weights_names import Candidate, State, candidates, mismatches
from penult.nearest import did_you_mean

_EXPORT = "export the model as ONNX, and import that file"
_TRANSFORMERS = ("maxvit", "swin", "vit")
# Trained weights scale their input once more, which a state dict does not record.
_UNCLEAR = ("googlenet", "inception_v3")
# A file of fewer tensors is no network of torchvision.
_FEWEST = 12
# A network is named in a message only if at least this share of its tensors fits.
_ALIKE = 0.5

Build = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Classifier:
    """A network as its own library runs it, in eval mode on the CPU.

    Attributes:
        net: Maps float [N, 3, H, W] to logits float [N, classes].
        classes: The number of logits.
        architecture: What the manifest calls it, such as resnet18 or timm/resnet18.
        made_by: The library and its version.
        preprocess: How its images were prepared; None if the source does not say it.
        preprocess_of: Where that is known from.
    """

    net: nn.Module
    classes: int
    architecture: str
    made_by: str
    preprocess: Preprocess | None
    preprocess_of: str


@dataclass(frozen=True)
class Recipe:
    """How to build a network, whatever its number of classes."""

    architecture: str
    build: Build
    made_by: str
    preprocess: Preprocess
    preprocess_of: str


def read_checkpoint(path: Path, arch: str, shown: str, is_guessed: bool = False) -> Classifier:
    """Return the classifier of a checkpoint.

    Args:
        path: The file, of any kind that --weights takes.
        arch: The name of the network; "" if it is not given.
        shown: How messages name the file.
        is_guessed: If no name is given, whether the network is used that all tensors fit. Else it is named only.

    Raises:
        PenultError: The file is no state dict, the network is unknown, or they do not fit.
    """
    weights_file.check_file(path, shown)
    content = weights.read(str(path), shown)
    if not arch:
        arch = _guessed(content, shown, is_guessed)
    return fill(recipe_of(arch), content, shown)


def fill(recipe: Recipe, content: Mapping[str, Any], shown: str) -> Classifier:
    """Return a network with the tensors of a file; raise ImportModelError if they do not fit."""
    head = _head(recipe.build)
    for found in candidates(content):
        classes = _classes(found.state, head)
        if classes and next(mismatches(_shapes(recipe.build, classes), found.state, ()), None) is None:
            break
    else:
        raise _refused(f"{shown} does not fit --arch {recipe.architecture}: {_why(recipe, head, content)}")
    if note := found.note(shown):
        say(note)
    net = recipe.build(classes)
    # Old files lack the counters of batches, which eval mode does not read.
    own = net.state_dict()  # which knows the version of each module, as mnasnet needs
    own.update({key: found.state.get(key, value) for key, value in own.items()})
    net.load_state_dict(own)
    net.eval().requires_grad_(False)
    return Classifier(net, classes, recipe.architecture, recipe.made_by, recipe.preprocess, recipe.preprocess_of)


def recipe_of(arch: str) -> Recipe:
    """Return how to build the network of that name; raise PenultError if it is unknown, or no CNN."""
    if arch.startswith(known_networks.TIMM):
        network = known_networks.get(arch)
        for note in network.notes:
            say(f"note: --arch {arch}: {note}")
        return Recipe(
            arch, lambda classes: timm_networks.whole(arch, classes, {}), timm_networks.made_by(), network.preprocess,
            f"timm's for {arch}",
        )  # fmt: skip
    _check_torchvision(arch)
    known = known_networks.NETWORKS.get(arch)
    return Recipe(
        arch,
        lambda classes: _of_torchvision(arch, classes),
        f"torchvision {torchvision.__version__}",
        known.preprocess if known else _presets(arch),
        f"torchvision's for {arch}",
    )


@cache
def _names() -> tuple[str, ...]:
    """Return the CNNs of torchvision that classify."""
    found = torchvision.models.list_models(module=torchvision.models)
    return tuple(name for name in found if not name.startswith(_TRANSFORMERS) and name not in _UNCLEAR)


def _check_torchvision(arch: str) -> None:
    if arch in _names():
        return
    if arch in _UNCLEAR:
        raise _refused(
            f"--arch {arch}: a checkpoint does not say whether this network scales its input once more; {_EXPORT}"
        )
    if arch.startswith(_TRANSFORMERS) and arch in torchvision.models.list_models():
        raise _refused(f"--arch {arch} is a transformer, and penult builds CNNs only; {_EXPORT}")
    raise _refused(f"--arch {arch} is no classifier of torchvision, and no timm/NAME{did_you_mean(arch, _names())}")


def _of_torchvision(arch: str, classes: int) -> nn.Module:
    net: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    return net


def _presets(arch: str) -> Preprocess:
    """Return the preprocessing of torchvision's first weights of a network."""
    preset = next(iter(torchvision.models.get_model_weights(arch))).transforms()
    return Preprocess(
        preset.resize_size[0], preset.crop_size[0], preset.interpolation.value, tuple(preset.mean), tuple(preset.std)
    )


# -- do they fit? ------------------------------------------------------------------------------------------------------


def _shapes(build: Build, classes: int) -> State:
    with torch.device("meta"):
        state: State = build(classes).state_dict()
    return state


def _head(build: Build) -> tuple[str, ...]:
    """Return the names of the tensors whose first size is the number of classes."""
    two, three = _shapes(build, 2), _shapes(build, 3)
    return tuple(key for key in two if two[key].shape != three[key].shape)


def _classes(state: State, head: tuple[str, ...]) -> int:
    """Return how many classes the head in a file has; 0 if there is none, or if tensors disagree."""
    tensors = [state.get(key) for key in head]
    sizes = {each.shape[0] if isinstance(each, torch.Tensor) and each.dim() else 0 for each in tensors}
    return sizes.pop() if len(sizes) == 1 else 0


def _why(recipe: Recipe, head: tuple[str, ...], content: Mapping[str, Any]) -> str:
    """Return what does not fit, and what to do."""
    own = _shapes(recipe.build, 2)
    body = {key: value for key, value in own.items() if key not in head}

    def fits(each: Candidate) -> float:
        return weights.share_that_fits(body, each.state)

    nearest = max(candidates(content), key=fits)
    above = tuple(f"{key.split('.')[0]}." for key in head)
    if next(mismatches(body, nearest.state, above), None) is None:
        others = [key for key in nearest.state if key not in own]
        if others:
            return f"its head has {others[0]}, and the layers between are not known; {_EXPORT}"
        missing = next((key for key in head if key not in nearest.state), "")
        if not missing:
            return f"the sizes of its head ({', '.join(head)}) disagree; save it again"
        return (
            f"it has no head ({missing} is missing); give the whole classifier, or train a head: penult train "
            f"--arch {recipe.architecture} --weights FILE"
        )
    first = next(mismatches(_shapes(recipe.build, _classes(nearest.state, head) or 2), nearest.state, ()))
    return first + weights.hint(content, recipe.architecture)


def _guessed(content: Mapping[str, Any], shown: str, is_guessed: bool) -> str:
    """Return the network that all tensors fit, if it may be used unnamed; raise ImportModelError, which names it."""
    name, share = max((_looks_like(each.state) for each in candidates(content)), key=lambda found: found[1])
    if share == 1 and is_guessed:
        say(f"note: all tensors of {shown} fit {name}, which is used; --arch names another")
        return name
    if share < _ALIKE:
        raise _refused(
            f"--arch is missing: give the network of {shown}, such as resnet18 or timm/NAME; its tensors fit none that "
            f"penult knows, so {_EXPORT}"
        )
    fit = "fit" if share == 1 else "are most similar to those of"
    raise _refused(f"--arch is missing: the tensors of {shown} {fit} {name}; give --arch {name}, if it is that")


def _looks_like(state: State) -> tuple[str, float]:
    """Return the network whose tensors fit best, and the share that fits; as weights.looks_like(), and torchvision."""
    best = weights.looks_like(state)
    return (
        best
        if best[1] == 1 or len(state) < _FEWEST
        else max(best, _alike_in_torchvision(state), key=lambda each: each[1])
    )


def _alike_in_torchvision(state: State) -> tuple[str, float]:
    others = [name for name in _names() if name not in known_networks.NETWORKS]
    shares = {}
    for name in others:
        own = _others(name)
        head = tuple(key for key in own if key.startswith(("fc.", "classifier.")))
        body = {key: value for key, value in own.items() if key not in head}
        is_whole = next(mismatches(body, state, ("fc.", "classifier.")), None) is None
        shares[name] = 1.0 if is_whole else weights.share_that_fits(body, state)
    best = max(shares, key=lambda name: shares[name])
    return best, shares[best]


@cache
def _others(name: str) -> State:
    return _shapes(lambda classes: _of_torchvision(name, classes), 2)


def _refused(message: str) -> ImportModelError:
    return ImportModelError("CHECKPOINT", message)
