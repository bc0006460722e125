"""penult train --budget: there is always a bundle, the plan repeats its training exactly, and a kill loses no trial."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from penult.bundle.reader import read_manifest
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError
from penult.export.jobs.budget import replay, run_budget
from penult.export.jobs.packaging import Result

_PATIENCE_S = 300
# So long that no decision depends on the speed of the machine; a run with nothing left to do ends before.
_LONG = "100000s"
_LONG_S = 100_000.0


@pytest.fixture(scope="module")
def options(few_digits: Path, tiny_weights: Path) -> dict[str, Any]:
    """A short run. Everything that is given is pinned."""
    return {"data": few_digits, "weights": str(tiny_weights), "head_epochs": 4, "epochs": 2, "svm": "linear",
            "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A run that publishes its fine-tuned network, because the depth of freezing is given; its folder."""
    folder = tmp_path_factory.mktemp("budget")
    more = {"out": folder / "digits", "save_weights": folder / "end.pt", "freeze": 2}
    return run_budget(TrainSettings.of(**options, **more, budget=_LONG)), folder


def _plan(model: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((model / "budget" / "budget.json").read_bytes())
    return plan


def _stages(plan: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(each["stage"] for each in plan["tried"]))


def test_all_is_tried_and_one_version_is_published(tuned: tuple[Result, Path]):
    """Copies, views, sizes, the frozen network, trials and the final training; nothing else is left behind."""
    result, folder = tuned
    plan = _plan(folder / "digits")
    assert _stages(plan) == ["size", "copies", "views", "frozen", "trial", "final training"]
    assert sorted(entry.name for entry in (folder / "digits").iterdir()) == ["1", "budget"]
    assert result.folder == folder / "digits" / "1"
    assert plan["final"]["kind"] == "fine-tuned"
    assert [each["end"] for each in plan["final"]["rounds"]] == [0.5, 1.0]
    assert (folder / "digits" / "budget" / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "digits" / "budget" / "trials.csv").read_text().splitlines()) == 1 + len(plan["tried"])


def test_the_plan_is_in_the_bundle(tuned: tuple[Result, Path]):
    """In the record of the training, as a file, and with its picture in the report."""
    result, folder = tuned
    plan = _plan(folder / "digits")
    assert read_manifest(result.folder).training["budget"] == plan
    assert json.loads((result.folder / "budget.json").read_bytes()) == plan
    page = (result.folder / "report" / "index.html").read_text()
    assert '<section id="budget">' in page
    assert plan["decisions"][-1] in page


def test_given_options_are_kept(tuned: tuple[Result, Path]):
    """The final training has the given depth, epochs and SVM, and its trials too."""
    recorded = read_manifest(tuned[0].folder).training["settings"]
    assert (recorded["freeze"], recorded["epochs"], recorded["svm"]) == (2, 2, "linear")
    assert not any("stages frozen" in each["what"] for each in _plan(tuned[1] / "digits")["tried"][:-1])


def test_the_plan_repeats_the_final_training_exactly(
    tuned: tuple[Result, Path], options: dict[str, Any], tmp_path: Path
):
    """Same weights, history and SVM, bit for bit, from the plan of the bundle and the same photos."""
    result, folder = tuned
    again = replay(
        TrainSettings.of(
            data=options["data"], out=tmp_path / "digits", weights=options["weights"], device="cpu",
            save_weights=tmp_path / "end.pt", budget_plan=result.folder / "budget.json",
        )
    )  # fmt: skip
    before, after = (torch.load(each / "end.pt", weights_only=True) for each in (folder, tmp_path))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    histories = [(each.folder / "history.csv").read_text().splitlines() for each in (result, again)]
    one, other = ([row.split(",")[:8] for row in rows] for rows in histories)
    assert one == other
    assert (again.folder / "svm.pkl").read_bytes() == (result.folder / "svm.pkl").read_bytes()
    assert [entry.name for entry in (tmp_path / "digits").iterdir()] == ["1"]


def test_a_plan_needs_its_weights(tuned: tuple[Result, Path], options: dict[str, Any], tmp_path: Path):
    """Other weights of the same network are refused in one line."""
    state = torch.load(options["weights"], weights_only=True)
    torch.save({name: value * 2 for name, value in state.items()}, tmp_path / "w.pt")
    with pytest.raises(SettingsError, match="--budget-plan needs the weights of tiny5 with SHA-256"):
        replay(
            TrainSettings.of(
                data=options["data"], out=tmp_path / "digits", weights=str(tmp_path / "w.pt"), device="cpu",
                budget_plan=tuned[0].folder / "budget.json",
            )
        )  # fmt: skip


