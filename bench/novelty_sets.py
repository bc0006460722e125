"""Photos, networks and descriptors that bench/novelty.py measures on: made once below --out, never committed.

Photo sets: ants and bees, TrashNet (and without one class, whose photos are then new), scikit-learn's digits, views cut
out of the photographs that scikit-learn and matplotlib ship, pages of text, and patterns. Networks: SqueezeNet 1.1 and
MobileNetV2 with ImageNet weights, all frozen and fine-tuned; tiny5 from scratch for digits. Each set that is new to a
network has two parts: `val` photos may be looked at to choose a measure, `test` photos only to report.
"""

import hashlib
import importlib.util
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import prepare
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_sample_images

from penult.bundle.preprocess import Preprocess, crop_encoded
from penult.bundle.reader import read_bundle
from penult.bundle.scores import Floats
from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import PARTS, load_splits
from penult.export.jobs.demo import write_digits
from penult.export.jobs.train import train
from penult.export.onnx.head import cut_head
from penult.export.onnx.runtime import ExportedHead, ExportedModel

_VIEWS, _PAGES, _PATTERNS, _MAX_STRANGE = 60, 30, 60, 250
# Photos of each class of `trashnet-few`; a first try with a handful of photos.
_FEW = {"train": 12, "val": 3}
_BATCH = 32
_FROZEN = {"freeze": 6}
_TUNED = {"freeze": 3, "epochs": 3, "schedule": "onecycle", "train_crop": 176, "lr_head": 2e-3, "lr_backbone": 5e-4}


@dataclass(frozen=True)
class Network:
    """A network to train: its photos, and the sets (names of folders) that are new to it."""

    name: str
    photos: str
    settings: dict
    strange: tuple[str, ...]

    @property
    def is_frozen(self) -> bool:
        """Whether its descriptors are those of every such network of its architecture."""
        return self.settings == _FROZEN | {"arch": self.settings["arch"], "weights": self.settings["weights"]}


@dataclass(frozen=True)
class Described:
    """Logits [N, classes] and descriptors [N, length] of each part: train, val, test and the sets that are new."""

    logits: dict[str, Floats]
    descriptors: dict[str, Floats]
    labels: dict[str, np.ndarray]


def networks() -> list[Network]:
    """Return those that are measured."""
    synthetic = ("views", "pages", "patterns")
    both = [
        Network(f"{photos}, {arch}, {how}", photos,
                options | {"arch": arch, "weights": str(prepare.SHARED / f"{arch}.pth")}, (*strange, *synthetic))
        for arch in ("squeezenet1_1", "mobilenet_v2")
        for how, options in (("frozen", _FROZEN), ("tuned", _TUNED))
        for photos, strange in (
            ("hymenoptera", ("trashnet", "digits")),
            ("trashnet", ("hymenoptera", "digits")),
            ("trashnet-without-glass", ("glass", "hymenoptera", "digits")),
            ("trashnet-few", ("hymenoptera", "digits")),
        )
        if how == "frozen" or photos != "trashnet-few"
    ]  # fmt: skip
    scratch = {"arch": "tiny5", "weights": "none", "freeze": 0, "augment": "gentle", "epochs": 20, "lr_head": 3e-3}
    return [*both, Network("digits 0 to 4, tiny5", "digits-low", scratch, ("digits-high", "trashnet", *synthetic))]


def describe(network: Network, out: Path) -> Described:
    """Train a network and describe its own photos and the strange ones, or read what was found before."""
    settings = _settings(network, out)
    if not (settings.out / "1").is_dir():
        train(settings)
    bundle = read_bundle(settings.out)
    exported = ExportedModel(bundle.onnx, bundle.manifest)
    own = load_splits(PhotoSource(settings.data), settings.out, settings.val, settings.test, settings.seed)
    parts = {part: [photo.path for photo in getattr(own, part)] for part in PARTS}
    parts |= {f"{name} {part}": sorted((out / "strange" / name / part).iterdir())
              for name in network.strange for part in ("val", "test")}  # fmt: skip
    key = network.settings["arch"] if network.is_frozen else network.name.replace(", ", "-").replace(" ", "-")
    store = Store(out / "descriptors" / f"{key}.npz", partial(_run, exported, bundle.manifest.preprocess))
    head = ExportedHead(cut_head(bundle.onnx, bundle.manifest), bundle.manifest)
    descriptors = {name: store.rows(paths) for name, paths in parts.items()}
    logits = {name: head.run(rows) for name, rows in descriptors.items()}
    return Described(
        logits, descriptors, {part: np.array([photo.label for photo in getattr(own, part)]) for part in PARTS}
    )


class Store:
    """Descriptors by the photo's bytes, in one file."""

    def __init__(self, path: Path, run: Callable[[list[bytes]], Floats]) -> None:
        self._path, self._run = path, run
        self._known: dict[str, Floats] = {}
        if path.exists():
            with np.load(path) as found:
                self._known = dict(zip(found["names"].tolist(), found["rows"], strict=True))

    def rows(self, paths: list[Path]) -> Floats:
        """Return a row per photo."""
        photos = [path.read_bytes() for path in paths]
        names = [hashlib.sha256(data).hexdigest() for data in photos]
        missing = {name: data for name, data in zip(names, photos, strict=True) if name not in self._known}
        if missing:
            self._known |= dict(zip(missing, self._run(list(missing.values())), strict=True))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self._path, names=np.array(list(self._known)), rows=np.stack(list(self._known.values())))
        return np.stack([self._known[name] for name in names])


