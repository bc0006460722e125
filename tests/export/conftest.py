"""Parts that the export's tests share: folders of photos, settings for short runs, a small network."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from penult.export.architectures import get
from penult.export.model import PenultNet, build
from penult.export.settings import TrainSettings


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


@pytest.fixture(scope="session")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits 0 to 3: 24 photos each to learn from, 10 to test."""
    folder = tmp_path_factory.mktemp("photos") / "few"
    for part, count in (("train", 24), ("test", 10)):
        for digit in "0123":
            (folder / part / digit).mkdir(parents=True)
            for source in sorted((digits / part / digit).iterdir())[:count]:
                (folder / part / digit / source.name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state-dict file for tiny5 whose every value, statistics too, differs from a fresh network's."""
    generator = torch.Generator().manual_seed(7)
    body = get("tiny5").body().train()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_((torch.rand(parameter.shape, generator=generator) - 0.5) * 0.02)
        for _ in range(50):
            body(torch.randn(16, 3, 32, 32, generator=generator))
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(body.state_dict(), path)
    return path


@pytest.fixture
def tiny_net(settings: Callable[..., TrainSettings]) -> PenultNet:
    """A tiny5 of four classes with random weights, in eval mode; running statistics are not the initial ones."""
    net = build(get("tiny5"), settings(), classes=4)
    with torch.no_grad():
        net.train()(torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return net.eval()
