"""kill -9 at random moments: every resumed run ends with the weights, the history and the SVM of an unbroken one."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from penult.bundle.naming import versions

pytestmark = pytest.mark.system
# `make kills`: more.
_KILLS = int(os.environ.get("PENULT_KILLS", "4"))
_PATIENCE_S = 240
_WAYS = {
    "plateau": ("--freeze", "2"),
    "onecycle, rates found": ("--freeze", "1", "--schedule", "onecycle", "--lr", "auto"),
}

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start(few_digits: Path, tiny_weights: Path) -> Start:
    """start(way, folder, *options): begin a run that writes folder/digits and folder/end.pt."""

    def begin(way: str, folder: Path, *options: str) -> "subprocess.Popen[str]":
        command = [
            *(sys.executable, "-m", "penult.cli", "train", str(few_digits), "--out", str(folder / "digits")),
            *("--arch", "tiny5", "--weights", str(tiny_weights), "--augment", "gentle", "--head-epochs", "8"),
            *("--epochs", "6", "--lr-backbone", "1e-3", "--batch-size", "16", "--device", "cpu", "--svm", "linear"),
            *("--save-weights", str(folder / "end.pt"), *_WAYS[way], *options),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    return begin


def _finish(process: "subprocess.Popen[str]", folder: Path) -> tuple[dict[str, torch.Tensor], list[str], bytes]:
    """Wait for a run; return its weights, its history without the seconds, and its SVM."""
    _, printed = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 0, printed
    # Struck while it was publishing, a run leaves a scrap under another name; struck just after, it publishes again.
    bundle = folder / "digits" / str(versions(folder / "digits")[-1])
    rows = [",".join(row.split(",")[:8]) for row in (bundle / "history.csv").read_text().splitlines()]
    return torch.load(folder / "end.pt", weights_only=True), rows, (bundle / "svm.pkl").read_bytes()


@pytest.fixture(scope="module")
def unbroken(start: Start, tmp_path_factory: pytest.TempPathFactory):
    """For each way to learn: how many lines an unbroken run prints, and what it ends with."""
    ends = {}
    for way in _WAYS:
        folder = tmp_path_factory.mktemp("unbroken")
        process = start(way, folder)
        lines = len(process.stderr.readlines())
        ends[way] = (lines, _finish(process, folder))
    return ends


def test_resumed_runs_end_alike(start: Start, unbroken, tmp_path: Path):
    """Wherever it is struck, before the first epoch or while publishing, the run resumes to the same end, bit for bit."""
    chance = random.Random(7)
    plans = []
    for number in range(_KILLS):
        way = list(_WAYS)[number % 2]
        # Behind the first line, "loading PyTorch", behind the last, "drawing the report", and anywhere between.
        line = (1, unbroken[way][0])[number] if number < 2 else chance.randint(2, unbroken[way][0] - 1)
        plans.append((number, way, line, chance.uniform(0, 0.1)))

    def strike(plan: tuple[int, str, int, float]) -> None:
        number, way, line, seconds = plan
        folder = tmp_path / str(number)
        process = start(way, folder)
        for _ in range(line):
            assert process.stderr.readline(), plan
        time.sleep(seconds)
        assert process.poll() is None, plan
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=_PATIENCE_S)
        weights, rows, svm = _finish(start(way, folder, "--resume"), folder)
        expected = unbroken[way][1]
        assert weights.keys() == expected[0].keys()
        assert all(torch.equal(value, expected[0][key]) for key, value in weights.items()), plan
        assert rows == expected[1], plan
        assert svm == expected[2], plan

    with ThreadPoolExecutor(2) as two:
        list(two.map(strike, plans))
