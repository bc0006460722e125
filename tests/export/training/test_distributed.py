"""Several processes under torchrun: the same losses and the same weights as one, uneven parts, one that writes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from penult.export.data.splitting import Photo
from penult.export.networks.network import BatchDropout, Rows
from penult.export.training.distributed import ALONE, ProcessGroup, SharedBatchNorm
from penult.export.training.trainer import class_weights

_LOSSES = ("running_loss", "train_loss", "val_loss", "val_loss_error")
_PATIENCE_S = 300


@pytest.fixture(scope="module")
def torchrun(few_digits: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory):
    """torchrun(processes): train on few digits; return history rows, weights, and what was printed."""
    done: dict[int, tuple[list[dict[str, str]], dict[str, torch.Tensor], str]] = {}

    def run(processes: int):
        if processes not in done:
            done[processes] = _run(processes)
        return done[processes]

    def _run(processes: int):
        folder = tmp_path_factory.mktemp("torchrun")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
        # 80 photos in batches of 26: neither divides by two or three, and the last batch has two.
        command = [
            *(sys.executable, *launcher, "-m", "penult.cli", "train", str(few_digits), "--out", str(folder / "digits")),
            *("--arch", "tiny5", "--weights", str(tiny_weights), "--freeze", "1", "--augment", "gentle"),
            *("--head-epochs", "4", "--epochs", "3", "--lr-backbone", "1e-3", "--batch-size", "26", "--device", "cpu"),
            *("--class-weights", "balanced", "--save-weights", str(folder / "end.pt")),
        ]
        result = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=_PATIENCE_S,
            check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert [entry.name for entry in (folder / "digits").iterdir()] == ["1"]
        rows = list(csv.DictReader((folder / "digits" / "1" / "history.csv").read_text().splitlines()))
        return rows, torch.load(folder / "end.pt", weights_only=True), result.stdout + result.stderr

    return run


def _differences(one: list[dict[str, str]], other: list[dict[str, str]]) -> list[float]:
    assert [(row["phase"], row["epoch"]) for row in one] == [(row["phase"], row["epoch"]) for row in other]
    return [abs(float(a[name]) - float(b[name])) for a, b in zip(one, other, strict=True) for name in _LOSSES]


def _assert_alike(one: list[dict[str, str]], other: list[dict[str, str]]) -> None:
    """Assert that losses are equal while the head learns, and then as nearly as rounding lets them be.

    Sums differ in their last bits with the number of processes, and AdamW divides small gradients by themselves: with
    some weights a bit becomes 2e-5 in the first epoch of all layers, and 3e-4 by the third. A mistake in sharing batches,
    batch norm or dropout shows in that first epoch already, as a hundredth or more.
    """
    head = sum(row["phase"] == "head" for row in one)
    assert max(_differences(one[:head], other[:head])) <= 1e-6
    assert max(_differences(one[: head + 1], other[: head + 1])) <= 2e-4
    assert max(_differences(one, other)) <= 5e-3


@pytest.mark.parametrize("processes", [3, pytest.param(2, marks=pytest.mark.system)])
def test_losses_do_not_depend_on_the_number_of_processes(torchrun, processes: int):
    """Every loss is one process's up to rounding, with batch norm, dropout, class weights and parts of different sizes.

    Of three processes, one has none of the last batch of two photos.
    """
    rows, _, _ = torchrun(1)
    assert len(rows) == 7
    _assert_alike(rows, torchrun(processes)[0])


def test_a_plain_run_differs_by_rounding_only(torchrun):
    """Without torchrun, torch's own less precise batch norm is used; the losses stay within a thousandth or two."""
    assert max(_differences(torchrun(0)[0], torchrun(3)[0])) <= 5e-3


def test_frozen_parts_stay_bit_equal_with_three_processes(torchrun, tiny_weights: Path):
    """The frozen stage is the file's, statistics too; what learns has moved."""
    before, (_, after, _) = torch.load(tiny_weights, weights_only=True), torchrun(3)
    for key, value in before.items():
        assert torch.equal(value, after[key]) == key.startswith("stages.0."), key


def test_one_process_speaks_and_writes(torchrun):
    """With three processes, every line and the result appear once, and one version is published."""
    printed = torchrun(3)[2]
    assert printed.count("all   1  ") == 1
    assert printed.count("test photos; default scorer:") == 1
    assert "3 processes" in printed


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_are_even_and_whole(count: int, size: int):
    """The parts of all processes, in order, are the items; their sizes differ by one at most."""
    items = list(range(count))
    parts = [ProcessGroup(rank=rank, size=size).part(items) for rank in range(size)]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_masks_are_drawn_for_the_whole_batch():
    """Three processes' rows of a dropout mask are one process's mask; the mean is kept; eval mode changes nothing."""
    rows = Rows()
    dropout, values = BatchDropout(0.4, rows), torch.ones(10, 400)
    torch.manual_seed(0)
    whole = dropout(values)
    parts = []
    for first, end in ((0, 3), (3, 3), (3, 10)):
        torch.manual_seed(0)
        rows.first, rows.total = first, 10
        parts.append(dropout(values[first:end]))
    assert torch.equal(torch.cat(parts), whole)
    assert float(whole.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(dropout.eval()(values), values)


def test_stochastic_depth_drops_whole_photos():
    """With `whole_photos`, a photo's maps are all kept or all dropped."""
    torch.manual_seed(0)
    kept = BatchDropout(0.5, Rows(), whole_photos=True)(torch.ones(64, 3, 4, 4)).flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept.amin(1), kept.amax(1))


def test_shared_batch_norm_is_torchs(monkeypatch: pytest.MonkeyPatch):
    """Alone, it gives torch's output, gradients and running statistics, more precisely than channels_last does."""
    monkeypatch.setattr("penult.export.training.distributed.dist.all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    maps = torch.randn(6, 5, 7, 7) * 3 + 2
    results = []
    for kind in (nn.BatchNorm2d, SharedBatchNorm):
        norm, given = kind(5), maps.clone().requires_grad_()
        with torch.no_grad():
            norm.weight.copy_(torch.arange(1, 6) / 3)
        out = norm.train()(given)
        (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
        results.append([out, given.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
        assert norm.num_batches_tracked == 1
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_balanced_weights_are_scikit_learns():
    """A class weighs N / (classes x count), so that every class adds up to the same."""
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 6 + [1] * 3 + [2]
    photos = [Photo(Path("x"), label) for label in labels]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights("balanced", photos, 3).tolist() == pytest.approx(expected.tolist())
    assert class_weights("none", photos, 3).tolist() == [1, 1, 1]


def test_alone_nothing_is_shared():
    """Without torchrun, sums, rows and values are this process's own."""
    rows = torch.arange(6.0).view(3, 2)
    assert ALONE.sums([1.5, 2]) == [1.5, 2]
    assert ALONE.rows(rows) is rows
    assert ALONE.same("x") == "x"
    assert ALONE.wrap(net := nn.Linear(2, 2)) is net
