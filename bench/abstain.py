"""Measure how often certified thresholds keep their promise, on resplits of photos described once.

    python bench/abstain.py PHOTOS ARCH WEIGHTS 100

Every resplit divides the photos anew, by class. 40 % train the SVM with C = 10, 10 % choose (temperature, sequence of
thresholds), 20 % certify, and 30 % are the test part. As in `penult train --max-error`, the choosing photos are then
learnt from too, and the certifying ones are not. A resplit keeps its promise if at most the certified share of the test
photos that are answered is wrong. The test part is finite, so this is counted twice: as it is, and with the noise of
the test part taken off. In the second count a promise is broken if the wrong answers are more than a model at the
limit gives in 95 % of test parts.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import binom
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from penult.bundle.scores import as_columns, best_of
from penult.export.config.photos import PhotoSource
from penult.export.data.certifying import independent_rows
from penult.export.data.dataset import load_splits
from penult.export.evaluation.abstaining import Answers, certify
from penult.export.evaluation.metrics import fit_temperature
from penult.export.jobs.frozen_descriptors import of_weights

ERRORS = (0.10, 0.05, 0.02)
TRAIN, CHOOSE, CERTIFY, TEST = 0.4, 0.1, 0.2, 0.3


def resplit(units: np.ndarray, labels: np.ndarray, seed: int) -> dict[float, tuple[float, int, int, int] | None]:
    """Return threshold, test photos, answered and wrong by certified error; None if it is not certified."""
    parts, left = [], np.arange(len(labels))
    for share, rest in ((TRAIN, 1.0), (CHOOSE, 1 - TRAIN), (CERTIFY, CERTIFY + TEST)):
        rows, left = train_test_split(left, train_size=share / rest, stratify=labels[left], random_state=seed)
        parts.append(rows)
    train, choose, certifying, test = *parts, left
    first, final = (
        LinearSVC(C=10, dual=False).fit(units[rows], labels[rows]) for rows in (train, np.concatenate([train, choose]))
    )
    chosen = as_columns(first.decision_function(units[choose]))
    temperature = fit_temperature(chosen, labels[choose])

    def answers(scores: np.ndarray, rows: np.ndarray) -> Answers:
        named, confidence = best_of(scores, temperature)
        return Answers(confidence, named, named == labels[rows], np.ones(len(rows), dtype=bool))

    choosing = answers(chosen, choose)
    own, new = (answers(as_columns(final.decision_function(units[rows])), rows) for rows in (certifying, test))
    found: dict[float, tuple[float, int, int, int] | None] = {}
    for error in ERRORS:
        point = certify(choosing, own, error)
        rows = new.answered([point.threshold]) if point else np.zeros(0, dtype=bool)
        found[error] = (point.threshold, len(new), int(rows.sum()), int((rows & ~new.right).sum())) if point else None
    return found


def main(folder: Path, arch: str, weights: str, repeats: int) -> None:
    """Print a line for each certified error."""
    splits = load_splits(PhotoSource(folder), Path("models/none"), "0.15", "0.15", 0)
    photos = (*splits.train, *splits.val, *splits.test)
    rows = independent_rows(photos, (), 0)
    photos = tuple(photos[row] for row in rows)
    units, labels = normalize(of_weights(arch, weights).describe(photos)), np.array([photo.label for photo in photos])
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = [resplit(units, labels, seed) for seed in range(repeats)]
    print(f"{folder.name}: {len(photos)} photos, {repeats} resplits")
    print("error  certified  kept, as counted  kept, noise off  coverage  error among answered  sd of the test error")
    for error in ERRORS:
        found = [each[error] for each in every if each[error] is not None]
        if not found:
            print(f"{error:5.0%}  {0:9}")
            continue
        _, total, answered, wrong = (np.array(column) for column in zip(*found, strict=True))
        kept = wrong <= error * answered
        by_chance = wrong <= binom.ppf(0.95, answered, error)
        noise = np.sqrt(error * (1 - error) / answered.mean())
        print(
            f"{error:5.0%}  {len(found):9}  {kept.sum():16}  {by_chance.sum():15}  {np.mean(answered / total):8.1%}  "
            f"{wrong.sum() / max(answered.sum(), 1):20.1%}  {noise:20.1%}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