def _run(exported: ExportedModel, spec: Preprocess, photos: list[bytes]) -> Floats:
    batches = [photos[start : start + _BATCH] for start in range(0, len(photos), _BATCH)]
    return np.concatenate(
        [exported.run(np.stack([crop_encoded(data, spec) for data in batch]))[1] for batch in batches]
    )


def _settings(network: Network, out: Path) -> TrainSettings:
    data = out / "photos" / network.photos
    return TrainSettings(data=data, out=out / "models" / network.name.replace(", ", "-").replace(" ", "-"),
                         report_photos=False, **network.settings)  # fmt: skip


# -- photos -----------------------------------------------------------------------------------------------------------


def photos(out: Path) -> None:
    """Make the folders of photos that are not there yet."""
    if (out / "strange").is_dir():
        return
    shutil.rmtree(out / "photos", ignore_errors=True)
    base, strange = out / "photos", out / "strange.part"
    shutil.rmtree(strange, ignore_errors=True)
    for name in ("hymenoptera", "trashnet"):
        with zipfile.ZipFile(prepare.SHARED / f"{name}.zip") as archive:
            archive.extractall(base)
    # Its val/ is the test part; as DATA/val it would decide when learning stops.
    (base / "hymenoptera" / "val").rename(base / "hymenoptera" / "test")
    for name in ("digits", "digits-low", "digits-high"):
        write_digits(base / name, {"digits": "0123456789", "digits-low": "01234", "digits-high": "56789"}[name])
    _copy(base / "trashnet", base / "trashnet-without-glass", without="glass")
    _copy(base / "trashnet", base / "trashnet-few", most=_FEW)
    for name, val, test in (
        ("hymenoptera", "hymenoptera/train", "hymenoptera/test"), ("trashnet", "trashnet/val", "trashnet/test"),
        ("glass", "trashnet/val/glass", "trashnet/test/glass"), ("digits", "digits/train", "digits/test"),
        ("digits-high", "digits-high/train", "digits-high/test"),
    ):  # fmt: skip
        for part, folder in (("val", val), ("test", test)):
            found = sorted(path for path in (base / folder).rglob("*.*") if path.is_file())
            _link(found[:: max(1, len(found) // _MAX_STRANGE)], strange / name / part)
    generator = np.random.default_rng(0)
    for name, make, count in (("views", _view, _VIEWS), ("pages", _page, _PAGES), ("patterns", _pattern, _PATTERNS)):
        for part in ("val", "test"):
            (strange / name / part).mkdir(parents=True)
            for number in range(count):
                make(generator, number).save(strange / name / part / f"{number:03d}.png")
    strange.rename(out / "strange")


def _copy(source: Path, target: Path, without: str = "", most: dict[str, int] | None = None) -> None:
    for folder in sorted(path for path in source.glob("*/*") if path.name != without):
        count = (most or {}).get(folder.parent.name, 10_000)
        _link(sorted(folder.iterdir())[:count], target / folder.relative_to(source))


def _link(paths: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in paths:
        os.link(path, folder / path.name)


def _view(generator: np.random.Generator, number: int) -> Image.Image:
    shipped = [Image.fromarray(picture) for picture in load_sample_images().images]
    spec = importlib.util.find_spec("matplotlib")
    assert spec and spec.origin
    shipped.append(
        Image.open(Path(spec.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg").convert("RGB")
    )
    picture = shipped[number % len(shipped)]
    side = int(generator.integers(160, min(picture.size)))
    left, top = (int(generator.integers(0, whole - side + 1)) for whole in picture.size)
    return picture.crop((left, top, left + side, top + side)).resize((256, 256))


def _page(generator: np.random.Generator, number: int) -> Image.Image:
    page = Image.new("RGB", (256, 320), "white")
    draw = ImageDraw.Draw(page)
    for line in range(int(generator.integers(4, 22))):
        words = " ".join("".join(chr(97 + int(letter)) for letter in generator.integers(0, 26, int(length)))
                         for length in generator.integers(2, 9, 6))  # fmt: skip
        draw.text((14, 12 + 14 * line), words, fill="black")
    return page


def _pattern(generator: np.random.Generator, number: int) -> Image.Image:
    shape = (256, 256, 3)
    match number % 4:
        case 0:
            return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        case 1:
            noise = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
            return noise.filter(ImageFilter.GaussianBlur(float(generator.uniform(3, 20))))
        case 2:
            return Image.new("RGB", shape[:2], tuple(int(value) for value in generator.integers(0, 256, 3)))
        case _:
            wave = np.sin(np.arange(256) * generator.uniform(0.05, 0.9))
            plane = (127 + 120 * wave[:, None] * (np.ones(256) if number % 8 == 3 else wave)[None]).astype(np.uint8)
            return Image.fromarray(np.repeat(plane[..., None], 3, axis=2))
