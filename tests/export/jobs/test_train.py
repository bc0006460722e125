"""`penult train` from photos to bundle: what is published, and what a cut-off run that is resumed ends with."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penult.bundle.errors import BundleError
from penult.bundle.goldens import replay
from penult.bundle.naming import versions
from penult.bundle.reader import read_bundle, read_manifest
from penult.export.config.known_networks import preprocess
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError
from penult.export.jobs import packaging
from penult.export.jobs.finished import finished_int8, finished_run
from penult.export.jobs.packaging import Result
from penult.export.jobs.train import train
from penult.export.onnx.runtime import ExportedModel

_PATIENCE_S = 480


@pytest.fixture(scope="module")
def options(few_digits: Path, tiny_weights: Path) -> dict[str, Any]:
    """Settings of a short run with both phases, the first two stages frozen."""
    return {"data": few_digits, "arch": "tiny5", "weights": str(tiny_weights), "freeze": 2, "augment": "gentle",
            "head_epochs": 6, "epochs": 7, "lr_backbone": 1e-3, "batch_size": 16, "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The result of that run, and the file with its weights."""
    folder = tmp_path_factory.mktemp("run")
    weights = folder / "weights" / "end.pt"
    return train(TrainSettings(**options, out=folder / "digits", save_weights=weights)), weights


def _start(options: dict[str, Any], out: Path, *more: str) -> "subprocess.Popen[str]":
    given = {name.replace("_", "-"): str(value) for name, value in options.items() if name != "data"}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "penult.cli", "train", str(options["data"]), "--out", str(out), *words, *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _kill_after(process: "subprocess.Popen[str]", line_start: str) -> list[str]:
    """Kill -9 as soon as the process prints a line that begins like this; return the lines up to it."""
    ended = time.monotonic() + _PATIENCE_S
    seen = []
    for line in process.stderr:
        seen.append(line.strip())
        if seen[-1].startswith(line_start):
            os.kill(process.pid, signal.SIGKILL)
            break
        assert time.monotonic() < ended, seen
    assert process.wait(_PATIENCE_S) == -signal.SIGKILL, seen
    process.stderr.close()
    return seen


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def _rows(result: Result) -> list[list[str]]:
    """Return history.csv without the seconds."""
    return [row.split(",")[:8] for row in (result.folder / "history.csv").read_text().splitlines()]


@pytest.mark.system
def test_a_killed_run_ends_as_if_it_had_not_been(
    options: dict[str, Any], uninterrupted: tuple[Result, Path], tmp_path: Path
):
    """kill -9 after the third and again after the fifth epoch: resumed, the run ends with the same weights, bit for bit."""
    reference, reference_weights = uninterrupted
    out, weights = tmp_path / "digits", tmp_path / "end.pt"
    _kill_after(_start(options, out), "all   3")
    assert versions(out) == []
    assert (out / ".training" / "checkpoint.pt").is_file()
    lines = _kill_after(_start(options, out, "--resume"), "all   5")
    assert not any(line.startswith(("head", "all   1", "all   2")) for line in lines), "it began anew"
    resumed = train(TrainSettings(**options, out=out, save_weights=weights, resume=True))
    assert _equal(_weights(weights), _weights(reference_weights))
    assert _rows(resumed) == _rows(reference)
    assert [entry.name for entry in out.iterdir()] == ["1"]


def test_a_run_cut_off_with_other_settings_is_not_resumed(options: dict[str, Any], tmp_path: Path):
    """--resume with another setting is refused, and the checkpoint waits for the right one."""
    out = tmp_path / "digits"
    _kill_after(_start(options, out), "all   1")
    with pytest.raises(SettingsError) as caught:
        train(TrainSettings(**(options | {"seed": 1}), out=out, resume=True))
    assert caught.value.reason == "RESUME"
    assert (out / ".training" / "checkpoint.pt").is_file()


