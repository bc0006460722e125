"""The commands as functions: what they return and raise, whom they report to, and what they leave unchanged."""

import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import penult.export
from penult.bundle.errors import PenultError
from penult.export.errors import SettingsError


@pytest.fixture(scope="module")
def learnt(few_digits, tiny_weights, tmp_path_factory):
    """A short training, with all that it reported, and the state of the process before and after it."""
    lines, steps = [], []
    before = _state()
    result = penult.export.train(
        few_digits, tmp_path_factory.mktemp("models") / "digits", arch="tiny5", weights=str(tiny_weights), epochs=1,
        head_epochs=1, device="cpu", on_progress=lambda *step: steps.append(step), on_line=lines.append,
    )  # fmt: skip
    return result, lines, steps, before, _state()


def _state() -> dict[str, object]:
    """Return what a library must not change in the process that calls it."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "random": random.getstate(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": Path.cwd(),
        "hook": sys.excepthook,
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def test_a_version_is_published(learnt):
    """The result is the folder of the version and the contents of metrics.json."""
    result = learnt[0]
    assert (result.folder / "manifest.json").is_file()
    assert set(result.metrics["test"]) == {"dense", "svm"}


def test_progress_goes_to_the_functions(learnt, capfd):
    """Every step counts up to its total; notes are lines; a step has a name."""
    _, lines, steps, *_ = learnt
    by_name: dict[str, list[tuple[int, int]]] = {}
    for what, done, total in steps:
        by_name.setdefault(what, []).append((done, total))
    assert any("describing" in what or "epoch" in what for what in by_name)
    assert all(counts[-1][0] == counts[-1][1] for counts in by_name.values() if counts[-1][1])
    assert any("photos" in line for line in lines)


def test_nothing_is_printed_if_functions_listen(learnt, few_digits, tmp_path, capfd):
    """With a function for progress or notes, standard output and error stay empty."""
    found = penult.export.inspect(
        few_digits, tmp_path, model=learnt[0].folder.parent, on_line=[].append, on_progress=lambda *_: None
    )
    assert capfd.readouterr() == ("", "")
    assert found.page.is_file()


def test_the_process_is_as_before(learnt):
    """Random numbers, variables, warnings, logging, signals and PyTorch's modes are unchanged."""
    *_, before, after = learnt
    assert [name for name in before if before[name] != after[name]] == []


def test_a_new_svm(learnt, few_digits):
    """The next version has the same network."""
    model = learnt[0].folder.parent
    result = penult.export.svm(model, few_digits, kernel="linear", on_line=[].append)
    assert result.folder == model / "2"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"epoch": 3}, "there is no option 'epoch'; did you mean epochs?"),
        ({"epochs": 0}, "--epochs 0 must be at least 1"),
        ({"epochs": "many"}, "'many' is not a whole number"),
        ({"arch": "resnet19"}, "did you mean resnet18"),
    ],
)
def test_wrong_options_are_one_line(few_digits, tmp_path, options, why):
    """They raise SettingsError before anything is read."""
    with pytest.raises(SettingsError) as refused:
        penult.export.train(few_digits, tmp_path / "m", **({"weights": "none"} | options))
    assert why in refused.value.message
    assert "\n" not in refused.value.message


def test_missing_photos_are_one_line(tmp_path):
    """Errors of photos are PenultErrors too."""
    with pytest.raises(PenultError, match="nowhere"):
        penult.export.inspect(tmp_path / "nowhere", tmp_path, weights="none")


def test_importing_is_light():
    """The package alone loads no PyTorch."""
    code = "import sys, penult.export; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.startswith("False")
