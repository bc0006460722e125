"""Which photos count as novel, in both directions of every pair of photo sets at hand.

    python bench/novelty.py [--out bench-out/novelty] [--part test] [--only WORDS]

Each network of bench/novelty_sets.py is trained and its photos are described once (about 25 CPU-minutes); then the
table takes a minute. For each network and each set that is new to it: AUROC of each measure, and the share above the
threshold by the rule of before (nearest of 256, 99 % of the validation photos) and by today's (drift_baseline.fit).
`--part val` shows the photos that measure and threshold were chosen on. Then what a photo costs, on one thread.
"""

import argparse
import os
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: costs are those of one thread

import novelty_sets
import numpy as np
import prepare
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from penult.bundle.baseline import nearest_distance
from penult.bundle.manifest import FileEntry, Manifest
from penult.bundle.preprocess import Preprocess
from penult.export.evaluation import drift_baseline
from penult.export.evaluation.outputs import SplitOutputs

BEFORE = 0.99


class Measures:
    """Novelty by several measures, each a function of descriptors [N, length] and logits [N, classes]."""

    def __init__(self, found: novelty_sets.Described) -> None:
        """Learn them on the training photos."""
        self.base = learn(found)
        units = unit(found.descriptors["train"])
        labels = found.labels["train"]
        self.means = np.stack([units[labels == label].mean(axis=0) for label in np.unique(labels)])
        within = units - self.means[np.searchsorted(np.unique(labels), labels)]
        values, vectors = np.linalg.eigh(ledoit_wolf(within, assume_centered=True)[0])
        self.root = vectors / np.sqrt(np.maximum(values, 1e-12))
        self.all = units.astype(np.float32)

    def by_name(self, descriptors: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Return them all, float [N] by name."""
        units = unit(descriptors)
        rooted, centres = units @ self.root, self.means @ self.root
        near = np.sort(units @ self.base.references.T, axis=1)
        exact = np.sort(units @ self.all.T, axis=1)
        return {
            "nearest of 256": nearest_distance(self.base.references, descriptors),
            "5 nearest of 256": 1 - near[:, -5:].mean(axis=1),
            "5 nearest of all": 1 - exact[:, -5:].mean(axis=1),
            "Mahalanobis": np.min([((rooted - centre) ** 2).sum(axis=1) for centre in centres], axis=0),
            "energy": -logsumexp(logits, axis=1),
            "largest logit": -logits.max(axis=1),
            "residual": self.base.novelty(descriptors),
        }


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows at unit length, float64."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float64), 1e-12)


def learn(found: novelty_sets.Described) -> drift_baseline.Baseline:
    """Return the baseline as a bundle has it."""
    measured = {
        p: SplitOutputs(found.logits[p], found.descriptors[p], found.labels[p]) for p in ("train", "val", "test")
    }
    classes = tuple(map(str, range(found.logits["val"].shape[1])))
    manifest = Manifest("any", classes, Preprocess(), found.descriptors["val"].shape[1], "dense", {"dense": 1.0},
                        files={"model.onnx": FileEntry(1, "0")})  # fmt: skip
    return drift_baseline.fit(manifest, measured, {"dense": found.logits["val"]}, seed=0)


def row(network: novelty_sets.Network, found: novelty_sets.Described, part: str) -> list[dict]:
    """Return figures of a network, one entry per set that is new to it."""
    measures = Measures(found)
    val, own = (measures.by_name(found.descriptors[p], found.logits[p]) for p in ("val", part))
    before = float(np.quantile(val["nearest of 256"], BEFORE, method="higher"))
    now = measures.base.limit
    rows = []
    for name in network.strange:
        other = measures.by_name(found.descriptors[f"{name} {part}"], found.logits[f"{name} {part}"])
        truth = np.repeat([0, 1], [len(own["energy"]), len(other["energy"])])
        rows.append({
            "network": network.name, "new": name, "photos": len(other["energy"]), "held out": now.photos,
            "auroc": {m: roc_auc_score(truth, np.concatenate([own[m], other[m]])) for m in own},
            "before": [float((each["nearest of 256"] > before).mean()) for each in (own, other)],
            "now": [float((each["residual"] > now.threshold).mean()) for each in (own, other)],
        })  # fmt: skip
    return rows


def show(rows: list[dict]) -> None:
    """Print the table as Markdown, and what stands below it."""
    names = list(rows[0]["auroc"])
    print(f"| network | new to it | {' | '.join(names)} | own: before | now | new: before | now |")
    print("| --- | --- |" + " --- |" * (len(names) + 4))
    for each in rows:
        auroc = " | ".join(f"{each['auroc'][name]:.3f}" for name in names)
        shares = " | ".join(
            f"{100 * share:.1f} %" for pair in zip(each["before"], each["now"], strict=True) for share in pair
        )
        print(f"| {each['network']} | {each['new']} ({each['photos']}) | {auroc} | {shares} |")
    far = [each for each in rows if each["new"] != "glass"]
    for what, chosen in (("all", rows), ("all but the class that was held out", far)):
        print(
            f"\nMean of {len(chosen)} rows ({what}):",
            {n: round(float(np.mean([e["auroc"][n] for e in chosen])), 3) for n in names},
        )
        print("lowest:", {n: round(float(min(e["auroc"][n] for e in chosen)), 3) for n in names})
        for rule in ("before", "now"):
            own, new = ([each[rule][place] for each in chosen] for place in (0, 1))
            shares = [np.mean(new), min(new), np.mean(own), max(own)]
            print(
                f"{rule}, above the threshold:",
                "{:.1%} of new photos, lowest {:.0%}; {:.1%} of own ones, highest {:.1%}".format(*shares),
            )


def cost(length: int = 1280, batch: int = 64, rounds: int = 400) -> None:
    """Print what a photo's novelty costs, in microseconds, alone and in a batch."""
    generator = np.random.default_rng(0)
    units = unit(generator.random((2000, length))).astype(np.float32)
    residual = drift_baseline.fit_residual(units, 0)
    references = units[: drift_baseline.REFERENCES]
    for size in (1, batch):
        asked = generator.random((size, length), dtype=np.float32)
        taken = {"residual": [], "nearest of 256": []}
        for _ in range(rounds):
            for name, act in (
                ("residual", residual.distance),
                ("nearest of 256", lambda rows: nearest_distance(references, rows)),
            ):
                started = time.perf_counter()
                act(asked)
                taken[name].append(1e6 * (time.perf_counter() - started) / size)
        print(
            f"{length} numbers, {size} at once:",
            ", ".join(f"{name} {median(each):.1f} us a photo" for name, each in taken.items()),
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=prepare.OUT / "novelty")
    parser.add_argument("--part", choices=("val", "test"), default="test")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    wanted = parser.parse_args()
    novelty_sets.photos(wanted.out)
    rows, seen = [], []
    for network in novelty_sets.networks():
        if wanted.only not in network.name:
            continue
        found = novelty_sets.describe(network, wanted.out)
        train = found.descriptors["train"]
        if any(train.shape == each.shape and np.allclose(train, each, atol=1e-3) for each in seen):
            print(
                f"{network.name}: fine-tuning did not beat the head alone and was undone, so it is the frozen network"
            )
            continue
        seen.append(train)
        rows += row(network, found, wanted.part)
    show(rows)
    cost()


if __name__ == "__main__":
    main()
