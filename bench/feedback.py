"""Estimated accuracy against the truth, drift that must be noticed, and 10,000 verdicts with kill -9 amid them.

    python bench/feedback.py estimate DESCRIPTORS.npz [--resplits 100] [--novelty 20] [--val 0.2] [--estimated 0.2]
    python bench/feedback.py drift OWN.npz OTHER.npz
    python bench/feedback.py kills MODELS PHOTO [--verdicts 10000] [--kills 10]
    python bench/feedback.py window MODELS [--rounds 40]

The files hold descriptors `d` [N, length] and labels `y` [N] of one network. Each resplit has 20 % of the photos for
validation (`--val`), 20 % whose accuracy is estimated (`--estimated`), and the others to learn from. `--novelty` says
in how many of them the baseline is fitted too, which is slow. MODELS serves the model `digits`. `window` compares the
CPU time of servers with and without the window that the estimate is made of, and of two with it, without a model's own
time.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from penult.bundle.manifest import FileEntry, Manifest
from penult.bundle.preprocess import Preprocess
from penult.bundle.scores import as_columns, best_of
from penult.client import Client, ItemFailure, RequestFailed
from penult.export.evaluation import drift_baseline
from penult.export.evaluation.metrics import fit_temperature
from penult.export.evaluation.outputs import SplitOutputs
from penult.service.observability.answer_window import AnswerWindow, Reference

C = 1.0


class Fitted:
    """An SVM on one resplit, its temperature, and what it was like on its validation photos."""

    def __init__(
        self, rows: np.ndarray, labels: np.ndarray, seed: int, has_novelty: bool, val: float = 0.2, test: float = 0.2
    ) -> None:
        """Learn it; `val` and `test` are shares of the photos."""
        every = np.arange(len(labels))
        rest, self.test = train_test_split(every, test_size=test, stratify=labels, random_state=seed)
        train, chosen = train_test_split(rest, test_size=val / (1 - test), stratify=labels[rest], random_state=seed)
        self.svm = LinearSVC(C=C, random_state=0, max_iter=5000).fit(normalize(rows[train]), labels[train])
        scores = self.scores(rows[chosen])
        self.temperature = fit_temperature(scores, labels[chosen])
        self.classes = tuple(map(str, range(scores.shape[1])))
        shares = np.bincount(scores.argmax(axis=1), minlength=len(self.classes)) / len(chosen)
        self.baseline = None
        self.reference = Reference(
            len(self.classes), len(chosen), dict(zip(self.classes, shares.tolist(), strict=True))
        )
        if has_novelty:
            manifest = Manifest("any", self.classes, Preprocess(), rows.shape[1], "dense", {"dense": self.temperature},
                                files={"model.onnx": FileEntry(1, "0")})  # fmt: skip
            measured = {
                name: SplitOutputs(rows[part][:, :1], rows[part], labels[part])
                for name, part in (("train", train), ("val", chosen))
            }
            self.baseline = drift_baseline.fit(manifest, measured, {"dense": scores}, seed=0)
            self.reference = Reference.of(self.classes, self.baseline)

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Return scores float32 [N, classes]."""
        return as_columns(self.svm.decision_function(normalize(rows)))

    def add(self, window: AnswerWindow, rows: np.ndarray) -> np.ndarray:
        """Add the answers to photos, and their novelty; return the answered classes [N]."""
        named, sure = best_of(self.scores(rows), self.temperature)
        window.add_answers([(self.classes[n], float(p)) for n, p in zip(named, sure, strict=True)])
        if self.baseline:
            window.add_novelty((self.baseline.novelty(rows) > self.baseline.threshold).tolist())
        return named


def estimate(path: Path, resplits: int, novelty: int, val: float, estimated: float) -> None:
    """Print how far estimates are from the truth, how often intervals cover it, and how often one is unreliable.

    The truth is measured on as many photos as the estimate, so chance alone keeps them apart: its standard deviation
    is that of a mean of coins as uneven as the accuracy.
    """
    found = np.load(path)
    rows, labels = found["d"], found["y"]
    off, chance, covered, unreliable = [], [], 0, 0
    for seed in range(resplits):
        fitted = Fitted(rows, labels, seed, seed < novelty, val, estimated)
        window = AnswerWindow(fitted.reference)
        truth = float((fitted.add(window, rows[fitted.test]) == labels[fitted.test]).mean())
        made = window.state("m", "1").estimate()
        off.append(100 * (made.accuracy - truth))
        chance.append(100 * np.sqrt(truth * (1 - truth) / len(fitted.test)))
        covered += made.low <= truth <= made.high
        unreliable += seed < novelty and bool(made.reasons)
    errors = np.array(off)
    print(
        f"{path.name}: off by {errors.mean():+.2f} points (sd {errors.std():.2f}, worst {np.abs(errors).max():.1f}, "
        f"chance alone {np.mean(chance):.2f}) on {len(fitted.test)} photos; "
        f"within 3 points in {(np.abs(errors) <= 3).sum()} of {resplits}; interval covers the truth in {covered}; "
        f"unreliable in {unreliable} of {min(novelty, resplits)} without drift"
    )


