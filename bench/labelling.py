"""Choose photos to label as `penult label` does, against random choice: labels saved, time and memory.

    python bench/labelling.py [--seeds 10] [--sets trashnet,hymenoptera,digits] [--validate]

Each set is played with every seed, with chosen and with random labels, from nothing. The accuracy is that of the page's
classifier, and of LIBLINEAR's SVM, on the set's own test photos. --validate splits a fifth off the pool and measures
on it instead, for choosing strategies. Digits are those from 5 to 9, with a network that learnt 0 to 4.
"""

import argparse
import hashlib
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.svm import LinearSVC

from penult.export.config.train import TrainSettings
from penult.export.data.splitting import Photo
from penult.export.jobs.demo import write_digits
from penult.export.jobs.frozen_descriptors import of_weights
from penult.export.jobs.train import train
from penult.label import replay
from penult.label.pool import unit_rows_in_place
from penult.label.replay import Truth
from penult.label.settings import ACTIVE, RANDOM

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
# Photos that are labelled at most, and the size of the random sample to compare with.
BUDGETS = {"trashnet": 600, "hymenoptera": 240, "digits": 440}
COMPARED = {"trashnet": 305, "hymenoptera": 100, "digits": 100}
LIBLINEAR_AT = (50, 100, 200, 305, 600)
SHOWN = (20, 50, 100, 150, 200, 250, 300, 400, 500, 600)


def photos_of(name: str, folder: Path) -> tuple[list[Path], Path, str]:
    """Return the photos of a set as folder/{train,test}/CLASS/FILE, and the network's weights and name."""
    if name != "digits":
        with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
            archive.extractall(folder)
        return sorted(folder.glob(f"{name}/*/*/*")), DATA / "mobilenet_v2.pth", "mobilenet_v2"
    weights = folder / "base.pt"
    base = write_digits(folder / "base", "01234")
    train(
        TrainSettings(
            data=base,
            out=folder / "models" / "base",
            arch="tiny5",
            weights="none",
            freeze=0,
            augment="gentle",
            epochs=12,
            lr_head=3e-3,
            save_weights=weights,
        )
    )
    return sorted(write_digits(folder / name, "56789").glob("*/*/*.png")), weights, "tiny5"


