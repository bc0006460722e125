"""The file behind --resume: whole or absent, and of this run or refused."""

import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from penult.bundle.errors import PenultError
from penult.export.config.train import TrainSettings
from penult.export.errors import DiskError, SettingsError
from penult.export.networks.network import PenultNet
from penult.export.training.checkpoint import Checkpoint, run_identity
from penult.export.training.history import Epoch, History
from penult.export.training.schedule import plateau

HASH = "0" * 64


def _checkpoint(path: Path, settings: TrainSettings, data_sha256: str) -> Checkpoint:
    return Checkpoint(path, run_identity(settings, data_sha256), settings.resume)


@pytest.fixture
def run(tiny_net: PenultNet, settings: Callable[..., TrainSettings]) -> dict[str, Any]:
    """A run after a step: network, optimizer with momentum, schedule that has waited, best weights."""
    optimizer = torch.optim.AdamW(tiny_net.parameters(), lr=1e-3)
    tiny_net(torch.rand(2, 3, 32, 32))[0].sum().backward()
    optimizer.step()
    schedule = plateau(optimizer, settings(), math.inf, warm_steps=5)
    schedule.before_step()
    for loss in (1.0, 2.0):
        schedule.after_epoch(loss)
    best = {key: value + 1 for key, value in tiny_net.state_dict().items()}
    history = History([Epoch("all", 1, 1e-3, 1.0, 1.0, 1.0, 0.5, 0.5, 0.1)], ["a note"])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return {
        "net": tiny_net, "optimizer": optimizer, "schedule": schedule, "scaler": scaler, "best": best, "history": history
    }  # fmt: skip


def test_what_is_saved_is_restored(run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path):
    """Weights, optimizer, schedule, loss scale, best weights and history all come back."""
    path = tmp_path / "checkpoint.pt"
    _checkpoint(path, settings(), HASH).save(1, **run)
    again = _checkpoint(path, settings(resume=True), HASH)
    optimizer = torch.optim.AdamW(run["net"].parameters(), lr=7.0)
    schedule = plateau(optimizer, settings(), math.inf, warm_steps=5)
    scaler = torch.amp.GradScaler("cpu")
    best = again.restore(1, optimizer, schedule, scaler)
    assert scaler.get_scale() == 1024.0
    assert all(torch.equal(best[key], value) for key, value in run["best"].items())
    assert all(torch.equal(again.state["net"][key], value) for key, value in run["net"].state_dict().items())
    assert str(optimizer.state_dict()) == str(run["optimizer"].state_dict())
    assert schedule.state_dict() == run["schedule"].state_dict()
    assert (schedule.step, schedule.stopping.epoch, schedule.stopping.best) == (1, 2, 1.0)
    assert again.history == run["history"]


def test_finished_phases_are_known(run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path):
    """After a phase's end only the phases before it are done, and the next begins afresh."""
    path = tmp_path / "checkpoint.pt"
    _checkpoint(path, settings(), HASH).save_finished(0, run["net"], run["history"])
    again = _checkpoint(path, settings(resume=True), HASH)
    assert [again.finished(phase) for phase in (0, 1)] == [True, False]
    assert again.restore(1, run["optimizer"], run["schedule"], run["scaler"]) is None


def test_without_resume_it_is_ignored(run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path):
    """An old checkpoint does not disturb a new run; and --resume without one starts anew."""
    path = tmp_path / "checkpoint.pt"
    assert _checkpoint(path, settings(resume=True), HASH).state is None
    _checkpoint(path, settings(), HASH).save(1, **run)
    fresh = _checkpoint(path, settings(), HASH)
    assert fresh.state is None
    assert fresh.history.epochs == []
    assert not fresh.finished(0)


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"epochs": 31}, {"lr_head": 0.5}, {"augment": "none"}, {"val": "0.3"}]
)
def test_another_runs_checkpoint_is_refused(
    run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path, changes: dict[str, Any]
):
    """Resuming with other settings is refused, in one line, and the file stays."""
    path = tmp_path / "checkpoint.pt"
    _checkpoint(path, settings(), HASH).save(1, **run)
    with pytest.raises(SettingsError) as caught:
        _checkpoint(path, settings(resume=True, **changes), HASH)
    assert caught.value.reason == "RESUME"
    assert "\n" not in caught.value.message
    assert path.exists()


def test_other_photos_are_refused(run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path):
    """Nor can a run go on with other photos than it began with."""
    path = tmp_path / "checkpoint.pt"
    _checkpoint(path, settings(), HASH).save(1, **run)
    with pytest.raises(SettingsError):
        _checkpoint(path, settings(resume=True), "1" * 64)


def test_where_it_runs_does_not_matter(run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path):
    """Another place for photos or results, another cache, another device: the run is the same."""
    path = tmp_path / "checkpoint.pt"
    _checkpoint(path, settings(), HASH).save(1, **run)
    moved = settings(resume=True, data=tmp_path / "moved", out=tmp_path / "m" / "x", cache_mb=1, device="auto")
    assert _checkpoint(path, moved, HASH).phase == 1


@pytest.mark.parametrize("data", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(64)])
def test_a_damaged_checkpoint_is_refused(settings: Callable[..., TrainSettings], tmp_path: Path, data: bytes):
    """A file that cannot be read is one line of error, with what to do, not a traceback."""
    (tmp_path / "checkpoint.pt").write_bytes(data)
    with pytest.raises(PenultError):
        _checkpoint(tmp_path / "checkpoint.pt", settings(resume=True), HASH)


def test_a_half_written_one_is_never_seen(run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path):
    """It is written beside its name and renamed: a scrap of the next one does not disturb the last."""
    path = tmp_path / "checkpoint.pt"
    _checkpoint(path, settings(), HASH).save(1, **run)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]
    path.with_suffix(".tmp").write_bytes(path.read_bytes()[:100])
    assert _checkpoint(path, settings(resume=True), HASH).phase == 1


def test_a_full_disk_leaves_the_last_one(run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path):
    """A write that fails half-way is told and leaves no half; the checkpoint before it can still be resumed from."""
    path = tmp_path / "checkpoint.pt"
    _checkpoint(path, settings(), HASH).save(1, **run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskError, match=f"cannot write {path}: File too large"):
            _checkpoint(path, settings(), HASH).save(1, **run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert _checkpoint(path, settings(resume=True), HASH).phase == 1


def test_it_is_removed_when_done(run: dict[str, Any], settings: Callable[..., TrainSettings], tmp_path: Path):
    """A finished run forgets its checkpoint and the folder made for it, also if there was none."""
    checkpoint = _checkpoint(tmp_path / ".training" / "checkpoint.pt", settings(), HASH)
    Checkpoint.remove(checkpoint.path)
    checkpoint.save(1, **run)
    Checkpoint.remove(checkpoint.path)
    assert list(tmp_path.iterdir()) == []
