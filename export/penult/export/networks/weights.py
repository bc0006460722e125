"""A file of `--weights`, read without unpickling anything, and held against the network that is to have them.

Where they do not fit, the message names the network that they look like, by names and shapes of their tensors.
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
# Other tools' names for the dictionary inside, and for the module around the network.
_OWN_PREFIXES = ("module.", "body.")
_PICKLED = re.compile(r"GLOBAL (\S+)")
# Below this share of tensors that fit, a network is not worth naming.
_ALIKE = 0.5


def read(name: str) -> State:
    """Return the state dict in a file that weights_file.check() has passed; raise SettingsError."""
    content = _load(name)
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise _refusal(f"--weights {name} holds {_kind(content)}, not a state dict; save {weights_file.SAVE}")
    if not any(isinstance(value, torch.Tensor) for value in content.values()):
        inside = _state_inside(content)
        advice = f"it lies below {inside!r}: {_save(name, f'[{inside!r}]')}" if inside else f"save {weights_file.SAVE}"
        raise _refusal(f"--weights {name} holds no tensors by name, so it is no state dict; {advice}")
    return {_without(key, _OWN_PREFIXES): value for key, value in content.items()}


def match(own: State, loaded: State, name: str, architecture: str) -> dict[str, torch.Tensor]:
    """Return the body's part of `loaded`; what belongs to another head is left out, anything else missing refused."""
    if first := next(_mismatches(own, loaded), None):
        raise _refusal(
            f"--weights {name} are not weights of this --arch ({architecture}): {first}{_advice(loaded, architecture)}"
        )
    return {key: loaded.get(key, own[key]) for key in own}


def looks_like(loaded: State) -> tuple[str, float]:
    """Return the known network whose tensors, by name and shape, fit best, and the share of them that do (0 to 1)."""
    shares = {}
    for name, own in _known().items():
        fits = sum(key in loaded and _shape(loaded[key]) == tuple(own[key].shape) for key in own)
        shares[name] = 1.0 if next(_mismatches(own, loaded), None) is None else 0.99 * fits / len(own)
    best = max(shares, key=lambda name: shares[name])
    return best, shares[best]


@cache
def _known() -> dict[str, State]:
    with torch.device("meta"):  # shapes alone: nothing is allocated
        return {name: architectures.get(name).body().state_dict() for name in architectures.names()}


def _advice(loaded: State, architecture: str) -> str:
    """Say which network the weights are of, or what to take off the names of their tensors; "" if nothing is alike."""
    best, share = looks_like(loaded)
    prefix = ""
    for candidate in _prefixes(loaded):
        other, other_share = looks_like(_stripped(loaded, candidate))
        if other_share > max(share, _ALIKE):
            best, share, prefix = other, other_share, candidate
    if share < _ALIKE:
        return "; they look like none of the networks that penult knows"
    if prefix:
        strip = f"{{k.removeprefix({prefix!r}): v for k, v in state.items() if k.startswith({prefix!r})}}"
        other = "" if best == architecture else f", and give --arch {best}"
        return f"; without {prefix!r} before their names they look like {best}: torch.save({strip}, …){other}"
    if best == architecture:
        return f"; {share:.0%} of the tensors fit"
    return f"; they {'are of' if share == 1 else 'look most like'} {best}: give --arch {best}"


def _prefixes(loaded: State) -> list[str]:
    """Return what the names of most tensors begin with, up to the first, second and third dot."""
    found = []
    for depth in (1, 2, 3):
        heads = [".".join(key.split(".")[:depth]) + "." for key in loaded if key.count(".") >= depth]
        if heads and heads.count(common := max(set(heads), key=heads.count)) > len(loaded) / 2:
            found.append(common)
    return found


def _stripped(loaded: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in loaded.items() if key.startswith(prefix)}


def _load(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the refusal below says what there is to say
            return torch.load(name, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever zipfile, pickle or its own reader does
        if pickled := _PICKLED.search(str(error)):
            raise _refusal(
                f"--weights {name} holds pickled objects ({pickled[1]}), which penult never unpickles; where it was "
                f"made, save {weights_file.SAVE}"
            ) from error
        raise _refusal(
            f"--weights {name} cannot be read: it is damaged, or no file of torch.save(); copy it again, or save "
            f"{weights_file.SAVE}"
        ) from error


def _state_inside(content: Mapping[str, Any]) -> str | None:
    """Return the key of the largest dictionary of tensors in a checkpoint of another tool."""
    sizes = {
        key: sum(isinstance(each, torch.Tensor) for each in value.values())
        for key, value in content.items()
        if isinstance(value, Mapping)
    }
    best = max(sizes, key=lambda key: sizes[key], default=None)
    return best if best is not None and sizes[best] else None


def _save(name: str, part: str) -> str:
    return f"torch.save(torch.load({name!r}, weights_only=True){part}, 'weights.pth')"


def _kind(content: object) -> str:
    return "nothing" if content is None else f"a {type(content).__name__}"


def _without(key: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        key = key.removeprefix(prefix)
    return key


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _mismatches(own: State, loaded: State) -> Iterator[str]:
    # Weights from before PyTorch counted batches lack the counters, which eval mode does not use.
    yield from (f"{key} is missing" for key in own if key not in loaded and not key.endswith("num_batches_tracked"))
    yield from (f"{key} is not part of it" for key in loaded if key not in own and not key.startswith(_HEADS))
    for key in own:
        if key in loaded and (shape := _shape(loaded[key])) != tuple(own[key].shape):
            yield (
                f"{key} has shape {shape}, not {tuple(own[key].shape)}" if shape is not None else f"{key} is no tensor"
            )


def _refusal(message: str) -> SettingsError:
    return SettingsError("WEIGHTS", message)
