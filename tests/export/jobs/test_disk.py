"""Full disks, files in the place of folders, photos that go: refused before learning, or told in one line and resumable."""

import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penult.bundle.naming import versions
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.data.loader import Cache, PhotoReader
from penult.export.data.splitting import Photo
from penult.export.disk import check_file, check_folder, writing
from penult.export.errors import DataError, DiskError
from penult.export.jobs import train as train_module
from penult.export.jobs.packaging import Result
from penult.export.jobs.run_sweep import run_sweep
from penult.export.jobs.train import save_weights, train
from penult.export.networks.network import PenultNet
from penult.export.training.history import History
from penult.export.training.tensorboard import TensorBoardWriter

_PATIENCE_S = 240
_FULL = "No space left on device; free some space"


@pytest.fixture(scope="module")
def options(few_digits: Path, tiny_weights: Path) -> dict[str, Any]:
    """Settings of a short run."""
    return {"data": few_digits, "arch": "tiny5", "weights": str(tiny_weights), "augment": "gentle", "head_epochs": 4,
            "epochs": 2, "lr_backbone": 1e-3, "batch_size": 16, "svm": "linear", "device": "cpu"}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file where a folder is wanted: even root, whom rights do not bind, is refused."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    return path


@contextmanager
def _files_of(most_bytes: int) -> Iterator[None]:
    """Let no file grow beyond some size, as a disk with so much left would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _is_full(scratch: Path) -> None:
    """Let what will be written to `scratch` meet a full disk."""
    scratch.parent.mkdir(parents=True)
    scratch.symlink_to("/dev/full")


def _command(options: dict[str, Any], out: Path, *more: str) -> list[str]:
    words = [
        w for name, value in options.items() if name != "data" for w in (f"--{name.replace('_', '-')}", str(value))
    ]
    return ["-m", "penult.cli", "train", str(options["data"]), "--out", str(out), *words, *more]


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=_PATIENCE_S, check=False)


# -- before learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "wrong", "reason"),
    [("out", "file", "File exists"), ("out", "file/m", "Not a directory"), ("save_weights", "file/end.pt", "File exists"),
     ("save_weights", "", "Is a directory"), ("save_weights", f"{'long' * 99}.pt", "File name too long"),
     ("tensorboard", "file", "File exists"), ("sweep", "file/m", "Not a directory")],
)  # fmt: skip
def test_unusable_places_are_refused_before_learning(
    options: dict[str, Any], file: Path, monkeypatch: pytest.MonkeyPatch, option: str, wrong: str, reason: str
):
    """Each place that a run will write to is tried first: one line names option, place and reason, and nothing is left."""
    monkeypatch.setattr("penult.export.jobs.train.load_splits", lambda *_: pytest.fail("it went on to the photos"))
    place = file.parent / wrong
    named, run = ("out", run_sweep) if option == "sweep" else (option, train)
    given = {"out": file.parent / "digits", "sweep": "freeze" if option == "sweep" else "no", named: place}
    with pytest.raises(DiskError) as caught:
        run(TrainSettings(**options, **given))
    assert caught.value.message.startswith(f"--{named.replace('_', '-')} {place} cannot be written to: {reason}")
    assert "\n" not in caught.value.message
    assert list(file.parent.iterdir()) == [file]


def test_the_command_line_says_so_in_one_line(options: dict[str, Any], file: Path):
    """Exit code 1 and one line on what to do, where there were a traceback and an epoch in vain."""
    result = _run(*_command(options, file / "m"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"penult: --out {file}/m cannot be written to: Not a directory; move the file that is in a folder's place, or "
        "name another place",
    ]


def test_a_refused_run_leaves_no_folders(options: dict[str, Any], tmp_path: Path):
    """A run that is refused for its photos has made neither the folder of its models nor that of its weights."""
    places = {
        "out": tmp_path / "models" / "m",
        "tensorboard": tmp_path / "t",
        "save_weights": tmp_path / "w" / "end.pt",
    }
    with pytest.raises(DataError):
        train(TrainSettings(**options | {"data": tmp_path / "none"}, **places))
    assert list(tmp_path.iterdir()) == []


def test_trying_disturbs_nothing(tmp_path: Path):
    """Weights of before stay as they are, and so does what a folder holds; a pipe is not waited for."""
    (tmp_path / "end.pt").write_bytes(b"weights")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in before:
        check_file("--save-weights", tmp_path / name)
    check_folder("--out", tmp_path)
    check_folder("--out", tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "end.pt").read_bytes() == b"weights"


def test_a_full_disk_is_found_before_learning(tmp_path: Path):
    """Trying writes more than a name: a disk without room is refused, and the trial is taken away again."""
    with _files_of(1000), pytest.raises(DiskError, match=r"--out .* cannot be written to: File too large"):
        check_folder("--out", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# -- while learning ----------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_while_learning_is_one_line(options: dict[str, Any], tmp_path: Path):
    """No room for a checkpoint: the last line says so and how to go on, without a traceback; with room, it goes on."""
    out = tmp_path / "digits"
    _is_full(out / ".training" / "checkpoint.tmp")
    result = _run(*_command(options, out))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        f"penult: cannot write {out}/.training/checkpoint.pt: {_FULL}, then rerun with --resume"
    )
    assert "Traceback" not in result.stderr
    assert list((out / ".training").iterdir()) == [], "half a checkpoint takes up what is short"
    assert train(TrainSettings(**options, out=out, resume=True)).folder == out / "1"


@pytest.mark.system
def test_a_disk_that_fills_ends_all_processes(options: dict[str, Any], tmp_path: Path):
    """Under torchrun the process that writes says the line, and the other does not wait for it."""
    out = tmp_path / "digits"
    _is_full(out / ".training" / "checkpoint.tmp")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    result = _run(*launcher, *_command(options, out))
    assert result.returncode == 1
    assert f"penult: cannot write {out}/.training/checkpoint.pt: {_FULL}, then rerun with --resume" in result.stderr
    assert versions(out) == []


def test_a_sweep_on_a_full_disk_is_one_line(options: dict[str, Any], tmp_path: Path):
    """The record of a sweep's trials that cannot be written is told likewise."""
    out = tmp_path / "digits"
    _is_full(out / "sweep-freeze" / "trials.tmp")
    with pytest.raises(DiskError, match=f"trials.json: {_FULL}, then rerun with --resume"):
        run_sweep(TrainSettings(**options, out=out, sweep="freeze"))


