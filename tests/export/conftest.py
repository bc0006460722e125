"""Parts that the export's tests share: folders of photos, settings for short runs, a small network."""

import io
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from penult import cli
from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Preprocess
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import Splits
from penult.export.data.splitting import Photo
from penult.export.evaluation.diagnosis import diagnose
from penult.export.evaluation.metrics import against_validation, compare, evaluate
from penult.export.networks.architectures import get
from penult.export.networks.network import PenultNet, build, copy_weights
from penult.export.report.report_data import ReportData, TrainingSummary, Validation
from penult.export.training.history import Epoch, History


@pytest.fixture(scope="session")
def photo_bytes() -> Callable[[int], bytes]:
    """photo_bytes(seed): the bytes of a small PNG, different for every seed."""

    def make(seed: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def make_photos(photo_bytes: Callable[[int], bytes]) -> Callable[..., Path]:
    """make_photos(folder, {class: count}, seed=0): write a folder of class folders; no two photos are alike."""

    def make(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
        for label, (name, count) in enumerate(counts.items()):
            (folder / name).mkdir(parents=True)
            for number in range(count):
                data = photo_bytes(seed * 1_000_000 + label * 1000 + number)
                (folder / name / f"{number:03d}.png").write_bytes(data)
        return folder

    return make


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., TrainSettings]:
    """settings(**changes): tiny5 from a random start on tmp_path/photos, on the CPU."""

    def make(**changes: Any) -> TrainSettings:
        values = {"data": tmp_path / "photos", "out": tmp_path / "models" / "test", "arch": "tiny5", "weights": "none",
                  "freeze": 0, "device": "cpu"}  # fmt: skip
        return TrainSettings(**(values | changes))

    return make


@pytest.fixture
def tiny_net(settings: Callable[..., TrainSettings]) -> PenultNet:
    """A tiny5 of four classes with random weights, in eval mode; running statistics are not the initial ones."""
    net = build(get("tiny5"), settings(), classes=4)
    with torch.no_grad():
        net.train()(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return net.eval()


@pytest.fixture
def made_up_history() -> Callable[..., History]:
    """made_up_history(epochs, phases=("all",)): a run whose validation loss and rate fall like 1 / epoch."""

    def make(epochs: int, phases: tuple[str, ...] = ("all",)) -> History:
        halves: dict[str, Any] = dict.fromkeys([f.name for f in fields(Epoch)], 0.5)
        rows = [(phase, n) for phase in phases for n in range(1, epochs + 1)]
        return History(
            [replace(Epoch(**halves), phase=p, epoch=n, val_loss=1 / n, learning_rate=0.1 / n) for p, n in rows]
        )

    return make


@pytest.fixture
def report_data(
    tiny_net: PenultNet, settings: Callable[..., TrainSettings], made_up_history: Callable[..., History]
) -> Callable[..., ReportData]:
    """evidence(classes, scorers=…, **parts): a made-up run of tiny5 on 20 photos, of which the fourth is named wrong."""

    def make(classes: tuple[str, ...], scorers: tuple[str, ...] = ("dense", "svm"), history: History | None = None,
             notes: tuple[str, ...] = (), **parts: Any) -> ReportData:  # fmt: skip
        labels = np.arange(20) % len(classes)
        scores = np.eye(len(classes), dtype=np.float32)[(labels + (np.arange(20) == 3)) % len(classes)]
        photos = tuple(Photo(Path(f"{row}.png"), int(label), "0" * 64) for row, label in enumerate(labels))
        figures = evaluate(scores, labels, classes, 1.0)
        history = history or made_up_history(3)
        diagnosis = diagnose(history, len(classes))
        metrics = {part: dict.fromkeys(scorers, figures) for part in ("test", "val", "train")}
        metrics |= {"parity": {"photos": 20, "logits_difference": 1e-6, "descriptor_difference": 2e-6}, "goldens": 8}
        search = {"c": 1.0, "accuracy_by_c": {"0.1": 0.9, "1": 0.95}}
        chosen = {
            "kernel": "linear",
            "gamma": None,
            "criterion": "accuracy",
            "folds": 5,
            "searches": {"linear": search},
        }
        metrics |= {"svm": {"photos": 24} | search | chosen}
        metrics["verdict"] = diagnosis.as_json()
        metrics["test_against_validation"] = dict.fromkeys(scorers, against_validation(figures, figures))
        if len(scorers) > 1:
            metrics["comparison"] = {part: compare(scores, scores, labels) for part in ("test", "val")}
        given = copy_weights(tiny_net)
        final = {key: value if ".stages.0." in key else value + 0.01 for key, value in given.items()}
        values: dict[str, Any] = {
            "name": "test",
            "manifest": Manifest(
                "tiny5", classes, Preprocess(32, 32), 128, scorers[-1], dict.fromkeys(scorers, 1.0),
                training={"settings": settings().as_json()}, libraries={"torch": "2.0"},
            ),
            "splits": Splits(classes, photos, photos, photos, notes),
            "metrics": metrics,
            "scores": dict.fromkeys(scorers, scores),
            "labels": labels,
            "descriptors": np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32),
            "settings": settings(),
            "learning": TrainingSummary(get("tiny5"), history, diagnosis, given, final, {"head": 1e-3, "stage 5": 1e-4}, 0.2),
            "validation": Validation(dict.fromkeys(scorers, scores), labels),
            "crops": lambda chosen: np.full((len(chosen), 32, 32, 3), 90, np.uint8),
        }  # fmt: skip
        return ReportData(**(values | parts))

    return make


@pytest.fixture
def model(copy_model: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of the trained model, models/digits with version 1."""
    return copy_model(tmp_path / "models")


@pytest.fixture
def penult(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a verb in this process: (exit code, stdout, stderr)."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return cli.main([str(word) for word in argv]), *capsys.readouterr()

    return run
