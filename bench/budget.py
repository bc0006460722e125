"""`penult train --budget`, hand-written recipes, fastai and AutoGluon-MultiModal, with the same weights and minutes.

    python bench/budget.py --data FOLDER [--sets trashnet,hymenoptera] [--weights FOLDER] [--budget 20m] [--seeds 0,1,2]
        [--fastai PYTHON] [--autogluon PYTHON] [--recipes] [--out FOLDER]

FOLDER holds the sets, as unpacked. PYTHON is the interpreter of an environment with fastai, or autogluon.multimodal;
without it that peer is left out. --recipes also runs the best hand-written command of each set. Runs are one after
the other, since they share the cores. Each result is added to OUT/results.jsonl, and a run that is there is not
repeated. At the end one table shows accuracy on test photos, seconds, and seconds above the budget in per cent.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penult.export.config.budget import seconds_of

_PEERS = Path(__file__).parent / "peers"
# What peers are given: the network that was best in hand-written recipes.
_PEER_ARCH, _PEER_WEIGHTS = "mobilenet_v2", "mobilenet_v2.pth"
_RECIPES = {
    "trashnet": (
        "--arch mobilenet_v2 --freeze 2 --schedule onecycle --epochs 12 --lr-head 2e-3 --lr-backbone 7e-4 "
        "--lr-stage-decay 0.7 --augment topdown --fit stretch --views 4 --crop 256 --train-crop 176"
    ),
    "hymenoptera": "--arch mobilenet_v2 --freeze all --views 2",
}
# Sets without test photos: these are for the test, and validation photos come from train/.
_TESTED_ON = {"hymenoptera": "val"}


def main() -> int:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="trashnet,hymenoptera")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--fastai", type=Path)
    parser.add_argument("--autogluon", type=Path)
    parser.add_argument("--recipes", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench-budget"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ways = ["penult", *(["recipe"] if options.recipes else [])]
    ways += [name for name in ("fastai", "autogluon") if getattr(options, name)]
    found = _known(options.out)
    for name in options.sets.split(","):
        for seed in map(int, options.seeds.split(",")):
            for way in ways:
                if (name, way, seed, options.budget) not in found:
                    found[name, way, seed, options.budget] = _run(options, name, way, seed)
    _print(options, ways, found)
    return 0


def _known(out: Path) -> dict[tuple[str, str, int, str], dict[str, Any]]:
    path = out / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["set"], row["way"], row["seed"], row["budget"]): row for row in rows}


def _run(options: argparse.Namespace, name: str, way: str, seed: int) -> dict[str, Any]:
    print(f"{name}, {way}, seed {seed}", file=sys.stderr, flush=True)
    began = time.monotonic()
    if way in ("penult", "recipe"):
        result = _penult(options, name, way, seed)
    else:
        words = [getattr(options, way), _PEERS / f"{way}_budget.py", _split(options, name, seed),
                 options.weights / _PEER_WEIGHTS, _PEER_ARCH, seconds_of(options.budget), seed]  # fmt: skip
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        result = json.loads(lines[-1]) if lines else {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1]}
    row = {"set": name, "way": way, "seed": seed, "budget": options.budget, "wall_s": time.monotonic() - began}
    row |= {"load": os.getloadavg()[1]} | result
    with (options.out / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _penult(options: argparse.Namespace, name: str, way: str, seed: int) -> dict[str, Any]:
    out = options.out / f"{name}-{way}-{seed}" / name
    shutil.rmtree(out.parent, ignore_errors=True)
    words = [sys.executable, "-m", "penult.cli", "train", options.data / name, "--out", out, "--seed", seed, "--json"]
    if name in _TESTED_ON:
        words += ["--test", options.data / name / _TESTED_ON[name]]
    if way == "penult":
        words += ["--budget", options.budget, "--weights", options.weights]
    else:
        words += ["--weights", options.weights / _PEER_WEIGHTS, *_RECIPES[name].split()]
    log = options.out / f"{name}-{way}-{seed}.log"
    with log.open("w") as errors:
        done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=errors, check=False)
    if done.returncode:
        return {"error": (log.read_text().strip().splitlines() or ["no answer"])[-1]}
    answer = json.loads(done.stdout)
    scorer = answer["default_scorer"]
    result = {"accuracy": answer["test"][scorer]["accuracy"], "scorer": scorer}
    if plan := answer.get("budget"):
        final = plan["final"]["settings"]
        result |= {"kind": plan["final"]["kind"], "arch": final["arch"], "decisions": plan["decisions"]}
        result["epochs"] = sum(each["epochs"] for each in plan["tried"] if each["stage"] == "final training")
    return result


def _split(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Return a folder with train/, val/ and test/, as links; every seventh training photo validates if val/ tests."""
    if name not in _TESTED_ON:
        return Path(options.data) / name
    folder = options.out / f"{name}-split-{seed}"
    if folder.exists():
        return Path(folder)
    for part, into in (("train", "train"), (_TESTED_ON[name], "test")):
        for path in sorted((options.data / name / part).rglob("*")):
            if path.is_file():
                number = sum(path.name.encode()) + seed
                target = (
                    folder / ("val" if into == "train" and number % 7 == 0 else into) / path.parent.name / path.name
                )
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.resolve())
    return Path(folder)


def _print(options: argparse.Namespace, ways: Sequence[str], found: dict[tuple[str, str, int, str], Any]) -> None:
    limit = seconds_of(options.budget) or 0
    print("| set | with | accuracy on test photos | seeds | seconds | over the time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.sets.split(","):
        for way in ways:
            rows = [row for key, row in sorted(found.items()) if key[:2] == (name, way) and key[3] == options.budget]
            good = [row for row in rows if "accuracy" in row]
            if not good:
                print(f"| {name} | {way} | {rows[0]['error'] if rows else ''} | | | |")
                continue
            each = ", ".join(f"{100 * row['accuracy']:.1f}" for row in good)
            mean = 100 * statistics.fmean(row["accuracy"] for row in good)
            took = [row["wall_s"] for row in good]
            over = f"{100 * (max(took) / limit - 1):+.1f} %" if limit and way != "recipe" else ""
            seconds = ", ".join(f"{value:.0f}" for value in took)
            print(f"| {name} | {way} | **{mean:.1f}** ({each}) | {len(good)} | {seconds} | {over} |")


if __name__ == "__main__":
    sys.exit(main())
