"""kill -9 at ten random moments: every resumed run ends with the weights, the history and the SVM of an unbroken one."""

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
_KILLS = 10
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
            *("--arch", "tiny5", "--weights", str(tiny_weights), "--augment", "gentle", "--head-epochs", "30"),
            *("--epochs", "12", "--lr-backbone", "1e-3", "--batch-size", "16", "--device", "cpu", "--svm", "linear"),
            *("--save-weights", str(folder / "end.pt"), *_WAYS[way], *options),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    return begin


def _finish(process: "subprocess.Popen[str]", folder: Path) -> tuple[dict[str, torch.Tensor], list[str], bytes]:
    """Wait for a run; return its weights, its history without the seconds, and its SVM."""
    assert process.communicate(timeout=_PATIENCE_S)[1] is not None
    assert process.returncode == 0
    # Struck while it was publishing, a run leaves a scrap under another name; struck just after, it publishes again.
    bundle = folder / "digits" / str(versions(folder / "digits")[-1])
    rows = [",".join(row.split(",")[:8]) for row in (bundle / "history.csv").read_text().splitlines()]
    return torch.load(folder / "end.pt", weights_only=True), rows, (bundle / "svm.pkl").read_bytes()


@pytest.fixture(scope="module")
def unbroken(start: Start, tmp_path_factory: pytest.TempPathFactory):
    """For each way to learn: what an unbroken run ends with, and the seconds from its first line to its last."""
    ends = {}
    for way in _WAYS:
        folder = tmp_path_factory.mktemp("unbroken")
        process = start(way, folder)
        process.stderr.readline()
        begun = time.monotonic()
        ends[way] = (_finish(process, folder), time.monotonic() - begun)
    return ends


def test_ten_of_ten_end_alike(start: Start, unbroken, tmp_path: Path):
    """Wherever it is struck, before the first epoch or while publishing, the run resumes to the same end, bit for bit."""
    moments = random.Random(7)
    plans = [(number, way, moments.random()) for number, way in enumerate(list(_WAYS) * (_KILLS // len(_WAYS)))]

    def strike(plan: tuple[int, str, float]) -> bool:
        number, way, share = plan
        folder = tmp_path / str(number)
        process = start(way, folder)
        process.stderr.readline()  # "loading PyTorch": from here on, anything may be under way
        time.sleep(share * unbroken[way][1])
        was_running = process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=_PATIENCE_S)
        if not was_running:
            return False  # it had published: nothing to resume
        weights, rows, svm = _finish(start(way, folder, "--resume"), folder)
        expected = unbroken[way][0]
        assert weights.keys() == expected[0].keys()
        assert all(torch.equal(value, expected[0][key]) for key, value in weights.items()), plan
        assert rows == expected[1], plan
        assert svm == expected[2], plan
        return True

    with ThreadPoolExecutor(2) as two:
        struck = sum(two.map(strike, plans))
    assert struck >= _KILLS - 2, "too many runs had ended before they were struck"
