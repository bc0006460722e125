"""What the five conv stages of each network are: the facts behind `--freeze`, and docs/architectures.md made of them.

`python -m penult.export.networks.stages docs/architectures.md` writes that file; a test compares.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn

from penult.export.config.train import ALL_STAGES
from penult.export.networks import architectures
from penult.export.networks.architectures import Architecture

_HEADING = """\
# Architectures

Made by `python -m penult.export.networks.stages docs/architectures.md`; a test compares it with the code.

Every network is cut into five conv stages, counted from the input. `--freeze N` keeps the first N of them exactly as
they were given, statistics of batch norms included; the stages after them, hidden dense layers and the head learn.
`--freeze all` keeps the whole network up to the descriptor, and only the head learns. The default is `--freeze 3`,
and `--freeze 0` with `--weights none`.

Stages end where the resolution halves, or, where a network halves it too seldom for five stages, at a convolution in
between. *Output* is what a stage hands on; *frozen* is how many parameters `--freeze` keeps if it ends there. The head
(dropout, then one dense layer to the classes) comes on top of these.
"""


@dataclass(frozen=True)
class Stage:
    """One conv stage, or the hidden dense layers: module names as in torchvision, parameters as a number."""

    name: str
    modules: str
    parameters: int


def stages_of(architecture: Architecture, body: nn.Module) -> tuple[Stage, ...]:
    """Return the five conv stages of a network, then its hidden dense layers if it has any."""
    named = [(f"stage {n + 1}", paths) for n, paths in enumerate(architecture.stages)]
    named += [("dense", architecture.dense)] if architecture.dense else []
    return tuple(
        Stage(name, _range(paths), sum(p.numel() for path in paths for p in body.get_submodule(path).parameters()))
        for name, paths in named
    )


def outputs(architecture: Architecture, body: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Return what each conv stage hands on, (channels, height, width), then the descriptor's length as (length,).

    A body on the device "meta" gives the shapes without computing anything.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str, output: torch.Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    last = [paths[-1] for paths in architecture.stages]
    hooks = [
        body.get_submodule(path).register_forward_hook(lambda _, __, output, path=path: remember(path, output))
        for path in last
    ]
    size = architecture.preprocess.crop
    with torch.no_grad():
        descriptor = body.eval()(torch.zeros(1, 3, size, size, device=next(body.parameters()).device))
    for hook in hooks:
        hook.remove()
    return (*(shapes[path] for path in last), tuple(descriptor.flatten(1).shape[1:]))


def document() -> str:
    """Return the text of docs/architectures.md."""
    return "\n".join([_HEADING, *(line for name in architectures.names() for line in _section(name))])


def _section(name: str) -> Iterator[str]:
    architecture = architectures.get(name)
    with torch.device("meta"):
        body = architecture.body()
    stages = stages_of(architecture, body)
    *shapes, (length,) = outputs(architecture, body)
    kept = list(accumulate(stage.parameters for stage in stages))
    spec = architecture.preprocess
    yield (
        f"## {name}\n\n{kept[-1]:,} parameters, a descriptor of {length:,} numbers; "
        f"photos are resized to {spec.resize} and cropped to {spec.crop} pixels.\n"
    )
    yield f"| stage | modules | output at {spec.crop} | parameters | `--freeze` | frozen |"
    yield "| --- | --- | --- | ---: | :---: | ---: |"
    for place, stage in enumerate(stages):
        conv = place < ALL_STAGES
        output = "{1} x {2}, {0} channels".format(*shapes[place]) if conv else f"{length:,} numbers"
        count = f"{place + 1}" if place + 1 < len(stages) else f"{place + 1}, all" if conv else "all"
        yield f"| {stage.name} | {stage.modules} | {output} | {stage.parameters:,} | {count} | {kept[place]:,} |"
    yield ""


def _range(paths: tuple[str, ...]) -> str:
    """Shorten features.3, features.4, features.5 to features.3 … features.5."""
    return ", ".join(paths) if len(paths) <= 2 else f"{paths[0]} … {paths[-1]}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document())
