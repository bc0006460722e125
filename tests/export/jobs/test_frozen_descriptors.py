"""Frozen descriptors: their values, their order, and what the cache saves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.export.splits import splits_of

from penult.bundle.preprocess import crop_encoded
from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import load_splits
from penult.export.data.splitting import Photo
from penult.export.errors import SettingsError
from penult.export.jobs import frozen_descriptors
from penult.export.networks.architectures import get
from penult.export.networks.network import Normalise, build
from penult.export.onnx.runtime import ExportedModel

pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(make_photos: Callable[..., Path], settings: Callable[..., TrainSettings]) -> list[Photo]:
    """Twenty photos, of which the last is a copy of the first."""
    folder = make_photos(settings().data, {"a": 10, "b": 9})
    (folder / "a" / "copy.png").write_bytes((folder / "a" / "000.png").read_bytes())
    splits = splits_of(settings())
    return sorted(
        [*splits.train, *splits.val, *splits.test], key=lambda photo: (photo.path.name == "copy.png", photo.path)
    )


@pytest.fixture
def weights(tiny_weights: Path) -> str:
    """A file of weights."""
    return str(tiny_weights)


def test_values_and_order(photos: list[Photo], weights: str, settings: Callable[..., TrainSettings]):
    """Rows equal the PyTorch network's descriptors of the served crops, in the order of the photos."""
    found = frozen_descriptors.of_weights("tiny5", weights).describe(photos)
    architecture = get("tiny5")
    net = build(architecture, settings(weights=weights), 2).eval()
    crops = np.stack([crop_encoded(photo.read(), architecture.preprocess) for photo in photos])
    with torch.no_grad():
        expected = net.describe(Normalise(architecture.preprocess)(torch.from_numpy(crops))).numpy()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.array_equal(found[0], found[-1])


def test_second_run_reads_new_photos_only(photos: list[Photo], weights: str, monkeypatch: pytest.MonkeyPatch):
    """A second run gives the same bits, runs the network for photos that are new, and saves part way."""
    monkeypatch.setattr(frozen_descriptors, "_SAVE_EVERY", 16)
    first = frozen_descriptors.of_weights("tiny5", weights).describe(photos[:18])
    ran: list[int] = []
    run = ExportedModel.run
    monkeypatch.setattr(ExportedModel, "run", lambda self, pixels: ran.append(len(pixels)) or run(self, pixels))
    again = frozen_descriptors.of_weights("tiny5", weights).describe(photos[::-1])
    assert np.array_equal(again[::-1][:18], first)
    assert sum(ran) == 1
    monkeypatch.setattr(Photo, "read", lambda self: pytest.fail("read"))
    assert np.array_equal(frozen_descriptors.of_weights("tiny5", weights).describe(photos), again[::-1])


def test_wrong_weights_are_rejected(tmp_path: Path):
    """Weights that are missing, or have no download, give an error before anything is built."""
    with pytest.raises(SettingsError, match="does not exist"):
        frozen_descriptors.of_weights("tiny5", str(tmp_path / "none.pth"))
    with pytest.raises(SettingsError, match="has no imagenet"):
        frozen_descriptors.of_weights("tiny5", "imagenet")


def test_network_of_a_model(model: Path, few_digits: Path):
    """A model's network gives the descriptors that its service gives."""
    network = frozen_descriptors.of_model(model)
    photos = load_splits(PhotoSource(few_digits), model, "0.2", "0.2", 0).val
    found = network.describe(photos)
    crops = np.stack([crop_encoded(photo.read(), network.preprocess) for photo in photos])
    assert np.allclose(found, network.load().run(crops)[1], atol=1e-4)
    assert network.name == "digits version 1"