def test_weights_on_a_full_disk_are_one_line(tiny_net: PenultNet):
    """--save-weights tells what the system said, which torch does not."""
    with pytest.raises(DiskError, match=f"cannot write /dev/full: {_FULL}"):
        save_weights(tiny_net, Path("/dev/full"))


def test_a_bundle_on_a_full_disk_can_be_published_later(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A disk that fills at the very end costs nothing that was learnt: resumed, the run publishes its first version."""
    settings = TrainSettings(**options | {"freeze": FREEZE_ALL}, out=tmp_path / "digits")

    publish = train_module.publish

    def publish_on_little(*arguments: Any) -> Result:
        with _files_of(10_000):
            return publish(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "publish", publish_on_little)
        with pytest.raises(DiskError, match=r"cannot write .*/digits: File too large; .*, then rerun with --resume"):
            train(settings)
    assert versions(settings.out) == []
    resumed = TrainSettings(**options | {"freeze": FREEZE_ALL}, out=settings.out, resume=True)
    assert train(resumed).folder == settings.out / "1"


def test_tensorboard_on_a_full_disk_is_one_line(made_up_history: Callable[..., History], tmp_path: Path):
    """Event files are written where the run sees it fail: there is no thread to end with a traceback of its own."""
    (epoch,) = made_up_history(1).epochs
    threads = threading.active_count()
    with (
        pytest.raises(DiskError, match=f"cannot write {tmp_path}/runs: File too large"),
        TensorBoardWriter(tmp_path / "runs") as board,
    ):
        with _files_of(0):
            board.add(epoch)
    assert threading.active_count() == threads


def test_what_is_no_refusal_stays_a_bug(tmp_path: Path):
    """A RuntimeError that no disk gave is not dressed up as one."""
    with pytest.raises(RuntimeError, match="a bug"), writing(tmp_path):
        raise RuntimeError("a bug")


# -- photos that go ----------------------------------------------------------------------------------------------------


def test_a_photo_that_vanishes_is_named(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A photo removed after the first epoch ends the run with one line; restored, the run is resumed to its end."""
    photos = shutil.copytree(options["data"], tmp_path / "photos")
    gone = sorted(photos.rglob("train/*/*.png"))[0]
    given = options | {"data": photos, "cache_mb": 0, "epochs": 8}
    command = [sys.executable, *_command(given, tmp_path / "digits")]
    ends = time.monotonic() + _PATIENCE_S
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            assert time.monotonic() < ends
            if line.strip().startswith("all   1"):
                kept = gone.read_bytes()
                gone.unlink()
                break
        *_, last = process.stderr.read().splitlines()
    assert process.returncode == 1
    assert last == (
        f"penult: photo {gone} can no longer be read: No such file or directory; restore it, then rerun with --resume"
    )
    gone.write_bytes(kept)
    assert train(TrainSettings(**given, out=tmp_path / "digits", resume=True)).folder == tmp_path / "digits" / "1"
    assert "resuming after" in capsys.readouterr().err


@pytest.mark.parametrize(("data", "reason"), [(None, "Is a directory"), (b"no photo", "IMAGE_UNKNOWN_FORMAT")])
def test_a_photo_that_changes_is_named(
    photo_bytes: Callable[[int], bytes], tmp_path: Path, data: bytes | None, reason: str
):
    """What has become of a photo since it was checked is told with its name, on whichever thread it is read."""
    from penult.bundle.preprocess import Preprocess

    path = tmp_path / "cat.png"
    path.mkdir() if data is None else path.write_bytes(data)
    (tmp_path / "dog.png").write_bytes(photo_bytes(0))
    pair = (Photo(tmp_path / "dog.png", 0, "dog"), Photo(path, 1, "cat"))
    with pytest.raises(DiskError, match=rf"photo {path} can no longer be read.*{reason}.*restore it"):
        list(PhotoReader(Preprocess(32, 32), Cache(0), 4).crops(pair, "test"))