def truth_of(name: str, folder: Path) -> Truth:
    """Return a set with its test photos: those of its folder test, or val if it has no test."""
    paths, weights, arch = photos_of(name, folder)
    classes = tuple(sorted({path.parent.name for path in paths}))
    splits = np.array([path.parts[-3] for path in paths])
    photos = [
        Photo(path, classes.index(path.parent.name), hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths
    ]
    inputs = of_weights(arch, str(weights)).describe(photos)
    unit_rows_in_place(inputs)
    is_test = splits == ("test" if "test" in splits else "val")
    labels = np.array([photo.label for photo in photos])
    first: dict[str, int] = {}
    groups = np.array([first.setdefault(photo.sha256, row) for row, photo in enumerate(photos)])
    return Truth(inputs[~is_test], groups[~is_test], labels[~is_test], inputs[is_test], labels[is_test], classes)


def validation(truth: Truth, seed: int) -> Truth:
    """Return a truth whose test photos are a fifth of the pool's, drawn by seed."""
    order = np.random.default_rng(1000 + seed).permutation(len(truth.labels))
    out, kept = np.split(order, [len(order) // 5])
    return Truth(
        truth.inputs[kept], truth.groups[kept], truth.labels[kept], truth.inputs[out], truth.labels[out], truth.classes
    )


def played(truth: Truth, strategy: str, budget: int, seed: int) -> Iterator[tuple[int, float, float]]:
    """Yield labels, accuracy of the page's classifier, accuracy of LIBLINEAR's, every ten labels."""
    fits, rows = replay._Fits(truth, seed), list[int]()
    for row in replay._order(truth, fits, strategy, seed, rows):
        rows.append(row)
        if len(rows) % replay.EVERY == 0 or len(rows) in COMPARED.values():
            fits.fit(rows)
            ours = float((fits.learner.answers(truth.test_inputs) == truth.test_labels).mean())
            theirs = float("nan")
            if len(rows) in LIBLINEAR_AT and len(set(truth.labels[rows].tolist())) > 1:
                svm = LinearSVC(C=10, dual="auto").fit(truth.inputs[rows], truth.labels[rows])
                theirs = float((svm.predict(truth.test_inputs) == truth.test_labels).mean())
            yield len(rows), ours, theirs
        if len(rows) >= min(budget, len(truth.labels)):
            return


def interval(values: np.ndarray) -> str:
    """Return a mean with its interval of 95 % by the t distribution of 10 seeds, in points."""
    half = 2.262 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():+.1f} ({values.mean() - half:+.1f} to {values.mean() + half:+.1f})"


def whole(truth: Truth) -> float:
    """Return the accuracy, in per cent, with all labels of the pool."""
    fits = replay._Fits(truth, 0)
    fits.fit(list(range(len(truth.labels))))
    return 100 * float((fits.learner.answers(truth.test_inputs) == truth.test_labels).mean())


def measure(name: str, truth: Truth, seeds: range, is_validated: bool) -> None:
    """Print the curves of one set, the difference at each size, and the labels saved."""
    found: dict[str, list[list[tuple[int, float, float]]]] = {ACTIVE: [], RANDOM: []}
    started = time.process_time()
    for seed in seeds:
        used = validation(truth, seed) if is_validated else truth
        for strategy, runs in found.items():
            runs.append(list(played(used, strategy, BUDGETS[name], seed)))
            shown = [
                f"{size}:{100 * ours:.1f}" for size, ours, _ in runs[-1] if size in SHOWN or size == COMPARED[name]
            ]
            print(f"{name} seed {seed} {strategy:6}", *shown, file=sys.stderr, flush=True)
    print(f"{name}: {time.process_time() - started:.0f} CPU-s; pool {len(used.labels)}, test {len(used.test_labels)}")
    sizes = [size for size, _, _ in found[ACTIVE][0]]
    values = {strategy: 100 * np.array(runs)[:, :, 1:] for strategy, runs in found.items()}
    for at, size in enumerate(sizes):
        if size in SHOWN or size in COMPARED.values():
            ours, theirs = ((values[ACTIVE] - values[RANDOM])[:, at, kind] for kind in (0, 1))
            means = [f"{values[s][:, at, kind].mean():.1f}" for kind in (0, 1) for s in (ACTIVE, RANDOM)]
            svm = f"  LIBLINEAR {means[2]} {means[3]} {interval(theirs)}" if size in LIBLINEAR_AT else ""
            print(f"{size:5}  page {means[0]} {means[1]} {interval(ours)}{svm}")
    difference = (values[ACTIVE] - values[RANDOM])[:, :, 0]
    for at, size in enumerate(sizes):
        half = 2.262 * difference[:, at].std(ddof=1) / np.sqrt(len(seeds))
        if size >= 50 and difference[:, at].mean() + half < 0:
            print(f"   worse than random at {size}: {interval(difference[:, at])}")
    size = COMPARED[name]
    target = values[RANDOM][:, sizes.index(size), 0].mean()
    means = values[ACTIVE][:, :, 0].mean(axis=0)
    needed = [size for size, mean in zip(sizes, means, strict=True) if mean >= target][:1]
    print(f"   {size} random labels: {target:.1f} %; chosen labels for the mean to reach it: {needed}")
    each = [
        next((n for n, value in zip(sizes, run[:, 0], strict=True) if value >= target), sizes[-1])
        for run in values[ACTIVE]
    ]
    saved = 100 * (1 - np.array(each) / size)
    print(f"   by seed: {each}, fewer by {interval(saved)} %")
    print(f"   all labels: {whole(used):.1f} %, chosen {sizes[-1]}: {interval(values[ACTIVE][:, -1, 0])}", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sets", default="trashnet,hymenoptera,digits")
    parser.add_argument("--validate", action="store_true", help="measure on a fifth of the pool")
    arguments = parser.parse_args()
    print(f"command: {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sets.split(","):
            truth = truth_of(name, Path(folder))
            measure(name, truth, range(arguments.seeds), arguments.validate)


if __name__ == "__main__":
    main()