def test_a_budget_that_is_too_small_says_what_would_do(options: dict[str, Any], tmp_path: Path):
    """At once, in one line, and nothing is published."""
    settings = TrainSettings.of(**options, out=tmp_path / "digits", budget="100s")
    with pytest.raises(SettingsError, match=r"--budget 100s is too small: .*; give at least \d+(s|m)"):
        run_budget(settings, began=time.monotonic() - 99.9)
    assert not list((tmp_path / "digits").glob("[0-9]*"))


def test_there_is_a_bundle_even_if_the_time_is_nearly_over(options: dict[str, Any], tmp_path: Path):
    """With less left than fine-tuning needs, the frozen network is published, with the reason."""
    settings = TrainSettings.of(**options, out=tmp_path / "digits", budget=_LONG)
    result = run_budget(settings, began=time.monotonic() - 0.97 * _LONG_S)
    plan = _plan(tmp_path / "digits")
    assert _stages(plan) == ["frozen"]
    assert plan["final"]["kind"] == "frozen"
    assert any(each.startswith("fine-tuning: none, because") for each in plan["decisions"])
    assert read_manifest(result.folder).training["settings"]["freeze"] == "all"


def test_several_files_are_ranked(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`quick` ranks the networks of a folder and publishes the best frozen one; a file of another kind is noted."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for name, scale in (("a.pt", 1.0), ("b.pt", 0.0)):
        state = torch.load(options["weights"], weights_only=True)
        torch.save({k: v * scale if v.dtype.is_floating_point else v for k, v in state.items()}, weights / name)
    (weights / "notes.bin").write_bytes(b"<!doctype html>")
    more = {**options, "weights": str(weights)}
    run_budget(TrainSettings.of(**more, out=tmp_path / "digits", budget="quick"))
    plan = _plan(tmp_path / "digits")
    assert [(each["stage"], each["photos"]) for each in plan["tried"][:2]] == [("ranking", 96), ("ranking", 96)]
    best = max(plan["tried"][:2], key=lambda each: each["accuracy"])
    assert plan["tried"].index(best) == 0
    assert plan["final"]["settings"]["weights"] == "a.pt"
    assert "notes.bin is a web page" in capsys.readouterr().err


# -- the command, killed or in several processes -----------------------------------------------------------------------


@pytest.fixture
def command(options: dict[str, Any]) -> Callable[..., list[str]]:
    """command(out, *more): the words of a run with the given depth of freezing."""

    def words(out: Path, *more: str) -> list[str]:
        given = [w for k, v in options.items() if k != "data" for w in (f"--{k.replace('_', '-')}", str(v))]
        given[given.index("--epochs") + 1] = "6"
        return ["penult.cli", "train", str(options["data"]), "--out", str(out), *given, "--freeze", "2",
                "--budget", _LONG, *more]  # fmt: skip

    return words


@pytest.mark.system
@pytest.mark.parametrize("stage", ["frozen", "trial", "rounds"])
def test_a_killed_run_goes_on(command: Callable[..., list[str]], tmp_path: Path, stage: str):
    """kill -9 after the frozen network, a trial, or within the final training: what was tried is kept, with its times.

    The plan of the resumed run repeats its training.
    """
    out, end = tmp_path / "digits", tmp_path / "end.pt"
    words = [sys.executable, "-m", *command(out, "--save-weights", str(end))]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record, ends = out / ".training" / "budget" / "journal.json", time.monotonic() + _PATIENCE_S
    while not record.exists() or stage not in record.read_text():
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    before = [each for tried in json.loads(record.read_bytes())["stages"].values() for each in tried]
    resumed = subprocess.run([*words, "--resume"], capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert resumed.returncode == 0, resumed.stderr
    plan = _plan(out)
    kept = [{name: value for name, value in each.items() if name != "more"} for each in before]
    assert plan["tried"][: len(kept)] == kept
    assert not (out / ".training").exists()
    again = [sys.executable, "-m", "penult.cli", "train", words[4], "--out", str(tmp_path / "again"), "--weights",
             words[words.index("--weights") + 1], "--device", "cpu", "--save-weights", str(tmp_path / "again.pt"),
             "--budget-plan", str(out / "budget" / "budget.json")]  # fmt: skip
    assert subprocess.run(again, capture_output=True, timeout=_PATIENCE_S, check=False).returncode == 0
    one, other = (torch.load(path, weights_only=True) for path in (end, tmp_path / "again.pt"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.system
def test_the_first_of_several_processes_decides(command: Callable[..., list[str]], tmp_path: Path):
    """Under torchrun there is one version, one table on the terminal, and the plan is that of the first process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [sys.executable, *launcher, *command(tmp_path / "digits")], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bundle: ") == 1
    assert sorted(entry.name for entry in (tmp_path / "digits").iterdir()) == ["1", "budget"]
    plan = _plan(tmp_path / "digits")
    assert plan["machine"]["processes"] == 2
    assert sum(each["taken"] for each in plan["final"]["rounds"]) == 6 * 3
