"""How far layers moved: exactly nothing where frozen, the worked-out share elsewhere, in every architecture."""

import csv
import io
from typing import Any

import pytest
import torch

from penult.export.config.train import ALL_STAGES, FREEZE_ALL
from penult.export.networks import architectures
from penult.export.networks.architectures import get
from penult.export.networks.network import PenultNet, copy_weights, freeze_stages
from penult.export.networks.weight_changes import (
    CONV,
    STATISTICS,
    changes_csv,
    first_filters,
    layer_changes,
    stage_changes,
    stage_of,
)


def _learn(net: PenultNet, count: int) -> None:
    """Freeze some stages and take two real optimizer steps, statistics included."""
    freeze_stages(net, get("tiny5"), count)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01)
    generator = torch.Generator().manual_seed(1)
    net.train()
    for _ in range(2):
        loss = net(torch.rand(8, 3, 32, 32, generator=generator))[0].logsumexp(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("frozen", [0, 1, 3, ALL_STAGES, FREEZE_ALL])
def test_frozen_layers_changed_by_exactly_0(tiny_net: PenultNet, frozen: int):
    """After real steps, weights and statistics of frozen stages are at exactly 0, and all others are not."""
    before = copy_weights(tiny_net)
    _learn(tiny_net, frozen)
    changes = layer_changes(get("tiny5"), before, copy_weights(tiny_net))
    assert [(c.stage, c.kind) for c in changes] == [
        (f"stage {n}", kind) for n in range(1, ALL_STAGES + 1) for kind in (CONV, STATISTICS)
    ]
    for change in changes:
        assert (change.change == 0) == (int(change.stage.split()[1]) <= frozen), change
    stages = {stage.name: stage.identical for stage in stage_changes(get("tiny5"), before, copy_weights(tiny_net))}
    assert stages == {f"stage {n}": n <= frozen for n in range(1, ALL_STAGES + 1)} | {"head": False}


def test_the_change_is_relative_to_what_was_there(tiny_net: PenultNet):
    """A weight scaled by 1.25 changed by a quarter; statistics count mean and variance as one vector."""
    before, after = copy_weights(tiny_net), copy_weights(tiny_net)
    after["body.stages.2.0.weight"] *= 1.25
    before["body.stages.3.1.running_mean"].fill_(3)
    before["body.stages.3.1.running_var"].fill_(4)
    after["body.stages.3.1.running_mean"].fill_(3)
    after["body.stages.3.1.running_var"].fill_(5)
    moved = {c.layer: c.change for c in layer_changes(get("tiny5"), before, after) if c.change}
    assert moved == pytest.approx({"stages.2.0": 0.25, "stages.3.1": 1 / 5})


def test_a_change_from_nothing_is_a_whole_one(tiny_net: PenultNet):
    """From a weight of zeros the share is 1, not a division by zero; a pair of zeros did not change."""
    before, after = copy_weights(tiny_net), copy_weights(tiny_net)
    for key in ("body.stages.0.0.weight", "body.stages.1.0.weight"):
        before[key].zero_()
    after["body.stages.1.0.weight"].zero_()
    found = {c.layer: c.change for c in layer_changes(get("tiny5"), before, after)}
    assert (found["stages.0.0"], found["stages.1.0"]) == (1.0, 0.0)


def test_a_smallest_change_of_a_bias_shows(tiny_net: PenultNet):
    """A stage is identical only if every bit is: one step of one bias, or a counter, is enough."""
    for key in ("body.stages.1.1.bias", "body.stages.1.1.num_batches_tracked"):
        before, after = copy_weights(tiny_net), copy_weights(tiny_net)
        after[key] += 1e-6 if after[key].is_floating_point() else 1
        changed = [s.name for s in stage_changes(get("tiny5"), before, after) if not s.identical]
        assert changed == ["stage 2"], key


@pytest.mark.parametrize("name", architectures.names())
def test_every_layer_belongs_to_a_stage(name: str):
    """In every network each weight has its stage, stages come in order, and the first convolution is in the first."""
    with torch.device("meta"):
        weights = {f"body.{key}": value for key, value in get(name).body().state_dict().items()}
    stages = [stage_of(get(name), key) for key in weights]
    assert stages == sorted(stages, key=lambda stage: (stage == "dense", stage))
    assert set(stages) == {f"stage {n}" for n in range(1, 6)} | ({"dense"} if get(name).dense else set())
    assert weights[first_filters(weights)].shape[1] == 3
    assert stage_of(get(name), first_filters(weights)) == "stage 1"


@pytest.mark.parametrize(
    ("name", "modules"),
    [("resnet18", ["conv1, bn1", "layer1"]), ("squeezenet1_1", ["features.0 … 2", "features.3 … 5"])],
)
def test_stages_name_their_modules(name: str, modules: list[str]):
    """Modules carry torchvision's names, a long row of them is shortened, and every parameter is counted once."""
    body = get(name).body()
    weights = {f"body.{key}": value for key, value in body.state_dict().items()}
    table = stage_changes(get(name), weights, weights)
    assert [stage.modules for stage in table[:2]] == modules
    assert sum(stage.parameters for stage in table) == sum(p.numel() for p in body.parameters())


def test_the_csv_holds_every_layer(tiny_net: PenultNet):
    """changes.csv has a row per layer whose numbers read back as they are."""
    before = copy_weights(tiny_net)
    _learn(tiny_net, 2)
    changes = layer_changes(get("tiny5"), before, copy_weights(tiny_net))
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(changes_csv(changes).decode())))
    assert [(r["layer"], r["stage"], r["kind"], float(r["relative_change"])) for r in rows] == [
        (c.layer, c.stage, c.kind, c.change) for c in changes
    ]
