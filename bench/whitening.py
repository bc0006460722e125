"""What PCA-whitening does to neighbours, by length and shrinkage.

    python bench/whitening.py MODEL PHOTOS

Descriptors of a bundle that was trained without --whiten, of the photos that it was trained on. Each line: accuracy of
the vote of the ten nearest on validation and test photos, with all training photos stored, then on test photos with 20
of each class.
"""

import sys
from pathlib import Path

import numpy as np

from penult.bundle.reader import read_bundle
from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import load_splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.evaluation.whitening import directions, vote_accuracy
from penult.export.onnx.runtime import ExportedModel

LENGTHS, SHRINKAGES, FEW = (32, 64, 128, 256, 512), (0.0, 0.1, 0.3, 1.0), 20


def main() -> None:
    folder, photos = map(Path, sys.argv[1:3])
    bundle = read_bundle(folder)
    splits = load_splits(PhotoSource(photos), folder, TrainSettings.val, TrainSettings.test, TrainSettings.seed)
    reader, model = PhotoReader(bundle.manifest.preprocess, Cache(0), 32), ExportedModel(bundle.onnx, bundle.manifest)
    described = {
        part: model.run_all(reader.crops(getattr(splits, part), f"describing {part} photos"))[1:]
        for part in ("train", "val", "test")
    }
    train, labels = described["train"]
    order = np.random.default_rng(0).permutation(len(train))
    few = np.concatenate([order[labels[order] == label][:FEW] for label in range(len(splits.classes))])

    def report(name: str, change) -> None:
        stored, val, test = (change(described[part][0]) for part in ("train", "val", "test"))
        shares = [
            vote_accuracy(stored, labels, val, described["val"][1]),
            vote_accuracy(stored, labels, test, described["test"][1]),
            vote_accuracy(stored[few], labels[few], test, described["test"][1]),
        ]
        print(name.ljust(24), *(f"{share:6.1%}" for share in shares), flush=True)

    report(f"raw, {train.shape[1]}", lambda rows: rows)
    for length in (length for length in LENGTHS if length < min(train.shape)):
        for shrinkage in SHRINKAGES:
            weight, bias, _ = directions(train, length, shrinkage)

            def change(rows: np.ndarray, weight: np.ndarray = weight, bias: np.ndarray = bias) -> np.ndarray:
                return rows / np.linalg.norm(rows, axis=1, keepdims=True) @ weight.T + bias

            report(f"{length}, shrinkage {shrinkage:g}", change)


if __name__ == "__main__":
    main()
