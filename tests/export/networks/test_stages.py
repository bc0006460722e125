"""docs/architectures.md and the facts in it: where each network halves its resolution, and what is in a stage."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from penult.export.networks import stages
from penult.export.networks.architectures import get, names

ROOT = Path(__file__).parents[3]


def test_the_document_is_what_the_code_says():
    """docs/architectures.md is up to date; `python -m penult.export.networks.stages docs/architectures.md` makes it so."""
    assert (ROOT / "docs" / "architectures.md").read_text() == stages.document()


@pytest.mark.parametrize("name", names())
def test_resolution_halves_between_stages(name: str):
    """No stage hands on more pixels than the one before; from the second to the last each halves them at most once."""
    with torch.device("meta"):
        body = get(name).body()
    *shapes, descriptor = stages.outputs(get(name), body)
    sides = [shape[1] for shape in shapes]
    assert all(before == after or before // 2 <= after <= -(-before // 2) for before, after in pairwise(sides))
    assert sides[0] <= get(name).preprocess.crop
    assert len(descriptor) == 1


@pytest.mark.parametrize("name", ["tiny5", "squeezenet1_1", "mobilenet_v3_small"])
def test_stages_and_dense_layers_are_all_parameters(name: str):
    """The numbers in the table are those of the network, and of its real output."""
    architecture = get(name)
    body = architecture.body().eval()
    found = stages.stages_of(architecture, body)
    assert sum(stage.parameters for stage in found) == sum(p.numel() for p in body.parameters())
    assert [stage.name for stage in found[:5]] == [f"stage {n}" for n in range(1, 6)]
    with torch.device("meta"):
        shapes = stages.outputs(architecture, architecture.body())
    assert shapes == stages.outputs(architecture, body)
    assert all(len(shape) == 3 for shape in shapes[:5])
