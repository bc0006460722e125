"""Measure how far training moved the weights of each layer and stage."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `penult svm` writes its report without PyTorch
    import torch

    from penult.export.networks.architectures import Architecture

CONV, DENSE_LAYER, STATISTICS = "conv", "dense", "statistics"
DENSE_STAGE, HEAD_STAGE = "dense", "head"
_BODY = "body."
_MEAN, _VARIANCE = ".running_mean", ".running_var"
_KINDS = {4: CONV, 2: DENSE_LAYER}


@dataclass(frozen=True)
class LayerChange:
    """One layer of the body. `change` is |after - before| / |before| of its weight or its batch-norm statistics."""

    layer: str
    stage: str
    kind: str
    change: float


@dataclass(frozen=True)
class StageChange:
    """One stage. `identical` is True if no bit of its parameters and buffers has changed."""

    name: str
    modules: str
    parameters: int
    identical: bool


def layer_changes(
    architecture: "Architecture", before: Mapping[str, "torch.Tensor"], after: Mapping[str, "torch.Tensor"]
) -> tuple[LayerChange, ...]:
    """Compare convolutions, dense layers and batch-norm statistics of two state dicts of a PenultNet, input first.

    Mean and variance of a batch norm count as one vector. An unchanged layer has a change of exactly 0.
    """
    found = []
    for key, weight in before.items():
        if not key.startswith(_BODY):
            continue
        if key.endswith(_MEAN):
            name = key.removesuffix(_MEAN)
            change = _relative([(before[name + part], after[name + part]) for part in (_MEAN, _VARIANCE)])
            found.append(LayerChange(name.removeprefix(_BODY), stage_of(architecture, key), STATISTICS, change))
        elif key.endswith(".weight") and weight.ndim in _KINDS:
            name = key.removeprefix(_BODY).removesuffix(".weight")
            change = _relative([(weight, after[key])])
            found.append(LayerChange(name, stage_of(architecture, key), _KINDS[weight.ndim], change))
    return tuple(found)


def stage_changes(
    architecture: "Architecture", before: Mapping[str, "torch.Tensor"], after: Mapping[str, "torch.Tensor"]
) -> tuple[StageChange, ...]:
    """Compare two state dicts of a PenultNet by conv stage, hidden dense layers and head."""
    modules = {f"stage {number}": paths for number, paths in enumerate(architecture.stages, 1)}
    if architecture.dense:
        modules[DENSE_STAGE] = architecture.dense
    keys: dict[str, list[str]] = {name: [] for name in (*modules, HEAD_STAGE)}
    for key in before:
        keys.setdefault(stage_of(architecture, key), []).append(key)
    return tuple(
        StageChange(
            name,
            _shortened(modules.get(name, ("dropout, then a dense layer",))),
            sum(before[key].numel() for key in names if key.endswith((".weight", ".bias"))),
            all(bool((before[key] == after[key]).all()) for key in names),
        )
        for name, names in keys.items()
    )


def stage_of(architecture: "Architecture", key: str) -> str:
    """Return the stage of a state-dict key: "stage 1" to "stage 5", "dense" (hidden dense layers) or "head"."""
    path = key.removeprefix(_BODY)
    for number, paths in enumerate(architecture.stages, 1):
        if path.startswith(tuple(f"{start}." for start in paths)):
            return f"stage {number}"
    return DENSE_STAGE if key.startswith(_BODY) else HEAD_STAGE


def first_filters(weights: Mapping[str, "torch.Tensor"]) -> str:
    """Return the state-dict key of the first convolution, which has three input channels."""
    return next(key for key, value in weights.items() if value.ndim == 4 and value.shape[1] == 3)


def changes_csv(changes: Sequence[LayerChange]) -> bytes:
    """Return a CSV with a row per layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "stage", "kind", "relative_change"])
    writer.writerows([change.layer, change.stage, change.kind, repr(change.change)] for change in changes)
    return text.getvalue().encode()


def _relative(pairs: list[tuple["torch.Tensor", "torch.Tensor"]]) -> float:
    """Return |after - before| / |before|, where all pairs (before, after) together are one vector."""
    moved, was, became = (
        math.hypot(*(float(v.norm()) for v in values))
        for values in (
            [after - before for before, after in pairs],
            [before for before, _ in pairs],
            [after for _, after in pairs],
        )
    )
    # If all values were 0, any change counts as 1.
    return moved / (was or became or 1.0)


def _shortened(paths: Sequence[str]) -> str:
    """Shorten features.3, features.4, features.5 to features.3 … 5."""
    numbered = [re.fullmatch(r"(.+\.)(\d+)", path) for path in paths]
    if len(paths) < 3 or not all(numbered):
        return ", ".join(paths)
    first, last = numbered[0], numbered[-1]
    assert first and last
    return f"{first[0]} … {last[2]}"
