"""penult train --descriptor: another layer leaves the network, through bundle, check, svm, quantize and one class."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penult.bundle.reader import read_bundle
from penult.client import Client, NewItem, RequestFailed
from penult.export.config.known_networks import preprocess
from penult.export.config.train import FREEZE_ALL, TrainSettings
from penult.export.errors import SettingsError
from penult.export.evaluation.whitening import whiten
from penult.export.jobs import dry_run
from penult.export.jobs.packaging import Result
from penult.export.jobs.refit_stored import _why_not_read
from penult.export.jobs.train import train
from penult.export.networks.architectures import get
from penult.export.networks.network import Normalise, build
from penult.export.onnx.float16 import to_float16
from penult.export.onnx.runtime import ExportedModel


@pytest.fixture(scope="module")
def options(few_digits: Path, tiny_weights: Path) -> dict[str, Any]:
    """Settings of a short run that trains the head only, with two views."""
    return {"data": few_digits, "arch": "tiny5", "weights": str(tiny_weights), "freeze": FREEZE_ALL, "views": 2,
            "head_epochs": 5, "svm": "linear", "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def both(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Result]:
    """The same run with the default descriptor, and with that of stage 4."""
    folder = tmp_path_factory.mktemp("layers")
    plain = train(TrainSettings(**options, out=folder / "plain"))
    return plain, train(TrainSettings(**options, out=folder / "stage4", descriptor="stage4"))


def test_the_layer_leaves_the_network(both: tuple[Result, Result], options: dict[str, Any]):
    """Descriptors are those of the layer in PyTorch, as means over the views; logits are those of the plain run."""
    plain, other = (read_bundle(result.folder.parent) for result in both)
    manifest = other.manifest
    assert (plain.manifest.descriptor_length, manifest.descriptor_length) == (128, 96)
    assert (plain.manifest.descriptor_layer, manifest.descriptor_layer) == ("penultimate", "stage4")
    assert plain.manifest.fingerprint != manifest.fingerprint
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    logits, descriptors = ExportedModel(other.onnx, manifest).run(pixels)
    np.testing.assert_allclose(logits, ExportedModel(plain.onnx, plain.manifest).run(pixels)[0], rtol=1e-5, atol=1e-5)
    body = build(get("tiny5"), TrainSettings(**options, out=Path("unused")), 4).eval().body
    with torch.no_grad():
        maps = Normalise(manifest.preprocess)(torch.from_numpy(pixels))
        expected = sum(body.stages[:4](view).mean((2, 3)) for view in (maps, maps.flip(3))) / 2
    np.testing.assert_allclose(descriptors, expected.numpy(), rtol=1e-4, atol=1e-5)
    half = ExportedModel(to_float16(other.onnx), manifest).run(pixels)[1]
    np.testing.assert_allclose(half, descriptors, atol=5e-3 * np.abs(descriptors).max())


def test_only_the_other_layer_is_recorded(both: tuple[Result, Result]):
    """The manifest of a plain run has no new entry, so it is the one of before; card and report name the layer."""
    plain, other = (json.loads((result.folder / "manifest.json").read_text()) for result in both)
    assert {"descriptor", "dropout_channels"}.isdisjoint(plain["training"]["settings"])
    assert set(plain) == set(other)
    assert other["training"]["settings"] == plain["training"]["settings"] | {"descriptor": "stage4"}
    card = (both[1].folder / "MODEL_CARD.md").read_text()
    assert "(96 numbers of stage4, not of the penultimate layer)" in card
    assert "--descriptor stage4" in card
    page = (both[1].folder / "report" / "index.html").read_text()
    assert "descriptor of 96 numbers of stage4" in page
    assert "The dense head reads the penultimate layer" in page
    assert "penultimate" not in (both[0].folder / "MODEL_CARD.md").read_text()


def test_the_choice_of_the_scorer_knows(both: tuple[Result, Result]):
    """Folds would need a dense head on other numbers than the descriptor's, so validation photos choose."""
    assert [result.metrics["choice"]["rule"] for result in both] == ["cross-validation", "validation"]
    assert both[1].metrics["test"]["dense"] == both[0].metrics["test"]["dense"]


def test_all_verbs_take_it(both: tuple[Result, Result], few_digits: Path, tmp_path: Path, penult):
    """`check` passes; `quantize` makes a version of the same layer; stored descriptors have no dense head."""
    folder = shutil.copytree(both[1].folder.parent, tmp_path / "stage4", ignore=shutil.ignore_patterns(".*"))
    assert penult("check", folder, "--device", "cpu")[0] == 0
    code, _, err = penult("quantize", folder, few_digits, "--version", "1", "--to", "int8", "--max-loss", "50")
    assert code == 0, err
    manifest = read_bundle(folder, 2).manifest
    assert (manifest.precision, manifest.descriptor_length, manifest.descriptor_layer) == ("int8", 96, "stage4")
    assert _why_not_read(manifest) == "the stored descriptors are of stage4, and the dense head reads others"
    assert _why_not_read(read_bundle(both[0].folder.parent).manifest) == ""


