"""CPU time from a photo's bytes to the network's input, against another revision, in turns in one process.

python bench/pictures.py --photos FOLDER --before REVISION [--network FILE.onnx]: JPEGs of the folder as they are, as 12
megapixels with and without metadata, and as PNG and WebP; also whether the pixels are the same. Memory is kept as the
server keeps it, and caches are cold. With --network, two threads decode the JPEGs and run a network on each.
"""

import argparse
import importlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
from PIL import Image

from penult.bundle import preprocess
from penult.process_limits import keep_freed_blocks

PACKAGE = "penult_before"
# More than the caches of one core hold.
OTHER_DATA = np.zeros(6 << 20, np.uint8)


def before(revision: str, folder: Path) -> ModuleType:
    """Return the module of another revision, under another name."""
    (folder / PACKAGE).mkdir()
    listed = subprocess.run(
        ["git", "ls-tree", "--name-only", revision, "service/penult/bundle/"],
        capture_output=True,
        text=True,
        check=True,
    )
    for path in listed.stdout.split():
        text = subprocess.run(["git", "show", f"{revision}:{path}"], capture_output=True, text=True, check=True).stdout
        (folder / PACKAGE / Path(path).name).write_text(text.replace("penult.bundle", PACKAGE))
    sys.path.insert(0, str(folder))
    return importlib.import_module(f"{PACKAGE}.preprocess")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def kinds(photos: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Yield what is measured."""
    images = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in photos[:20]]
    exif, large = Image.Exif(), images[0].resize((4032, 3024), Image.Resampling.BICUBIC)
    exif[0x0112], exif[0x010F], exif[0x011A] = 1, "Maker", 72.0
    rich = encoded(large, "JPEG", quality=90, exif=exif, icc_profile=bytes(3000), xmp=b"<x>" * 900)
    yield "JPEG as it is", photos
    yield "JPEG of 12 megapixels, EXIF, XMP and profile", [rich] * 6
    yield "JPEG of 12 megapixels, bare", [encoded(large, "JPEG", quality=90)] * 6
    yield "PNG", [encoded(image, "PNG") for image in images]
    yield "WebP", [encoded(image, "WEBP") for image in images]


def beside_network(modules: list[ModuleType], photos: list[bytes], network: Path, rounds: int) -> None:
    """Print CPU-ms of an image, decoded and run, by two threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    name, spent = session.get_inputs()[0].name, ([], [])

    def run(module: ModuleType, first: int) -> None:
        for photo in photos[first::2]:
            session.run(None, {name: module.crop_encoded(photo, module.Preprocess())[np.newaxis]})

    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(partial(run, modules[which]), (0, 1)))
            spent[which].append(1000 * (time.process_time() - began) / len(photos))
    ms = [statistics.median(times) for times in spent]
    ratio = statistics.median(after / before for before, after in zip(*spent, strict=True))
    print(f"JPEG and network, two threads: {ms[0]:.3f} → {ms[1]:.3f} ms, ratio {ratio:.3f}")


def main() -> None:
    """Print CPU-ms of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--before", required=True, help="revision to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is decoded (3)")
    parser.add_argument("--network", type=Path, help="bundle's model.onnx, to run on each JPEG")
    options = parser.parse_args()
    keep_freed_blocks(arenas=2)
    photos = [path.read_bytes() for path in sorted(options.photos.rglob("*.jpg"))[:60]]
    with tempfile.TemporaryDirectory() as folder:
        modules = [before(options.before, Path(folder)), preprocess]
        specs = [module.Preprocess() for module in modules]
        if options.network:
            beside_network(modules, photos, options.network, 5 * options.rounds)
        for name, files in kinds(photos):
            crops = [[m.crop_encoded(file, s) for file in files] for m, s in zip(modules, specs, strict=True)]
            same = all(np.array_equal(*pair) for pair in zip(*crops, strict=True))
            ratios, spent = [], [0.0, 0.0]
            for number in range(options.rounds):
                seconds = [0.0, 0.0]
                for place, file in enumerate(files):
                    for which in (0, 1) if (place + number) % 2 else (1, 0):
                        OTHER_DATA[::64] += 1
                        began = time.process_time()
                        modules[which].crop_encoded(file, specs[which])
                        seconds[which] += time.process_time() - began
                ratios.append(seconds[1] / seconds[0])
                spent = [total + part for total, part in zip(spent, seconds, strict=True)]
            ms = [1000 * total / len(files) / options.rounds for total in spent]
            print(f"{name}: {ms[0]:.3f} → {ms[1]:.3f} ms, ratio {statistics.median(ratios):.3f}, same pixels: {same}")


if __name__ == "__main__":
    main()
