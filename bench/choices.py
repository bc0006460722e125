"""Compare rules that choose the default scorer and C, on photos that are not the test photos of a goal.

    python bench/choices.py frozen PHOTOS ARCH WEIGHTS 60,150,400
    python bench/choices.py tuned MODEL PHOTOS

The first command learns from random subsets of the training and validation photos of PHOTOS, with a frozen network, and
measures on the others. Leave the test photos of a goal out of PHOTOS. The former rule was the scorer with more correct
validation photos, the dense head on a tie, with C from training photos. Each line is a mean over 8 seeds. The second
command shows what C does for the SVM of a fine-tuned MODEL, on the test part of PHOTOS; give photos whose test part
decides nothing else.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from penult.bundle.reader import read_bundle
from penult.export.config.photos import PhotoSource
from penult.export.config.train import TrainSettings
from penult.export.data.dataset import load_splits
from penult.export.data.loader import Cache, PhotoReader
from penult.export.evaluation import svm
from penult.export.evaluation.choice import Plan, by_validation, fit_and_choose
from penult.export.evaluation.dense_head import HeadRecipe, fit_head
from penult.export.evaluation.outputs import SplitOutputs
from penult.export.jobs.frozen_descriptors import of_weights
from penult.export.onnx.runtime import ExportedModel

SEEDS, MOST_MEASURED, VAL_SHARE = 8, 800, 0.15
SHOWN_C = (0.01, 0.1, 1.0, 10.0, 100.0)
HEAD = HeadRecipe(0.2)


def frozen(photos: Path, arch: str, weights: str, sizes: str) -> None:
    splits = load_splits(PhotoSource(photos), Path("models/none"), TrainSettings.val, TrainSettings.test, 0)
    pool = (*splits.train, *splits.val)
    descriptors, labels = of_weights(arch, weights).describe(pool), np.array([photo.label for photo in pool])
    print("photos  dense  SVM, former C  SVM  former rule  larger mean  clearly better (now)")
    for size in map(int, sizes.split(",")):
        rows = np.array([_trial(descriptors, labels, size, seed) for seed in range(SEEDS)])
        print(f"{size:6}", *(f"{value:6.1f}" for value in 100 * rows.mean(axis=0)), flush=True)


def _trial(descriptors: np.ndarray, labels: np.ndarray, size: int, seed: int) -> list[float]:
    """Return test accuracies of both scorers with either C, and under each of the rules."""
    rest = min(len(labels) - size, MOST_MEASURED)
    known, unseen = next(
        StratifiedShuffleSplit(1, train_size=size, test_size=rest, random_state=seed).split(labels, labels)
    )
    parts = next(StratifiedShuffleSplit(1, test_size=VAL_SHARE, random_state=seed).split(known, labels[known]))
    (train_x, train), (val_x, val) = ((descriptors[known[rows]], labels[known[rows]]) for rows in parts)
    head = fit_head(HEAD, (train_x, train), (val_x, val), int(labels.max()) + 1, seed)
    both = np.concatenate([train_x, val_x]), np.concatenate([train, val])
    former = svm.fit(train_x, train, seed)
    measured = {
        "train": SplitOutputs(head.logits(train_x), train_x, train),
        "val": SplitOutputs(head.logits(val_x), val_x, val),
    }
    plan = Plan("auto", None, seed, is_frozen=True, head=HEAD)
    found, choice = fit_and_choose(plan, measured, np.arange(size), has_dense=True)
    assert choice is not None

    def accuracy(scores: np.ndarray) -> float:
        return float((scores.argmax(axis=1) == labels[unseen]).mean())

    dense = accuracy(head.logits(descriptors[unseen]))
    before, now = (accuracy(svm.fit_again(one, *both).scores(descriptors[unseen])) for one in (former, found))
    svm_hits, dense_hits = (s.argmax(axis=1) == val for s in (former.scores(val_x), head.logits(val_x)))
    by_count = before if by_validation(svm_hits, dense_hits).difference > 0 else dense
    return [
        dense,
        before,
        now,
        by_count,
        now if choice.difference >= 0 else dense,
        now if choice.scorer == "svm" else dense,
    ]


def tuned(model: Path, photos: Path) -> None:
    bundle = read_bundle(model)
    seed = bundle.manifest.training["settings"]["seed"]
    splits = load_splits(PhotoSource(photos), model, TrainSettings.val, TrainSettings.test, seed)
    exported, reader = (
        ExportedModel(bundle.onnx, bundle.manifest),
        PhotoReader(bundle.manifest.preprocess, Cache(0), 32),
    )
    found = {
        part: SplitOutputs(*exported.run_all(reader.crops(getattr(splits, part), part)))
        for part in ("train", "val", "test")
    }
    test, known = found["test"], [found["train"], found["val"]]
    unit, labels = normalize(np.concatenate([m.descriptors for m in known])), np.concatenate([m.labels for m in known])
    print(f"dense head {(test.logits.argmax(axis=1) == test.labels).mean():.1%}")
    for c in SHOWN_C:
        fitted = LinearSVC(C=c, dual=False).fit(unit, labels)
        print(f"C = {c:g}: {(fitted.predict(normalize(test.descriptors)) == test.labels).mean():.1%}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    command, *words = sys.argv[1:]
    if command == "frozen":
        frozen(Path(words[0]), *words[1:])
    else:
        tuned(*map(Path, words))
