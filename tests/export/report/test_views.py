"""--views: the served descriptor is the mean over ways in which a photo can lie, whatever becomes of the network."""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penult.bundle.manifest import Manifest
from penult.bundle.reader import read_bundle
from penult.bundle.scores import largest_difference
from penult.export.config.train import TrainSettings
from penult.export.errors import SettingsError
from penult.export.jobs.packaging import Result
from penult.export.jobs.train import train
from penult.export.networks.architectures import get
from penult.export.networks.network import Normalise, PenultNet, build, make_views
from penult.export.onnx.convert import to_onnx
from penult.export.onnx.float16 import to_float16
from penult.export.onnx.int8 import to_int8
from penult.export.onnx.runtime import ExportedModel


@pytest.fixture
def looking(settings: Callable[..., TrainSettings], tiny_weights: Path) -> Callable[[int], PenultNet]:
    """looking(views): a tiny5 that looks at so many views, in eval mode."""

    def make(views: int) -> PenultNet:
        made = settings(weights=str(tiny_weights), freeze=0, augment="topdown", views=views)
        return build(get("tiny5"), made, classes=4).eval()

    return make


@pytest.fixture
def pixels() -> np.ndarray:
    """Five crops of noise."""
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def _lying(pixels: np.ndarray) -> list[np.ndarray]:
    """Return photos [N, S, S, 3] in all eight ways: as they are, mirrored, then turned by one to three quarters."""
    ways = [np.rot90(view, turns, axes=(1, 2)) for turns in range(4) for view in (pixels, pixels[:, :, ::-1])]
    return [np.ascontiguousarray(way) for way in ways]


@pytest.mark.parametrize(("views", "ways"), [(2, {0, 1}), (4, {0, 1, 2, 3}), (8, set(range(8)))])
def test_the_views_are_ways_to_lie(views: int, ways: set[int], pixels: np.ndarray):
    """Each of them once: two are the photo and its mirror image, four are those and quarter turns, eight are all."""
    seen = make_views(torch.from_numpy(pixels).permute(0, 3, 1, 2), views).permute(0, 2, 3, 1).numpy()
    found = [[np.array_equal(part, way) for way in _lying(pixels)].index(True) for part in np.split(seen, views)]
    assert len(found) == views
    assert set(found) == ways


@pytest.mark.parametrize("views", [2, 4, 8])
def test_the_descriptor_is_the_mean_of_the_views(looking: Callable[[int], PenultNet], views: int):
    """In eval mode; while learning, one view is one view."""
    net, photos = looking(views), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits, descriptor = net(photos)
        each = [net.body(part) for part in make_views(photos, views).chunk(views)]
        assert torch.allclose(descriptor, torch.stack(each).mean(0), atol=1e-6)
        assert torch.equal(logits, net.head(descriptor))
        assert not torch.allclose(each[0], each[1], atol=1e-2)
        net.freeze([net.body])
        assert torch.equal(net.train()(photos)[1], each[0])


@pytest.mark.server
@pytest.mark.parametrize(("precision", "views"), [("float", 2), ("float", 8), ("half", 4), ("int8", 8)])
def test_every_precision_looks_that_often(
    looking: Callable[[int], PenultNet], pixels: np.ndarray, precision: str, views: int
):
    """A photo gets the same answer whichever of the views it is sent in, in batches of any size."""
    net, spec = looking(views), get("tiny5").preprocess
    manifest = Manifest("tiny5", tuple("abcd"), spec, net.descriptor_length, "dense", {"dense": 1.0})
    onnx = to_onnx(net, manifest)
    made = {"float": lambda: onnx, "half": lambda: to_float16(onnx), "int8": lambda: to_int8(onnx, manifest, [pixels])}
    model = ExportedModel(made[precision](), manifest)
    logits, descriptor = model.run(pixels)
    with torch.no_grad():
        own = net(Normalise(spec)(torch.from_numpy(pixels)))[1].numpy()
    assert largest_difference(own, descriptor) < {"float": 1e-5, "half": 2e-3, "int8": 0.1}[precision]
    for way in _lying(pixels)[: views if views != 4 else 2]:
        other = model.run(way)
        assert largest_difference(descriptor, other[1]) < 1e-5
        assert largest_difference(logits, other[0]) < 1e-4
    singly = [model.run(pixels[row : row + 1])[1] for row in range(len(pixels))]
    assert largest_difference(descriptor, np.concatenate(singly)) < 1e-5


