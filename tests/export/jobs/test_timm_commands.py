"""Commands after training take a network of timm: svm, quantize, inspect, label, --resume and --int8."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from penult.bundle.naming import versions
from penult.bundle.reader import read_bundle
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.jobs.train import train
from penult.label.settings import LabelSettings
from penult.label.start import network_of, session_of

Penult = Callable[..., tuple[int, str, str]]
NAME = "timm/test_resnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all tensors of timm's smallest resnet."""
    import timm

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    safetensors.torch.save_file(timm.create_model(NAME.partition("/")[2]).state_dict(), path)
    return path


@pytest.fixture
def model(few_digits: Path, weights: Path, tmp_path: Path) -> Path:
    """A model whose head has learnt on the frozen network, at small inputs."""
    chosen = {"freeze": FREEZE_ALL, "head_epochs": 2, "crop": 96, "resize": 96, "device": "cpu"}
    result = train(TrainSettings(few_digits, tmp_path / "few", arch=NAME, weights=str(weights), **chosen))
    assert read_bundle(result.folder.parent).manifest.architecture == NAME
    return result.folder.parent


def test_new_svm_and_half_precision(model: Path, few_digits: Path, penult: Penult):
    """`svm` and `quantize --to fp16` publish versions that `check` passes; int8 is for networks that gain by it."""
    assert penult("svm", model, few_digits)[0] == 0
    code, _, said = penult("quantize", model, few_digits, "--to", "fp16", "--max-loss", "50")
    assert code == 0, said
    assert [read_bundle(model, version).manifest.precision for version in (1, 2, 3)] == ["float", "float", "fp16"]
    assert penult("check", model, "--device", "cpu")[0] == 0
    code, _, said = penult("quantize", model, few_digits, "--version", "1")
    assert (code, said.count("\n")) == (1, 1)
    assert f"{NAME} was not measured to gain by it" in said


def test_photos_are_described_by_it(few_digits: Path, weights: Path, tmp_path: Path, penult: Penult):
    """`inspect` ranks labels on its descriptors, and `label --replay` chooses by them."""
    network = ("--arch", NAME, "--weights", weights, "--json")
    code, out, said = penult("inspect", few_digits / "train", "--out", tmp_path / "out", *network)
    assert code == 0, said
    assert sum(json.loads(out)["photos"].values()) == 96
    with (tmp_path / "truth.csv").open("w", newline="") as file:
        photos = [photo.relative_to(few_digits) for photo in sorted(few_digits.glob("train/*/*.png"))]
        rows = [(photo, photo.parts[1], "test" if row % 2 else "train") for row, photo in enumerate(photos)]
        csv.writer(file).writerows([("image", "label", "split"), *rows])
    code, out, said = penult(
        "label", few_digits, "--replay", tmp_path / "truth.csv", "--strategy", "active", "--budget", "10", *network
    )
    assert code == 0, said
    assert [labels for labels, _ in json.loads(out)["curve"]] == [10]


@pytest.mark.system
def test_a_killed_run_is_resumed(few_digits: Path, tmp_path: Path):
    """Killed in the second epoch of fine-tuning and resumed, a run publishes the network of an unbroken one."""

    def start(out: str, *more: str) -> "subprocess.Popen[str]":
        command = [
            *(sys.executable, "-m", "penult.cli", "train", str(few_digits), "--out", str(tmp_path / out)),
            *("--arch", "timm/test_efficientnet", "--weights", "none", "--freeze", "0", "--head-epochs", "1"),
            *("--epochs", "3", "--crop", "96", "--resize", "96", "--batch-size", "16", "--device", "cpu", *more),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    struck = start("struck")
    assert any(line.strip().startswith("all   2") for line in struck.stderr)
    os.kill(struck.pid, signal.SIGKILL)
    struck.communicate(timeout=60)
    assert versions(tmp_path / "struck") == []
    for process in (start("struck", "--resume"), start("whole")):
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    networks = [(tmp_path / name / "1" / "model.onnx").read_bytes() for name in ("struck", "whole")]
    assert networks[0] == networks[1]


@pytest.mark.system
def test_labels_are_published_on_it(few_digits: Path, weights: Path, tmp_path: Path):
    """The labelling page publishes a model of the network whose descriptors it learns from."""
    from penult.label.session import Answer

    out = tmp_path / "named"
    settings = LabelSettings(few_digits, tmp_path / "labels.csv", arch=NAME, weights=str(weights), publish=out)
    session = session_of(settings, network_of(settings))
    for digit in "01":
        chosen = [each for each in session.pool.ids if each.startswith(f"train/{digit}/")][:10]
        session.answer([Answer(each, digit) for each in chosen])
    state = session.publish()
    while state["publish"]["is_running"]:
        state = session.wait(state["revision"], 60)
    session.close()
    assert state["publish"]["message"] == "version 1 is published, of 20 labels"
    assert read_bundle(out).manifest.architecture == NAME


@pytest.mark.system
def test_resnets_get_an_int8_version(few_digits: Path, tmp_path: Path, penult: Penult):
    """`train --int8` publishes both versions of timm's resnet18, with a tag too: it is torchvision's network."""
    options = "--weights none --epochs 1 --crop 112 --resize 112 --int8 --max-loss 99 --device cpu --json"
    code, out, said = penult(
        "train", few_digits, "--out", tmp_path / "few", "--arch", "timm/resnet18.tv_in1k", *options.split()
    )
    assert code == 0, said
    assert json.loads(out)["int8"]["float_version"] == 1
    manifest = read_bundle(tmp_path / "few", 2).manifest
    assert (manifest.precision, manifest.architecture) == ("int8", "timm/resnet18.tv_in1k")
