"""Learning for real, on few digits: repeatable, frozen where it should be, ending with the best weights."""

import inspect
import math
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.splits import splits_of
from torch.nn import functional as F

from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data.loader import Cache, PhotoReader
from penult.export.errors import SettingsError
from penult.export.networks.architectures import get
from penult.export.networks.network import PenultNet, build
from penult.export.training.distributed import ALONE
from penult.export.training.finetune import FineTuner
from penult.export.training.history import History
from penult.export.training.trainer import _precision

Learn = Callable[..., tuple[PenultNet, History, FineTuner]]


def _learn(folder: Path, **changes: Any) -> tuple[PenultNet, History, FineTuner]:
    values = {"arch": "tiny5", "weights": "none", "freeze": 0, "device": "cpu", "epochs": 3, "augment": "gentle",
              "lr_head": 3e-3, "batch_size": 8}  # fmt: skip
    settings = TrainSettings(**({"data": folder, "out": Path("unused")} | values | changes))
    architecture, splits = get("tiny5"), splits_of(settings)
    net = build(architecture, settings, len(splits.classes))
    reader = PhotoReader(architecture.preprocess, Cache(settings.cache_mb << 20), settings.batch_size)
    tuner = FineTuner(net, architecture, settings, splits, reader, ALONE)
    with tempfile.TemporaryDirectory() as scratch:
        return net, tuner.run(Path(scratch) / "checkpoint.pt"), tuner


@pytest.fixture(scope="module")
def learn(few_digits: Path) -> Learn:
    """learn(**settings): train tiny5 on the digits 0 to 3; return network, history and trainer."""
    return lambda **changes: _learn(changes.pop("data", few_digits), **changes)


@pytest.fixture(scope="module")
def learnt(learn: Learn) -> tuple[PenultNet, History, FineTuner]:
    """One run of ten epochs with much dropout."""
    return learn(epochs=10, dropout=0.8)


@pytest.fixture(scope="module")
def stopped(learn: Learn) -> tuple[PenultNet, History, FineTuner]:
    """One run that stopped by itself, with rates that are too high first and too low in the end."""
    return learn(epochs=300, lr_head=0.05, lr_factor=0.1, lr_patience=0, stop_patience=3)


def _state(net: PenultNet) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def _val_loss(net: PenultNet, tuner: FineTuner) -> float:
    """Measure the validation loss without the trainer's own functions."""
    ((pixels, labels),) = PhotoReader(tuner.reader.spec, Cache(0), 10_000).crops(tuner.splits.val, "test")
    with torch.no_grad():
        return F.cross_entropy(
            net.eval()(tuner.trainer.normalise(torch.from_numpy(pixels)))[0], torch.from_numpy(labels)
        ).item()


def _steps(tuner: FineTuner) -> int:
    """Count the optimizer's steps of one more epoch."""
    phase, seen = tuner._whole_phase(History()), []
    phase.optimizer.register_step_post_hook(lambda *_: seen.append(1))
    phase.train(2)
    return len(seen)


@pytest.mark.parametrize("changes", [{}, {"weights": True, "freeze": 2, "head_epochs": 4}])
def test_the_same_seed_ends_with_the_same_weights(learn: Learn, tiny_weights: Path, changes: dict[str, Any]):
    """Two runs with one seed are bit-equal, with one phase and with two; another seed ends elsewhere."""
    if "weights" in changes:
        changes = changes | {"weights": str(tiny_weights)}
    first, again, other = (_state(learn(**changes, seed=seed)[0]) for seed in (3, 3, 4))
    assert _equal(first, again)
    assert not _equal(first, other)


@pytest.mark.parametrize("count", [0, 3, 5, FREEZE_ALL])
def test_frozen_stages_end_as_they_began(learn: Learn, tiny_weights: Path, count: int):
    """After both phases, frozen stages are the file's bit for bit, statistics too, and every other stage has moved."""
    stored = torch.load(tiny_weights)
    net, _, _ = learn(weights=str(tiny_weights), freeze=count, lr_backbone=1e-3, head_epochs=2)
    found = net.body.state_dict()
    for stage in range(5):
        keys = [key for key in stored if key.startswith(f"stages.{stage}.")]
        same = [torch.equal(found[key], stored[key]) for key in keys]
        assert all(same) if stage < count else not any(same), stage


def test_reinit_learns_behind_frozen_stages(learn: Learn, tiny_weights: Path):
    """With --reinit the frozen stages are the file's at the end too, and there is no phase for the head alone."""
    stored = torch.load(tiny_weights)
    net, history, _ = learn(weights=str(tiny_weights), freeze=2, reinit=True)
    found = net.body.state_dict()
    assert all(torch.equal(found[key], stored[key]) == key.startswith(("stages.0.", "stages.1.")) for key in stored)
    assert {epoch.phase for epoch in history.epochs} == {"all"}


def test_it_learns(learnt: tuple[PenultNet, History, FineTuner]):
    """Ten epochs on eighty digits bring the loss far down and name most of the held-out ones right."""
    net, history, tuner = learnt
    assert history.best_loss < 0.5 * history.epochs[0].val_loss
    assert max(epoch.val_accuracy for epoch in history.epochs) > 0.8
    assert _val_loss(net, tuner) < 0.7


def test_phases_follow_each_other(learn: Learn, tiny_weights: Path):
    """The head learns first, then the rest; `all` leaves it at the head, and a random start needs no such phase."""
    common = {"weights": str(tiny_weights), "head_epochs": 2, "epochs": 2}
    for changes, phases in (
        (common | {"freeze": 1}, ["head", "head", "all", "all"]),
        (common | {"freeze": FREEZE_ALL}, ["head", "head"]),
        ({"epochs": 2}, ["all", "all"]),
    ):
        assert [epoch.phase for epoch in learn(**changes)[1].epochs] == phases


