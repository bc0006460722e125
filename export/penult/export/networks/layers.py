"""Take the output of any layer out of a network's body: a conv stage, or the first hidden dense layer.

Convolutional outputs are averaged over places, as most networks do before their last layer. Each layer is read while
the body runs, so one pass over the photos gives all of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from penult.export.config.known_networks import Network
from penult.export.config.train import DENSE1, PENULTIMATE
from penult.export.errors import SettingsError

Taken = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer before the penultimate one.

    Attributes:
        name: As --descriptor takes it.
        path: A module of the body.
        is_input: True if the layer's output is what that module is given, else it is what the module returns.
    """

    name: str
    path: str
    is_input: bool


def layer_of(network: Network, name: str) -> Layer | None:
    """Return where a network has the layer of that name; None for the penultimate one, in which its body ends."""
    if name == PENULTIMATE:
        return None
    if name == DENSE1:
        return Layer(name, network.dense1, is_input=False)
    number = int(name.removeprefix("stage"))
    if number < len(network.stages):
        # After the activation and the pooling between two stages, which belong to none (ResNet's first).
        return Layer(name, network.stages[number][0], is_input=True)
    return Layer(name, network.stages[-1][-1], is_input=False)


@contextmanager
def taking(body: nn.Module, layers: Sequence[Layer]) -> Iterator[Taken]:
    """Yield a dict that holds, once the body has run inside, float [N, length] of each layer by name."""
    taken: Taken = {}
    hooks = []
    for layer in layers:
        module = body.get_submodule(layer.path)
        if layer.is_input:
            hooks.append(module.register_forward_pre_hook(partial(_take_input, taken, layer.name)))
        else:
            hooks.append(module.register_forward_hook(partial(_take_output, taken, layer.name)))
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


def _take_input(taken: Taken, name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    taken[name] = _averaged(name, inputs[0])


def _take_output(taken: Taken, name: str, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
    taken[name] = _averaged(name, output)


def _averaged(name: str, values: object) -> torch.Tensor:
    """Return the mean over places of [N, C, H, W]; [N, length] is copied, since layers may work in place."""
    if isinstance(values, torch.Tensor) and values.dim() == 4:
        return values.mean((2, 3))
    if isinstance(values, torch.Tensor) and values.dim() == 2:
        return values.clone()
    raise SettingsError(
        "DESCRIPTOR", f"--descriptor {name}: that layer of this network is no single map or vector; choose another"
    )