def test_resume_without_a_checkpoint_starts_anew(
    options: dict[str, Any], uninterrupted: tuple[Result, Path], tmp_path: Path
):
    """--resume is harmless where nothing was cut off; two whole runs are bit-equal, down to the SVM."""
    weights = tmp_path / "end.pt"
    again = train(TrainSettings(**options, out=tmp_path / "digits", save_weights=weights, resume=True))
    assert _equal(_weights(weights), _weights(uninterrupted[1]))
    assert (again.folder / "svm.pkl").read_bytes() == (uninterrupted[0].folder / "svm.pkl").read_bytes()
    one, other = (
        result.metrics | {"svm": result.metrics["svm"] | {"seconds": 0}} for result in (again, uninterrupted[0])
    )
    assert one == other


def test_a_finished_run_is_not_repeated(
    uninterrupted: tuple[Result, Path], options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    """--resume of a run that has ended names its version and learns nothing; other settings are another run."""
    result, weights = uninterrupted
    again = TrainSettings(**options, out=result.folder.parent, save_weights=weights, resume=True)
    assert train(again) == Result(result.folder, json.loads(json.dumps(result.metrics)))
    assert f"already finished: {result.folder}; to train again, omit --resume" in capsys.readouterr().err
    assert [path.name for path in result.folder.parent.iterdir()] == ["1"]
    sha256 = read_manifest(result.folder).training["data_sha256"]
    assert finished_run(again, sha256)
    assert finished_run(replace(again, seed=1), sha256) is None
    assert finished_run(again, "0" * 64) is None
    assert finished_int8(result.folder.parent, 1) is None


def test_frozen_stages_are_published_as_they_were_given(uninterrupted: tuple[Result, Path], tiny_weights: Path):
    """From file to file through a whole run, the two frozen stages are bit-equal and the others are not."""
    before, after = _weights(tiny_weights), _weights(uninterrupted[1])
    for key, value in before.items():
        assert torch.equal(value, after[key]) == key.startswith(("stages.0.", "stages.1.")), key


def test_saved_weights_can_be_built_upon(uninterrupted: tuple[Result, Path], options: dict[str, Any], tmp_path: Path):
    """What --save-weights wrote, --weights takes, for other classes too: the head is left behind."""
    from penult.export.networks.architectures import get
    from penult.export.networks.network import build

    _, weights = uninterrupted
    settings = TrainSettings(**(options | {"weights": str(weights)}), out=tmp_path)
    net, stored = build(get("tiny5"), settings, classes=9), _weights(weights)
    assert all(torch.equal(value, stored[key]) for key, value in net.body.state_dict().items())
    assert {"head.1.weight", "head.1.bias"} < set(stored)


def test_a_bundle_holds_what_was_promised(uninterrupted: tuple[Result, Path]):
    """Every file of the design is there, and the manifest tells of the run."""
    folder = uninterrupted[0].folder
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {
        "manifest.json", "model.onnx", "svm.pkl", "golden.npz", "metrics.json", "history.csv", "MODEL_CARD.md",
        "report/index.html", "report/learning_curves.svg", "report/confusion_dense.svg",
        "report/confusion_svm.svg", "report/changes.csv", "report/predictions.csv",
    }  # fmt: skip
    manifest = read_bundle(folder.parent).manifest
    assert manifest.architecture == "tiny5"
    assert manifest.classes == ("0", "1", "2", "3")
    assert manifest.training["settings"]["freeze"] == 2
    assert manifest.training["photos"] == {
        part: uninterrupted[0].metrics[part]["dense"]["photos"] for part in ("train", "val", "test")
    }


def test_predictions_add_up_to_the_metrics(uninterrupted: tuple[Result, Path], options: dict[str, Any]):
    """predictions.csv has a row per test photo, by its path in DATA, and its hits are the reported accuracies."""
    result = uninterrupted[0]
    rows = list(csv.DictReader((result.folder / "report" / "predictions.csv").read_text().splitlines()))
    assert {row["image"] for row in rows} == {
        str(path.relative_to(options["data"])) for path in options["data"].glob("test/*/*")
    }
    assert all(row["class"] == Path(row["image"]).parent.name for row in rows)
    for scorer in ("dense", "svm"):
        hits = sum(row["class"] == row[scorer] for row in rows)
        assert hits / len(rows) == pytest.approx(result.metrics["test"][scorer]["accuracy"])
        assert all(0.25 <= float(row[f"{scorer}_probability"]) <= 1 for row in rows)


def test_the_goldens_are_validation_photos_with_their_answers(uninterrupted: tuple[Result, Path]):
    """The published goldens replay on the published model."""
    bundle = read_bundle(uninterrupted[0].folder.parent)
    assert 4 <= len(bundle.goldens.images) <= 8
    assert replay(bundle.goldens, bundle.manifest, ExportedModel(bundle.onnx, bundle.manifest).run, None) < 1e-4


def test_the_default_scorer_of_a_fine_tuned_network_is_chosen_by_validation_photos(
    uninterrupted: tuple[Result, Path], trained: Result
):
    """The SVM is the default unless the dense head is clearly better on validation photos; the choice is recorded."""
    for result in (uninterrupted[0], trained):
        choice, val = result.metrics["choice"], result.metrics["val"]
        assert (choice["rule"], choice["photos"]) == ("validation", val["svm"]["photos"])
        assert choice["difference"] == pytest.approx(val["svm"]["accuracy"] - val["dense"]["accuracy"])
        wanted = "dense" if choice["interval_95"][1] < 0 else "svm"
        assert json.loads((result.folder / "manifest.json").read_bytes())["default_scorer"] == wanted
        assert result.metrics["default_scorer"] == choice["default_scorer"] == wanted


def test_nothing_of_this_machine_is_published(uninterrupted: tuple[Result, Path], options: dict[str, Any]):
    """Neither the photos' nor the weights' folders appear in any text file of the bundle."""
    folder = uninterrupted[0].folder
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".html", ".md", ".csv"):
            text = path.read_text()
            assert str(options["data"].parent) not in text, path
            assert str(folder.parent.parent) not in text, path


