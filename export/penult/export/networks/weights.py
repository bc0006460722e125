"""Read the file of `--weights` without unpickling, and check that its tensors fit the network.

If they do not fit, the message names the network with the most similar tensors, by names and shapes.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

from penult.export.errors import SettingsError
from penult.export.networks import architectures, weights_file

State = Mapping[str, torch.Tensor]

_HEADS = ("fc.", "classifier.", "head.")
_PICKLED = re.compile(r"GLOBAL (\S+)")
# A network is named in the message only if at least this share of its tensors fits.
_ALIKE = 0.5


def read(name: str) -> State:
    """Return the state dict in a file that weights_file.check() has passed; raise SettingsError."""
    content = _load(name)
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise _refusal(f"--weights {name} contains {kind}, not a state dict; save {weights_file.SAVE}")
    if not any(isinstance(value, torch.Tensor) for value in content.values()):
        inside = _state_inside(content)
        save = f"torch.save(torch.load({name!r}, weights_only=True)[{inside!r}], 'weights.pth')"
        advice = f"it is under the key {inside!r}: {save}" if inside else f"save {weights_file.SAVE}"
        raise _refusal(f"--weights {name} has no named tensors, so it is not a state dict; {advice}")
    return {key.removeprefix("module.").removeprefix("body."): value for key, value in content.items()}


def match(own: State, loaded: State, name: str, architecture: str) -> dict[str, torch.Tensor]:
    """Return the body's part of `loaded` without another model's head; raise SettingsError if it does not fit."""
    if first := next(_mismatches(own, loaded), None):
        raise _refusal(f"--weights {name} does not fit --arch {architecture}: {first}{_advice(loaded, architecture)}")
    return {key: loaded.get(key, own[key]) for key in own}


def looks_like(loaded: State) -> tuple[str, float]:
    """Return the known network whose tensors fit best by name and shape, and the share that fits, 0 to 1."""
    shares = {}
    for name, own in _known().items():
        fits = sum(key in loaded and _shape(loaded[key]) == tuple(own[key].shape) for key in own)
        shares[name] = 1.0 if next(_mismatches(own, loaded), None) is None else 0.99 * fits / len(own)
    best = max(shares, key=lambda name: shares[name])
    return best, shares[best]


@cache
def _known() -> dict[str, State]:
    with torch.device("meta"):  # only shapes, nothing is allocated
        return {name: architectures.get(name).body().state_dict() for name in architectures.names()}


def _advice(loaded: State, architecture: str) -> str:
    """Return a hint at the network that the weights belong to, or at the prefix to remove from their names."""
    best, share = looks_like(loaded)
    prefix = ""
    for candidate in _prefixes(loaded):
        stripped = {key.removeprefix(candidate): value for key, value in loaded.items() if key.startswith(candidate)}
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


def _prefixes(loaded: State) -> list[str]:
    """Return prefixes that most tensor names share, up to the first, second and third dot."""
    found = []
    for depth in (1, 2, 3):
        heads = [".".join(key.split(".")[:depth]) + "." for key in loaded if key.count(".") >= depth]
        if heads and heads.count(common := max(set(heads), key=heads.count)) > len(loaded) / 2:
            found.append(common)
    return found


def _load(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below replaces the warning
            return torch.load(name, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever zipfile, pickle or its own reader does
        if pickled := _PICKLED.search(str(error)):
            raise _refusal(
                f"--weights {name} contains pickled objects ({pickled[1]}), which penult does not load; on the machine "
                f"that made it, save {weights_file.SAVE}"
            ) from error
        raise _refusal(
            f"--weights {name} is damaged or was not written by torch.save(); copy it again, or save "
            f"{weights_file.SAVE}"
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


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _mismatches(own: State, loaded: State) -> Iterator[str]:
    # Old weights lack the batch counters, which eval mode does not use.
    yield from (f"{key} is missing" for key in own if key not in loaded and not key.endswith("num_batches_tracked"))
    yield from (f"the network has no {key}" for key in loaded if key not in own and not key.startswith(_HEADS))
    for key in own:
        if key in loaded and (shape := _shape(loaded[key])) != tuple(own[key].shape):
            yield (
                f"{key} has shape {shape}, not {tuple(own[key].shape)}"
                if shape is not None
                else f"{key} is not a tensor"
            )


def _refusal(message: str) -> SettingsError:
    return SettingsError("WEIGHTS", message)