def drift(own: Path, other: Path) -> None:
    """Print after how many foreign photos, behind 1000 of the model's own, the estimate is unreliable."""
    found, foreign = np.load(own), np.load(other)["d"]
    fitted = Fitted(found["d"], found["y"], 0, has_novelty=True)
    for ahead in (0, 1000):
        window = AnswerWindow(fitted.reference)
        rows = found["d"][fitted.test]
        if ahead:
            fitted.add(window, np.concatenate([rows] * (1 + ahead // len(rows)))[:ahead])
        for count, row in enumerate(foreign, 1):
            fitted.add(window, row[None])
            made = window.state("m", "1").estimate()
            if made.answers >= 50 and made.reasons:
                print(f"{ahead} own photos, then foreign ones: unreliable after {count}: {made.reasons[0]}")
                break


def kills(models: Path, photo: Path, verdicts: int, times: int) -> None:
    """Send verdicts while the server is killed; print what the client counted and what the server counts at last."""
    random.seed(0)
    counted: Counter[str] = Counter()
    sent = killed = 0
    with tempfile.TemporaryDirectory() as folder:
        server, target, http = started(models, folder)
        with Client(target) as client:
            answer = client.classify([photo])
        while sent < verdicts:
            said = answer.truth(0)
            batch = [replace(said, request_id=f"{sent + n:016x}", label=random.choice("0123456789")) for n in range(10)]
            if killed < times and sent >= (killed + 1) * verdicts // (times + 1):
                server.kill()  # while the next batch is on its way, or before
                server.wait()
                killed += 1
                server, target, http = started(models, folder)
            with Client(target) as client:
                try:
                    results = client.feedback(batch)
                except RequestFailed:
                    continue  # not acknowledged: sent again
            assert not any(isinstance(each, ItemFailure) for each in results)
            counted.update(each.outcome for each in results)
            sent += len(batch)
        server.kill()
        server.wait()
        server, target, http = started(models, folder)
        text = httpx.get(f"{http}/metrics").text
        server.kill()
    lines = [line for line in text.splitlines() if line.startswith("penult_feedback_total")]
    print("client:", dict(counted), "after", killed + 1, "kills")
    print("server:", *lines, sep="\n  ")


def started(models: Path, folder: str) -> tuple[subprocess.Popen, str, str]:
    """Start a server; return it, its gRPC address and its HTTP address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "penult.cli", "serve", "--models", str(models), "--port", "0", "--metrics-port", "0",
         "--feedback", folder],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    words = dict(word.split("=", 1) for word in process.stdout.readline().split() if "=" in word)
    return process, words["grpc"], words["metrics"].removesuffix("/metrics")


def cost(rounds: int = 2000) -> None:
    """Print the microseconds that the window adds to an answer of one image."""
    window = AnswerWindow(Reference(6, 300))
    begun = time.process_time()
    for _ in range(rounds):
        window.add_answers([("a", 0.9)])
        window.add_novelty([False])
    print(json.dumps({"window_us_per_image": 1e6 * (time.process_time() - begun) / rounds}))


def window(models: Path, rounds: int) -> None:
    """Print the CPU time of a request with the window divided by that without it, and by that of an equal server."""
    from front import OUT, Bench, Case, spread, table_head, table_row

    OUT.mkdir(exist_ok=True)
    bench = Bench(models, rounds, 0.5)
    fronts = [bench.penult("with"), bench.penult("without", "--no-window"), bench.penult("with again")]
    try:
        table_head(("case", "server", "CPU-ms a request [quartiles]", "with ÷ it"))
        for case in (Case("1 crop"), Case("16 crops a request", images=16)):
            rows = bench.measure(fronts, case)
            for name, turns in rows.items():
                ratios = [own.cpu_ms / other.cpu_ms for own, other in zip(rows["with"], turns, strict=True)]
                table_row(case.name, name, spread([row.cpu_ms for row in turns], 3), spread(ratios, 3))
    finally:
        for front in fronts:
            front.processes.stop()


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("estimate", "drift", "kills", "cost", "window"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--resplits", type=int, default=100)
    parser.add_argument("--novelty", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--val", type=float, default=0.2)
    parser.add_argument("--estimated", type=float, default=0.2)
    parser.add_argument("--verdicts", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    match given.what:
        case "estimate":
            estimate(given.paths[0], given.resplits, given.novelty, given.val, given.estimated)
        case "drift":
            drift(*given.paths)
        case "kills":
            kills(*given.paths, given.verdicts, given.kills)
        case "window":
            window(given.paths[0], given.rounds)
        case "cost":
            cost()


if __name__ == "__main__":
    main()
