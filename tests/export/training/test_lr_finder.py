"""--lr auto: the range test finds a factor that learns, leaves the network alone, and is repeated by the seed."""

import math
from pathlib import Path

import pytest
import torch
from tests.export.splits import splits_of

from penult.export.config.train import TrainSettings
from penult.export.data import transforms
from penult.export.data.loader import Cache, PhotoReader
from penult.export.errors import SettingsError
from penult.export.jobs.train import train
from penult.export.networks.architectures import get
from penult.export.networks.network import build, copy_weights, freeze_stages
from penult.export.training import lr_finder
from penult.export.training.distributed import ALONE
from penult.export.training.finetune import FineTuner
from penult.export.training.history import Epoch


def _tuner(folder: Path, weights: Path, **changes) -> FineTuner:
    settings = TrainSettings(
        data=folder, out=Path("unused"), arch="tiny5", weights=str(weights), freeze=1, augment="gentle", device="cpu",
        lr="auto", **({"batch_size": 16} | changes),
    )  # fmt: skip
    splits, architecture = splits_of(settings), get("tiny5")
    net = build(architecture, settings, len(splits.classes))
    freeze_stages(net, architecture, 1)
    reader = PhotoReader(architecture.preprocess, Cache(1 << 26), settings.batch_size)
    return FineTuner(net, architecture, settings, splits, reader, ALONE)


def _find(tuner: FineTuner) -> float:
    return lr_finder.find_factor(
        tuner.trainer, tuner._optimizer(1.0), tuner.splits.train, transforms.gentle, tuner.settings.seed
    )


def test_rates_that_are_off_are_put_right(few_digits: Path, tiny_weights: Path):
    """Rates given ten times lower are raised about ten times more than those ten times higher."""
    right = _find(_tuner(few_digits, tiny_weights, lr_head=3e-3, lr_backbone=3e-3))
    low = _find(_tuner(few_digits, tiny_weights, lr_head=3e-4, lr_backbone=3e-4))
    assert 0.05 < right < 30
    assert 3 < low / right < 30


def test_the_network_is_left_as_it_was(few_digits: Path, tiny_weights: Path):
    """After the test every weight and statistic is what it was, and the same seed finds the same factor."""
    tuner = _tuner(few_digits, tiny_weights, lr_backbone=1e-3)
    before = copy_weights(tuner.net)
    first = _find(tuner)
    assert all(torch.equal(value, before[key]) for key, value in tuner.net.state_dict().items())
    assert _find(_tuner(few_digits, tiny_weights, lr_backbone=1e-3)) == first


def test_the_scale_of_the_loss_is_left_as_it_was(few_digits: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch):
    """Rates far too high overflow fp16 and lower the scale; the run begins with the scale of before."""
    monkeypatch.setattr(lr_finder, "_STEPS", 6)  # a CPU is slow in fp16
    tuner = _tuner(few_digits, tiny_weights, precision="fp16", lr_head=1e3, lr_backbone=1e3, batch_size=4)
    seen = []
    tuner.trainer.scaler.update = lambda update=tuner.trainer.scaler.update: (update(), seen.append(scale()))
    scale = tuner.trainer.scaler.get_scale
    before = scale()
    _find(tuner)
    assert min(seen) < before
    assert scale() == before


def test_a_run_uses_it_and_says_so(few_digits: Path, tiny_weights: Path, tmp_path: Path):
    """A whole run with --lr auto publishes, and its notes say what the rates were multiplied by."""
    result = train(
        TrainSettings(
            data=few_digits, out=tmp_path / "digits", arch="tiny5", weights=str(tiny_weights), freeze=1, epochs=2,
            head_epochs=2, augment="gentle", device="cpu", lr="auto",
        )
    )  # fmt: skip
    (note,) = [note for note in result.metrics["notes"] if "--lr auto" in note]
    factor = float(note.split()[-1])
    assert 0.001 <= factor <= 100
    assert f"trained at {1e-3 * factor:.1g}"[:13] in (result.folder / "report" / "index.html").read_text()
    rows = (result.folder / "history.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[2]) == pytest.approx(1e-3 * factor, rel=0.05)


def test_the_choice_is_a_tenth_of_where_the_loss_is_lowest():
    """On a curve that falls, then rises, the factor is a tenth of the lowest point's; what is no number ends the curve."""
    losses = [2 - step / 20 for step in range(30)] + [0.6 + step for step in range(20)]
    assert 0.03 < lr_finder.choose(losses) / lr_finder.factor_of(29) < 0.2
    assert lr_finder.choose([*losses[:20], math.nan, *losses[21:]]) == pytest.approx(lr_finder.factor_of(19) / 10)


def test_no_rate_that_works_is_one_line():
    """Where even the first loss is no number, the run stops with one line on what to do."""
    with pytest.raises(SettingsError, match="--lr auto") as caught:
        lr_finder.choose([math.nan, 1.0])
    assert caught.value.reason == "DIVERGED"


class _CutOff(Exception):
    """Stands for the power failing."""


@pytest.mark.parametrize("schedule", ["plateau", "onecycle"])
def test_a_resumed_run_learns_at_the_rates_found(few_digits: Path, tiny_weights: Path, tmp_path: Path, schedule: str):
    """Cut off after its second epoch and resumed, a run goes on at the rates it had found, to the same weights."""

    def run(path: Path, last: int, **changes) -> FineTuner:
        def on_epoch(epoch: Epoch) -> None:
            if (epoch.phase, epoch.epoch) == ("all", last):
                raise _CutOff

        tuner = _tuner(few_digits, tiny_weights, epochs=4, head_epochs=3, schedule=schedule, **changes)
        tuner.on_epoch = on_epoch
        tuner.run(path)
        return tuner

    whole = run(tmp_path / "whole.pt", last=0)
    with pytest.raises(_CutOff):
        run(tmp_path / "cut.pt", last=3)
    resumed = run(tmp_path / "cut.pt", last=0, resume=True)
    assert all(torch.equal(value, resumed.net.state_dict()[key]) for key, value in whole.net.state_dict().items())