def test_the_best_weights_are_kept(stopped: tuple[PenultNet, History, FineTuner]):
    """The network ends with the weights of its lowest validation loss, not with its last ones."""
    net, history, tuner = stopped
    assert _val_loss(net, tuner) == pytest.approx(history.best_loss, rel=1e-4)
    assert _val_loss(net, tuner) != pytest.approx(history.epochs[-1].val_loss, rel=1e-3)


def test_a_phase_that_does_not_help_is_undone(learn: Learn, tiny_weights: Path):
    """Where learning on makes validation worse, the weights from before it stay."""
    stored = torch.load(tiny_weights)
    net, history, tuner = learn(weights=str(tiny_weights), freeze=2, head_epochs=30, epochs=2, lr_backbone=1.0)
    assert min(epoch.val_loss for epoch in history.phase("all")) > min(
        epoch.val_loss for epoch in history.phase("head")
    )
    assert all(torch.equal(value, stored[key]) for key, value in net.body.state_dict().items())
    assert _val_loss(net, tuner) == pytest.approx(history.best_loss, rel=1e-3)


def test_early_stopping_ends_a_phase(stopped: tuple[PenultNet, History, FineTuner]):
    """A run whose validation loss has stopped falling ends after its patience, long before its last epoch."""
    _, history, _ = stopped
    best = min(history.epochs, key=lambda epoch: epoch.val_loss).epoch
    assert len(history.epochs) < 300
    assert history.epochs[-1].epoch == best + 3


def test_the_rate_drops_where_the_loss_stalls(stopped: tuple[PenultNet, History, FineTuner]):
    """After an epoch that is no better, and after no other, the rate falls by its factor."""
    epochs, best = stopped[1].epochs, math.inf
    assert epochs[0].learning_rate == 0.05
    for before, after in pairwise(epochs):
        stalled, best = before.val_loss >= best * (1 - 1e-4), min(best, before.val_loss)
        if before.learning_rate > 1e-6:  # the schedule leaves rates below this as they are
            assert after.learning_rate == pytest.approx(before.learning_rate * (0.1 if stalled else 1))


def test_the_first_steps_are_small(learn: Learn):
    """In the first epoch the rate grows from step to step, so that the new head does not upset what was loaded."""
    _, _, tuner = learn(epochs=1)
    phase, seen = tuner._whole_phase(History()), []
    phase.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    phase.train(1)
    steps = -(-len(tuner.splits.train) // 8)
    assert seen == pytest.approx([3e-3 * (step + 1) / steps for step in range(steps)])
    seen.clear()
    phase.train(2)
    assert seen == pytest.approx([3e-3] * steps)


def test_every_batch_is_a_step_but_a_photo_left_over(learn: Learn):
    """Only a last batch of a single photo is left out, because there are no statistics over one."""
    _, _, tuner = learn(epochs=1)
    count = len(tuner.splits.train)
    assert _steps(tuner) == -(-count // 8)
    assert _steps(learn(epochs=1, batch_size=count - 1)[2]) == 1
    assert _steps(learn(epochs=1, batch_size=count - 2)[2]) == 2


def test_batches_of_one_photo_are_learnt_from(learn: Learn):
    """With --batch-size 1, if that is accepted at all, an epoch learns from every photo, not from the first alone."""
    try:
        _, _, tuner = learn(epochs=1, batch_size=1)
    except SettingsError:
        return
    assert _steps(tuner) == len(tuner.splits.train)


def test_a_run_that_diverges_says_so(learn: Learn):
    """A loss that is no number stops the run with one line on what to lower."""
    with pytest.raises(SettingsError) as caught:
        learn(lr_head=1e30)
    assert caught.value.reason == "DIVERGED"
    assert "--lr-head" in caught.value.message


def test_losses_are_measured_as_in_serving(learnt: tuple[PenultNet, History, FineTuner]):
    """The history's training loss is measured in eval mode, without dropout; the running one is not."""
    best = min(learnt[1].epochs, key=lambda epoch: epoch.val_loss)
    assert best.train_loss < 0.7 * best.running_loss


def test_settings_are_what_decides(learn: Learn, few_digits: Path, tmp_path: Path):
    """Neither the cache nor the place of the photos changes the weights."""
    moved = few_digits.parent.rename(tmp_path / "moved")
    try:
        elsewhere = _state(learn(data=moved / few_digits.name, cache_mb=0)[0])
    finally:
        moved.rename(few_digits.parent)
    assert _equal(elsewhere, _state(learn()[0]))


@pytest.mark.parametrize("batch_size", [79, 40, 80, 27])
def test_a_cycle_ends_with_the_last_step(learn: Learn, batch_size: int):
    """One-cycle's rate is down at the end of the last epoch, also where a photo left over makes no step."""
    _, history, tuner = learn(epochs=3, schedule="onecycle", batch_size=batch_size)
    assert len(tuner.splits.train) == 80
    assert history.epochs[-1].learning_rate == pytest.approx(3e-3 * 1e-3)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_bf16_is_used_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype):
    """PyTorch says yes to bf16 on every GPU, as it can emulate it: only what computes in it gets it."""

    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or has_bf16

    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert _precision("auto", torch.device("cuda")) == expected
    assert _precision("auto", torch.device("cpu")) == torch.float32