def test_a_bundle_that_looks_twice(trained: Result, few_digits: Path, tmp_path: Path):
    """A run with --views 2 publishes such a network, and learns the head, measures, fits and records by what it serves."""
    weights = trained.folder.parents[2] / "tiny5.pt"
    settings = TrainSettings(
        few_digits, tmp_path / "once", arch="tiny5", weights=str(weights), freeze=6, head_epochs=2, augment="none",
        svm="linear", report_photos=False, save_weights=tmp_path / "once.pt",
    )  # fmt: skip
    other = replace(settings, out=tmp_path / "twice", views=2, save_weights=tmp_path / "twice.pt")
    folders = [train(made).folder for made in (settings, other)]
    assert _losses(folders[0]) != _losses(folders[1])
    heads = [torch.load(tmp_path / f"{name}.pt", weights_only=True)["head.1.weight"] for name in ("once", "twice")]
    assert not torch.equal(*heads)
    once, twice = (read_bundle(folder.parent) for folder in folders)
    assert twice.manifest.training["settings"]["views"] == 2
    assert once.manifest.fingerprint != twice.manifest.fingerprint
    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    views = [
        ExportedModel(once.onnx, once.manifest).run(np.ascontiguousarray(i))[1] for i in (images, images[:, :, ::-1])
    ]
    both = ExportedModel(twice.onnx, twice.manifest).run(images)[1]
    assert largest_difference(both, np.mean(views, axis=0)) < 1e-5
    assert "in 2 views" in (tmp_path / "twice" / "1" / "MODEL_CARD.md").read_text()
    assert "views" not in (tmp_path / "once" / "1" / "MODEL_CARD.md").read_text()


def test_views_do_not_slow_learning(few_digits: Path, trained: Result, tmp_path: Path):
    """If convolutions learn, epochs are told apart by one view, so the same is learnt."""
    weights = trained.folder.parents[2] / "tiny5.pt"
    settings = TrainSettings(
        few_digits, tmp_path / "once", arch="tiny5", weights=str(weights), freeze=0, head_epochs=2, epochs=1,
        svm="linear", augment="topdown", report_photos=False, save_weights=tmp_path / "once.pt",
    )  # fmt: skip
    other = replace(settings, out=tmp_path / "often", views=4, save_weights=tmp_path / "often.pt")
    once, often = train(settings).folder, train(other).folder
    learnt = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("once", "often")]
    assert torch.equal(learnt[0]["head.1.weight"], learnt[1]["head.1.weight"])
    assert _losses(once) == _losses(often)
    fingerprints = {read_bundle(folder.parent).manifest.fingerprint for folder in (once, often)}
    assert len(fingerprints) == 2


def _losses(folder: Path) -> list[str]:
    """Return the rows of history.csv without how long they took."""
    rows = csv.DictReader(io.StringIO((folder / "history.csv").read_text()))
    return [str({key: value for key, value in row.items() if key != "seconds"}) for row in rows]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [({"views": 2, "augment": "gentle"}, "gentle"), ({"views": 4}, "add it"), ({"views": 8, "augment": "none"}, "topdown"),
     ({"views": 3}, "1, 2, 4, 8"), ({"views": 0}, "1, 2, 4, 8")],
)  # fmt: skip
def test_what_is_not_learnt_is_not_served(changes: dict[str, Any], advice: str):
    """Views that the augmentation keeps from the network are refused, and so are other numbers of them."""
    with pytest.raises(SettingsError, match=advice):
        TrainSettings(Path("photos"), Path("out"), **changes)