def test_it_is_whitened(options: dict[str, Any]):
    """--whiten maps the layer, not the penultimate one."""
    chosen = TrainSettings(**options, out=Path("unused"), descriptor="stage3", whiten=8)
    net, normalise = build(get("tiny5"), chosen, 4), Normalise(preprocess(chosen))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    batches = [(pixels, np.arange(30) % 4)]
    found = whiten(net, normalise, 8, iter(batches), iter(batches))
    assert (found.from_length, found.to_length) == (64, 8)
    with torch.no_grad():
        assert net(normalise(torch.from_numpy(pixels)))[1].shape == (30, 8)


@pytest.mark.server
def test_a_layer_has_its_own_length(make_photos, settings: Callable[..., TrainSettings], tmp_path: Path, capsys):
    """The plan has the numbers of the layer; more directions than it has are refused."""
    make_photos(tmp_path / "photos", {"a": 60, "b": 60})
    dry_run.show(settings(descriptor="stage3"), as_json=True)
    assert json.loads(capsys.readouterr().out)["descriptor_length"] == 64
    with pytest.raises(SettingsError, match="descriptors of 64 numbers"):
        dry_run.show(settings(descriptor="stage3", whiten=65))


def test_a_collection_refuses_another_layer(
    both: tuple[Result, Result], few_digits: Path, start_server: Callable[..., Any], tmp_path: Path
):
    """Stored descriptors of stage 4 are found by photos alone, and never compared with those of another layer."""
    photos = sorted((few_digits / "test" / "3").iterdir())
    server = start_server(both[1].folder.parent.parent, "--lookup", str(tmp_path / "lookup"))
    with Client(server.target) as client:
        client.put_items("early", [NewItem(photo.name, photo) for photo in photos], model="stage4")
        (info,) = client.list_collections()
        assert (info.dimension, info.fingerprint) == (96, read_bundle(both[1].folder.parent).manifest.fingerprint)
        found = client.lookup(photos[:1], "early", k=1)
        assert (found.model, found.results[0][0].id) == ("stage4", photos[0].name)
        rows = np.stack(client.describe(photos[:1], model="plain").results)
        for query, model, code in ((photos[:1], "plain", "FAILED_PRECONDITION"), (rows, "", "INVALID_ARGUMENT")):
            with pytest.raises(RequestFailed) as caught:
                client.lookup(query, "early", model=model)
            assert caught.value.code == code


@pytest.mark.system
def test_two_processes_killed_and_resumed(few_digits: Path, tiny_weights: Path, tmp_path: Path):
    """Under torchrun, killed in the second epoch and resumed, a run publishes the network of an unbroken one."""

    def start(out: str, *more: str) -> "subprocess.Popen[str]":
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "penult.cli", "train", str(few_digits), "--out", str(tmp_path / out), "--arch", "tiny5"),
            *("--weights", str(tiny_weights), "--freeze", "1", "--augment", "gentle", "--head-epochs", "2"),
            *("--epochs", "3", "--lr-backbone", "1e-3", "--device", "cpu", "--descriptor", "stage4", *more),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    struck = start("struck")
    assert any(line.strip().startswith("all   2") for line in struck.stderr)
    # torchrun gives each process a session of its own, and ends itself once they are gone.
    for child in Path(f"/proc/{struck.pid}/task/{struck.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    struck.communicate(timeout=120)
    assert struck.returncode != 0
    assert not list((tmp_path / "struck").glob("[0-9]*"))
    for process in (start("struck", "--resume"), start("whole")):
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    struck_bundle, whole = (read_bundle(tmp_path / name) for name in ("struck", "whole"))
    assert (whole.manifest.descriptor_layer, whole.manifest.descriptor_length) == ("stage4", 96)
    assert struck_bundle.onnx == whole.onnx


@pytest.mark.server
def test_one_class_is_measured_on_the_layer(zeros: Path, tiny_weights: Path, tmp_path: Path):
    """Novelty is the distance of that layer's descriptors, and the card names it."""
    known = {"arch": "tiny5", "weights": str(tiny_weights), "device": "cpu", "false_alarms": 0.1}
    result = train(TrainSettings(zeros / "train", tmp_path / "zeros", **known, descriptor="stage3"))
    bundle = read_bundle(tmp_path / "zeros")
    assert (bundle.manifest.descriptor_length, bundle.manifest.descriptor_layer) == (64, "stage3")
    assert "64 numbers of stage3" in (result.folder / "MODEL_CARD.md").read_text()