@pytest.mark.parametrize("name", ["my digits", "größe"])
def test_an_unusable_name_is_refused_before_anything_is_done(options: dict[str, Any], tmp_path: Path, name: str):
    """A model that could not be served is not trained first."""
    with pytest.raises(BundleError) as caught:
        train(TrainSettings(**options, out=tmp_path / name))
    assert caught.value.reason == "MODEL_NAME"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_refused(options: dict[str, Any], tmp_path: Path):
    """--device cuda never becomes the CPU quietly."""
    with pytest.raises(SettingsError) as caught:
        train(TrainSettings(**(options | {"device": "cuda"}), out=tmp_path / "digits"))
    assert caught.value.reason == "DEVICE"


@pytest.mark.server
def test_odd_folders_go_all_the_way(make_photos: Callable[..., Path], settings: Callable[..., Any], tmp_path: Path):
    """Two classes, one with an emoji, some photos broken: the run ends with a bundle that says what was left out."""
    folder = make_photos(tmp_path / "photos", {"🐱 cats": 8, "dogs & co": 8})
    (folder / "dogs & co" / "broken.jpg").write_bytes(b"no photo")
    result = train(settings(epochs=1, head_epochs=1))
    bundle = read_bundle(result.folder.parent)
    assert set(bundle.manifest.classes) == {"🐱 cats", "dogs & co"}
    assert bundle.goldens.svm_scores.shape[1] == 2
    assert any("broken.jpg (IMAGE_UNKNOWN_FORMAT)" in note for note in result.metrics["notes"])
    assert "broken.jpg" in (result.folder / "report" / "index.html").read_text()


