"""Cut any CNN of timm into five conv stages and hidden dense layers, by its feature_info and one pass.

The pass is on shapes only. It records when each module starts and ends. Modules are taken whole unless they are
sequences, or contain the end of a stage. A stage ends at a module that feature_info names. Too many ends are merged,
first those of equal resolution. Too few are filled up, first by the module before a halving, then by dividing the stage
with the most modules.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from penult.export.config.train import ALL_STAGES

# The operations of a global mean; a head that has others, or parameters, changes the mean.
_MEAN_OPERATIONS = {
    "mean",
    "_adaptive_avg_pool2d",
    "view",
    "_unsafe_view",
    "reshape",
    "flatten",
    "squeeze",
    "alias",
    "detach",
}
_SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class NotCuttableError(Exception):
    """The network has no five conv stages; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Cut:
    """What cutting finds; see penult.export.config.known_networks.Network."""

    stages: tuple[tuple[str, ...], ...]
    dense: tuple[str, ...]
    descriptor_length: int
    mean_is_last: bool


@dataclass
class _Unit:
    """A module that is in one stage as a whole. `size` is the height of its output map; 0 if it gives none."""

    path: str
    first: int
    last: int
    parameters: int
    has_conv: bool
    size: int


@dataclass
class _Trace:
    """When each module started and ended, and the height of the map that it gave."""

    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    clock: int = 0
    features_end: int = 0
    features: torch.Tensor | None = None
    descriptor: torch.Tensor | None = None
    operations: set[str] = field(default_factory=set)

    def started(self, path: str) -> None:
        self.clock += 1
        first, last = self.spans.get(path, (self.clock, self.clock))
        self.spans[path] = (first, last)

    def ended(self, path: str, output: Any) -> None:
        self.clock += 1
        self.spans[path] = (self.spans[path][0], self.clock)
        self.sizes[path] = max((map_.shape[2] for map_ in _maps(output)), default=0)


