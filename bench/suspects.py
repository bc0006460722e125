"""Suspect labels: flip labels of real photos at random, rank them as `penult inspect` does, and count what comes first.

make bench-suspects, or: PYTHONPATH=.tools/cleanlab .venv/bin/python bench/suspects.py [--choose]

--choose shows the classifiers that were compared, on TrashNet's training photos and Hymenoptera with other seeds and
rates; the rest measures the one that was chosen. cleanlab ranks the same probabilities in three ways.
"""

import argparse
import itertools
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from penult.export.config.photos import PhotoSource
from penult.export.data.dataset import load_splits
from penult.export.data.splitting import merge_groups
from penult.export.evaluation import suspects
from penult.export.jobs.frozen_descriptors import of_weights
from penult.export.report.inspect_page import all_photos

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SETS = {"trashnet": 2527, "hymenoptera": 397}
ARCHITECTURES = ("mobilenet_v2", "squeezenet1_1")
CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def flip(labels: np.ndarray, classes: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give a share of the photos another label at random; return the labels, and which are flipped."""
    random, given = np.random.default_rng(seed), labels.copy()
    flipped = random.choice(len(labels), round(rate * len(labels)), replace=False)
    given[flipped] = (given[flipped] + random.integers(1, classes, len(flipped))) % classes
    return given, np.isin(np.arange(len(labels)), flipped)


def found_first(order: np.ndarray, is_flipped: np.ndarray) -> tuple[float, float]:
    """Return precision among as many photos as flips, and recall among twice as many."""
    count = int(is_flipped.sum())
    return float(is_flipped[order[:count]].mean()), float(is_flipped[order[: 2 * count]].sum() / count)


def described(name: str, folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, list[str], np.ndarray]]:
    """Yield architecture, inputs, labels, units and training photos of a set."""
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        archive.extractall(folder)
    splits = load_splits(PhotoSource(folder / name), folder / "out", "0.15", "0.15", 0)
    photos = all_photos(splits)
    assert len(photos) == SETS[name]
    units = [photo.group or photo.sha256 for photo in merge_groups(photos)]
    labels = np.array([photo.label for photo in photos])
    for arch in ARCHITECTURES:
        descriptors = of_weights(arch, str(DATA / f"{arch}.pth")).describe(photos)
        yield arch, descriptors, labels, units, np.arange(len(photos)) < len(splits.train)


def cleanlab_orders(given: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return cleanlab's rankings, most suspect first; none if it is not installed."""
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}
    return {
        method: np.argsort(get_label_quality_scores(given, probabilities, method=method), kind="stable")
        for method in CLEANLAB
    }


def measure(name: str, folder: Path, rates: tuple[float, ...], seeds: range) -> None:
    """Print the figures of one set."""
    for arch, descriptors, labels, units, _ in described(name, folder):
        inputs, classes = suspects.prepared(descriptors), int(labels.max()) + 1
        for rate in rates:
            rows: dict[str, list[tuple[float, float]]] = {}
            started = time.process_time()
            for seed in seeds:
                given, is_flipped = flip(labels, classes, rate, seed)
                probabilities = suspects.leave_out_probabilities(inputs, given, classes, units)
                orders = {"penult": suspects.rank(probabilities, given).order} | cleanlab_orders(given, probabilities)
                for method, order in orders.items():
                    rows.setdefault(method, []).append(found_first(order, is_flipped))
            cpu = (time.process_time() - started) / len(seeds)
            for method, found in rows.items():
                precision, recall = np.mean(found, axis=0)
                each = " ".join(f"{p:.2f}/{r:.2f}" for p, r in found)
                mean = f"{precision:.3f} {recall:.3f}  ({each})  {cpu:.1f} CPU-s"
                print(f"{name:12} {arch:14} {rate:4.0%} {method:28} {mean}", flush=True)


def choose(name: str, folder: Path, seeds: range) -> None:
    """Print the figures of kernels and ridges, by exact leave-one-out, on training photos."""
    for arch, descriptors, labels, _, is_training in described(name, folder):
        inputs, given_labels = suspects.prepared(descriptors[is_training]).astype(float), labels[is_training]
        classes = int(labels.max()) + 1
        flips = [flip(given_labels, classes, rate, seed) for rate, seed in itertools.product((0.05, 0.1), seeds)]
        distances = np.maximum(2 - 2 * inputs @ inputs.T, 0)
        kernels = {"linear": (inputs - inputs.mean(0)) @ (inputs - inputs.mean(0)).T / inputs.var(0).sum()}
        kernels |= {f"rbf {width:g}": np.exp(-width * distances / np.median(distances)) for width in (0.5, 1, 2)}
        for (kernel, values), ridge in itertools.product(kernels.items(), (0.03, 0.1, 0.3, 1)):
            inverse = np.linalg.inv(values + ridge * np.eye(len(values)))
            found = []
            for given, is_flipped in flips:
                targets = 2 * np.eye(classes)[given] - 1
                scores = targets - (inverse @ targets) / np.diag(inverse)[:, None]
                probabilities = suspects._calibrated(scores.astype(np.float32), given)
                found.append(found_first(suspects.rank(probabilities, given).order, is_flipped))
            precision, recall = np.mean(found, axis=0)
            print(f"{name:12} {arch:14} {kernel:8} ridge {ridge:<5g} {precision:.3f} {recall:.3f}", flush=True)


def main() -> None:
    """Measure, or show what was chosen from."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choose", action="store_true", help="compare kernels on training photos and other seeds")
    arguments = parser.parse_args()
    print(f"command: {' '.join(sys.argv)}; precision among as many as flips, recall among twice as many")
    with tempfile.TemporaryDirectory() as folder:
        for name in SETS:
            if arguments.choose:
                choose(name, Path(folder), range(100, 103))
            else:
                measure(name, Path(folder), (0.02, 0.05, 0.1), range(3))


if __name__ == "__main__":
    main()
