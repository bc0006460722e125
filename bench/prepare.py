"""What the benchmarks run on, made once below bench-out/: photos from ../shared/data and bundles trained on them.

Speed does not depend on what a network has learnt, so the bundles come from a minute of training on a few photos,
from random weights (except MobileNetV2's real ones in bench/training.py). Never commit any of it.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
OUT = ROOT / "bench-out"
MODELS, JPEGS, FEW = OUT / "models", OUT / "jpegs", OUT / "few"
# Epochs: enough for goldens that are clear cases.
NETWORKS = {"mobilenet_v3_small": 8, "resnet18": 2, "tiny5": 1}
INT8 = "resnet18_int8"
_JPEG_SIZE, _JPEG_COUNT = (500, 375), 64
_PHOTOS_PER_CLASS = {"train": 12, "val": 6, "test": 6}


def prepare() -> None:
    """Make what is not there yet."""
    if not SHARED.is_dir():
        sys.exit("this benchmark needs ../shared/data (real photos)")
    OUT.mkdir(exist_ok=True)
    jpegs()
    for network in NETWORKS:
        prepare_one(network)
    if not (MODELS / INT8 / "1").is_dir():
        quantize("resnet18")


def prepare_one(network: str) -> None:
    """Make one network's bundle, if it is not there yet."""
    OUT.mkdir(exist_ok=True)
    if not (MODELS / network / "1").is_dir():
        train(network, NETWORKS[network])


def jpegs() -> list[bytes]:
    """Return real JPEGs of 500 x 375 pixels."""
    if not JPEGS.is_dir():
        with zipfile.ZipFile(SHARED / "hymenoptera.zip") as archive:
            archive.extractall(OUT)
        found = [path for path in sorted((OUT / "hymenoptera").rglob("*.jpg")) if Image.open(path).size == _JPEG_SIZE]
        JPEGS.mkdir()
        for path in found[:_JPEG_COUNT]:
            shutil.copy(path, JPEGS)
    return [path.read_bytes() for path in sorted(JPEGS.iterdir())]


def train(network: str, epochs: int) -> None:
    """Train a bundle on a few photos, from random weights."""
    penult("train", str(few()), "--out", str(MODELS / network), "--arch", network, "--weights", "none", "--freeze", "0",
           "--epochs", str(epochs), "--batch-size", "8", "--svm", "linear", "--no-report-photos")  # fmt: skip


def quantize(network: str) -> None:
    """Make the int8 bundle of a network, as a model of its own; a loss of accuracy means nothing here."""
    shutil.copytree(MODELS / network, MODELS / INT8)
    penult("quantize", str(MODELS / INT8), str(few()), "--max-loss", "99")
    shutil.rmtree(MODELS / INT8 / "1")
    (MODELS / INT8 / "2").rename(MODELS / INT8 / "1")


def few() -> Path:
    """Return a folder with some photos of each class of TrashNet."""
    if not FEW.is_dir():
        with zipfile.ZipFile(SHARED / "trashnet.zip") as archive:
            archive.extractall(OUT)
        for part, count in _PHOTOS_PER_CLASS.items():
            for folder in sorted((OUT / "trashnet" / part).iterdir()):
                (FEW / part / folder.name).mkdir(parents=True)
                for path in sorted(folder.iterdir())[:count]:
                    shutil.copy(path, FEW / part / folder.name)
    return FEW


def penult(*arguments: str) -> None:
    """Run a verb of the command line."""
    subprocess.run([sys.executable, "-m", "penult.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