def test_photos_as_a_camera_makes_them_can_be_learnt_from(options: dict[str, Any], tmp_path: Path):
    """Files of 9 MiB are learnt from, those above the limits noted; goldens are small, so that bundles load quickly."""
    photos = {path: path.relative_to(options["data"] / "test") for path in options["data"].glob("test/*/*0.png")}
    for path, name in photos.items():
        copy = tmp_path / "val" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        os.truncate(copy, (9 << 20) + int(path.stem))  # what follows a PNG's end is no part of the picture
    too_large = copy.with_name("too-large.png")
    too_large.write_bytes(copy.read_bytes())
    os.truncate(too_large, (63 << 20) + 1)
    result = train(
        TrainSettings(**options | {"epochs": 1, "head_epochs": 2}, val=str(tmp_path / "val"), out=tmp_path / "d")
    )
    (note,) = (note for note in result.metrics["notes"] if "MiB" in note)
    assert note.startswith("1 of these exceed the limits of training and penult serve (63 MiB, 200,000,000 pixels, ")
    assert "too-large.png (IMAGE_TOO_MANY_BYTES)" in note
    bundle = read_bundle(result.folder.parent)
    assert max(map(len, bundle.goldens.images)) < 10_000
    assert replay(bundle.goldens, bundle.manifest, ExportedModel(bundle.onnx, bundle.manifest).run, None) < 1e-4


def test_goldens_that_do_not_replay_publish_nothing(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where the recorded answers cannot be repeated, the run fails and no version appears."""
    made = packaging.make_goldens

    def other_answers(*arguments: Any) -> Any:
        good = made(*arguments)
        return replace(good, logits=good.logits + 1)

    monkeypatch.setattr(packaging, "make_goldens", other_answers)
    with pytest.raises(BundleError) as caught:
        train(TrainSettings(**options | {"epochs": 1}, out=tmp_path / "digits"))
    assert caught.value.reason == "GOLDEN_VALUES"
    assert versions(tmp_path / "digits") == []


def test_a_larger_crop_is_learnt_exported_and_read_back(options: dict[str, Any], tmp_path: Path):
    """--crop 48 on a network of 32: the bundle says so, and its graph takes photos of that size."""
    result = train(TrainSettings(**options | {"epochs": 1, "head_epochs": 2}, crop=48, out=tmp_path / "digits"))
    bundle = read_bundle(result.folder.parent)
    assert (bundle.manifest.preprocess.crop, bundle.manifest.preprocess.resize) == (48, 48)
    logits, _ = ExportedModel(bundle.onnx, bundle.manifest).run(np.zeros((3, 48, 48, 3), dtype=np.uint8))
    assert logits.shape == (3, 4)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"arch": "alexnet", "crop": 256}, "omit --crop"),
        ({"arch": "resnet18", "crop": 64}, "give at least 112"),
        ({"arch": "resnet18", "crop": 256, "resize": 240}, "smaller than the 256 pixels"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes: dict[str, Any], advice: str):
    """Dense layers of a fixed size, and crops too small to tell anything, are refused with what to do."""
    with pytest.raises(SettingsError, match=advice):
        preprocess(TrainSettings(data=Path("photos"), out=Path("models/x"), **changes))


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [({}, (256, 224)), ({"crop": 256}, (256, 256)), ({"crop": 288}, (288, 288)), ({"resize": 224}, (224, 224)),
     ({"crop": 288, "resize": 320}, (320, 288)), ({"arch": "alexnet", "crop": 224}, (256, 224)),
     ({"fit": "stretch"}, (224, 224)), ({"fit": "stretch", "crop": 256}, (256, 256)),
     ({"fit": "stretch", "resize": 240}, (240, 224))],
)  # fmt: skip
def test_the_sizes_given_are_used(changes: dict[str, Any], sizes: tuple[int, int]):
    """--crop alone keeps the network's own resize where that is large enough; --fit stretch shows all of a photo."""
    spec = preprocess(TrainSettings(data=Path("photos"), out=Path("models/x"), **changes))
    assert (spec.resize, spec.crop) == sizes
    assert spec.fit == changes.get("fit", "crop")