class _Operations(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def cut(model: nn.Module, feature_ends: Iterable[str], size: int) -> Cut:
    """Cut a network; raise NotCuttableError.

    Args:
        model: A network of timm without classifier, best on the device "meta".
        feature_ends: The modules that feature_info names, from the input.
        size: The height and width of its input.
    """
    trace = _run(model, size)
    if loose := [name for name, _ in model.named_parameters(recurse=False)]:
        raise NotCuttableError(f"has parameters outside of its layers ({loose[0]}), which no stage can hold")
    ends = [path for path in feature_ends if path in trace.spans]
    units = _units(model, trace, ends)
    convs = [unit for unit in units if unit.first <= trace.features_end]
    dense = tuple(unit.path for unit in units if unit.first > trace.features_end)
    groups = _grouped(convs, sorted({trace.spans[path][1] for path in ends}))
    groups = _filled(_merged(groups))
    stages = tuple(_collapsed(model, [unit.path for unit in group]) for group in groups)
    assert trace.features is not None and trace.descriptor is not None
    length, height = trace.descriptor.flatten(1).shape[1], trace.features.shape[2]
    is_mean = (
        not dense
        and trace.operations <= _MEAN_OPERATIONS
        and (length, height) == (trace.features.shape[1], trace.features.shape[3])
    )
    return Cut(stages, dense, length, is_mean)


def _maps(output: Any) -> Iterable[torch.Tensor]:
    """Yield the maps [N, C, H, W] in what a module returned."""
    if isinstance(output, torch.Tensor):
        if output.dim() == 4:
            yield output
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _maps(each)


def _run(model: nn.Module, size: int) -> _Trace:
    """Run the network once in eval mode, first its features, then its head."""
    trace, hooks = _Trace(), []
    for path, module in model.named_modules():
        if path:
            hooks.append(module.register_forward_pre_hook(lambda *_, path=path: trace.started(path)))
            hooks.append(module.register_forward_hook(lambda _, __, output, path=path: trace.ended(path, output)))
    network: Any = model.eval()
    try:
        with torch.no_grad():
            pixels = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
            trace.features = network.forward_features(pixels)
            trace.features_end = trace.clock
            _check_features(trace.features, size)
            operations = _Operations()
            with operations:
                trace.descriptor = network.forward_head(trace.features, pre_logits=True)
    finally:
        for hook in hooks:
            hook.remove()
    trace.operations = operations.names
    if not isinstance(trace.descriptor, torch.Tensor):
        raise NotCuttableError("has no single descriptor before its classifier")
    _cover_silent(model, trace)
    return trace


def _check_features(features: Any, size: int) -> None:
    if not isinstance(features, torch.Tensor):
        raise NotCuttableError("gives several outputs, not one map")
    shape = tuple(features.shape)
    if len(shape) == 3:
        raise NotCuttableError("computes a sequence of tokens, as transformers do, and has no conv stages")
    # Some keep channels last, and their maps are [N, H, W, C].
    if len(shape) != 4 or shape[2] not in (shape[1], shape[3]) or shape[2] > size // 4:
        raise NotCuttableError(f"ends in numbers of shape {shape[1:]}, not in a map of channels")


def _cover_silent(model: nn.Module, trace: _Trace) -> None:
    """Give modules that were never called themselves the time span of the modules inside them."""
    for path in sorted((path for path, _ in model.named_modules() if path), key=lambda path: -path.count(".")):
        parent = path.rpartition(".")[0]
        if path in trace.spans and parent:
            first, last = trace.spans[path]
            begun, ended = trace.spans.get(parent, (first, last))
            trace.spans[parent] = (min(first, begun), max(last, ended))
            if ended <= last and trace.sizes.get(path):
                trace.sizes[parent] = trace.sizes.get(parent) or trace.sizes[path]


def _units(model: nn.Module, trace: _Trace, ends: list[str]) -> list[_Unit]:
    """Return the modules that are taken whole, in the order in which they ran."""
    found: list[_Unit] = []

    def visit(path: str) -> None:
        module = model.get_submodule(path) if path else model
        children = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
        paths = [f"{path}.{name}" if path else name for name in children]
        if not path or _divides(module, path, paths, trace, ends):
            for below in paths:
                visit(below)
            return
        if path not in trace.spans:
            raise NotCuttableError(f"has layers that do not run by themselves ({path})")
        has_conv = any(isinstance(each, nn.Conv2d | nn.Linear) or _is_conv(each) for each in module.modules())
        parameters = sum(p.numel() for p in module.parameters())
        found.append(_Unit(path, *trace.spans[path], parameters, has_conv, trace.sizes.get(path, 0)))

    visit("")
    return sorted(found, key=lambda unit: unit.first)


def _is_conv(module: nn.Module) -> bool:
    return any(p.dim() == 4 for p in module.parameters(recurse=False))


def _divides(module: nn.Module, path: str, children: list[str], trace: _Trace, ends: list[str]) -> bool:
    """Return True if the children of a module run one after the other and may be in different stages."""
    if not children or any(True for _ in module.parameters(recurse=False)):
        return False
    if any(child not in trace.spans for child in children):
        return False
    spans = sorted(trace.spans[child] for child in children)
    if any(after[0] < before[1] for before, after in pairwise(spans)):
        return False
    if isinstance(module, _SEQUENCES) or any(end.startswith(f"{path}.") for end in ends):
        return True
    if spans[-1][0] > trace.features_end:
        return True  # layers of the head, after the last map
    return any(_has_blocks(child) for child in module.children())


def _has_blocks(module: nn.Module) -> bool:
    """Return True for a sequence of blocks, which have layers inside."""
    if not isinstance(module, _SEQUENCES):
        return False
    blocks = [child for child in module.children() if any(True for _ in child.parameters())]
    return bool(blocks) and all(any(True for _ in block.children()) for block in blocks)


def _grouped(units: list[_Unit], ends: list[int]) -> list[list[_Unit]]:
    """Divide units at the ends of stages. A group without a convolution joins the one before it, or after it."""
    groups: list[list[_Unit]] = [[]]
    waiting = list(ends)
    for unit in units:
        while waiting and unit.last > waiting[0] and unit.first > waiting[0]:
            waiting.pop(0)
            groups.append([])
        groups[-1].append(unit)
    joined: list[list[_Unit]] = []
    for group in groups:
        if joined and not (_has_conv(group) and _has_conv(joined[-1])):
            joined[-1].extend(group)
        else:
            joined.append(list(group))
    return joined


def _has_conv(group: list[_Unit]) -> bool:
    return any(unit.has_conv for unit in group)


def _height(group: list[_Unit]) -> int:
    return next((unit.size for unit in reversed(group) if unit.size), 0)


def _merged(groups: list[list[_Unit]]) -> list[list[_Unit]]:
    """Join neighbours until there are five at most: the smallest of equal resolution, or else the first two."""
    groups = [*groups]
    while len(groups) > ALL_STAGES:
        equal = [n for n in range(len(groups) - 1) if _height(groups[n]) == _height(groups[n + 1])]
        place = min(equal, key=lambda n: sum(u.parameters for u in (*groups[n], *groups[n + 1])), default=0)
        groups[place : place + 2] = [groups[place] + groups[place + 1]]
    return groups


def _filled(groups: list[list[_Unit]]) -> list[list[_Unit]]:
    """Divide groups until there are five; raise NotCuttableError if there are too few modules."""
    groups = [*groups]
    while len(groups) < ALL_STAGES:
        places = [(n, at) for n, group in enumerate(groups) for at in range(1, len(group)) if _can_divide(group, at)]
        if not places:
            raise NotCuttableError(f"has {len(groups)} stages of convolutions, and penult needs {ALL_STAGES}")
        n, at = min(places, key=lambda place: _preference(groups[place[0]], *place))
        groups[n : n + 1] = [groups[n][:at], groups[n][at:]]
    return groups


def _can_divide(group: list[_Unit], at: int) -> bool:
    return group[at].has_conv and _has_conv(group[:at])


def _preference(group: list[_Unit], n: int, at: int) -> tuple[float, ...]:
    """Prefer ends before a halving, then the end of the first module, then the middle of the longest stage."""
    halves = bool(group[at].size) and _height(group[:at]) > group[at].size
    is_stem = n == 0 and sum(unit.has_conv for unit in group[:at]) == 1
    return (not halves, not is_stem, -len(group), abs(at - len(group) / 2))


def _collapsed(model: nn.Module, paths: list[str]) -> tuple[str, ...]:
    """Name a parent instead of its children if all of its children with parameters are there."""
    paths = [*paths]
    while True:
        for parent in dict.fromkeys(path.rpartition(".")[0] for path in paths):
            if not parent:
                continue
            children = [
                f"{parent}.{name}"
                for name, child in model.get_submodule(parent).named_children()
                if any(True for _ in child.parameters())
            ]
            if all(child in paths for child in children):
                place = min(paths.index(child) for child in children)
                paths = [path for path in paths if path not in children]
                paths.insert(place, parent)
                break
        else:
            return tuple(paths)
