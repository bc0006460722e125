"""What it changes that photos with a Display P3 profile are converted to sRGB: accuracy, answers, CPU time.

    PYTHONPATH=. python bench/colors.py PHOTOS WEIGHTS ARCH PART

The SVM learns from PHOTOS/train and is tested on PHOTOS/PART; if that is train too, on every third photo of it. Every
photo is stored twice at JPEG quality 95: as it is, and with the same colors encoded in Display P3, as a phone does. A
frozen network describes both, the latter with its profile ignored and converted.
"""

import io
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms
from tests.fixtures.profiles import profile
from torchvision import models

from penult.bundle.preprocess import Preprocess, crop_encoded, decode
from penult.bundle.profiles import conversion
from penult.export.evaluation import svm

SPEC, P3 = Preprocess(), profile()
WAYS = ("sRGB", "P3 ignored", "P3 converted")
_TO_P3 = ImageCms.buildTransform(
    ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(P3)), "RGB", "RGB",
    ImageCms.Intent.RELATIVE_COLORIMETRIC,
)  # fmt: skip


def stored(image: Image.Image, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0, **more)
    return file.getvalue()


def crops(path: Path) -> list[np.ndarray]:
    image = decode(path.read_bytes())
    p3 = crop_encoded(stored(ImageCms.applyTransform(image, _TO_P3), icc_profile=P3), SPEC)
    return [crop_encoded(stored(image), SPEC), p3, conversion(P3)(p3)]


def describer(arch: str, weights: str):
    net = models.get_model(arch, weights=None)
    net.load_state_dict(torch.load(weights, weights_only=True))
    net.eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SPEC.mean, SPEC.std))

    @torch.inference_mode()
    def describe(batch: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        return net.features((pixels - mean) / std).mean((2, 3)).numpy()

    return describe


def main() -> None:
    root, (weights, arch, test) = Path(sys.argv[1]), sys.argv[2:5]
    describe = describer(arch, weights)
    classes = sorted(path.name for path in (root / "train").iterdir())
    found, labels = {}, {}
    for part in dict.fromkeys(("train", test)):
        paths = [path for name in classes for path in sorted((root / part / name).iterdir())]
        labels[part] = np.array([classes.index(path.parent.name) for path in paths])
        parts = []
        for at in range(0, len(paths), 16):
            three = np.stack([crops(path) for path in paths[at : at + 16]])
            parts.append(np.stack([describe(three[:, way]) for way in range(len(WAYS))]))
        found[part] = dict(zip(WAYS, np.concatenate(parts, axis=1), strict=True))
    if test == "train":
        is_third = np.arange(len(labels["train"])) % 3 == 0
        for part, keep in (("held out", is_third), ("train", ~is_third)):
            found[part] = {way: rows[keep] for way, rows in found["train"].items()}
            labels[part] = labels["train"][keep]
        test = "held out"
    report(found, labels, test)
    cost()


def report(found: dict, labels: dict, test: str) -> None:
    one, rng = found[test], np.random.default_rng(0)
    for way in WAYS[1:]:
        a, b = one["sRGB"], one[way]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        print(f"descriptors of sRGB and {way}: cosine mean {cosine.mean():.4f}, least {cosine.min():.4f}")
    half = rng.random(len(labels["train"])) < 0.5
    for learned, train in (
        *((way, found["train"][way]) for way in WAYS),
        *(
            (f"half sRGB, half {way}", np.where(half[:, None], found["train"]["sRGB"], found["train"][way]))
            for way in WAYS[1:]
        ),
    ):
        fitted = svm.fit(train, labels["train"], seed=0)
        answers = {way: fitted.pipeline.predict(one[way]) for way in WAYS}
        for way in WAYS:
            right, same = (answers[way] == labels[test]).mean(), (answers[way] == answers["sRGB"]).mean()
            print(
                f"learned from {learned:28} test {way:13} accuracy {right:6.1%}  same answer as sRGB {same:6.1%}",
                flush=True,
            )


def cost() -> None:
    image = Image.effect_noise((4032, 3024), 30).convert("RGB").resize((4032, 3024))
    jpeg = stored(image)
    convert, crop = conversion(P3), np.asarray(image.resize((224, 224)))
    for name, make in (
        ("convert a crop", lambda: convert(crop)),
        ("read the profile, once", lambda: conversion.__wrapped__(P3)),
        ("littleCMS: the same crop", lambda: ImageCms.applyTransform(Image.fromarray(crop), _TO_P3)),
        ("decode and crop a JPEG of 12 megapixels", lambda: crop_encoded(jpeg, SPEC)),
    ):
        make()
        start = time.process_time()
        for _ in range(20):
            make()
        print(f"{name}: {(time.process_time() - start) / 20 * 1000:.2f} ms of CPU time")


if __name__ == "__main__":
    main()
