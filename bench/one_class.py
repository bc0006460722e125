"""Novelty with one class: both measures of penult, and anomalib's PatchCore on the same network beside them.

    python bench/one_class.py [--part val|test] [--out bench-out/one-class] [--patchcore PYTHON]

`--part val` prints the cases that the measures and their constants were chosen on: other classes, and training and
validation photos only. `--part test` prints the cases to report: TrashNet's glass and the digit 0, against other waste,
ants and bees, and other digits. PYTHON belongs to an environment with anomalib (not one of penult).
"""

import argparse
import io
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import prepare
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import OneClassSVM

from penult.bundle.preprocess import crop_encoded
from penult.bundle.scores import Floats
from penult.export.evaluation import one_class
from penult.export.evaluation.drift_baseline import fit_residual
from penult.export.evaluation.outputs import SplitOutputs, unit_rows
from penult.export.onnx.runtime import ExportedModel

NETWORKS = ("squeezenet1_1", "mobilenet_v2")
WASTE = ("cardboard", "glass", "metal", "paper", "plastic", "trash")
RATE, SEED = 0.025, 0
_BATCH, _SIDE = 32, 256


@dataclass(frozen=True)
class Case:
    """One class against other photos: names of the sets of described()."""

    name: str
    train: str
    val: str
    own: str
    others: tuple[str, ...]


def cases(part: str) -> Iterator[Case]:
    """Yield what is measured."""
    if part == "test":
        others = tuple(f"trashnet/test/{name}" for name in WASTE if name != "glass")
        glass = "trashnet/train/glass", "trashnet/val/glass", "trashnet/test/glass"
        yield Case("glass, other waste", *glass, others)
        yield Case("glass, ants and bees", *glass, ("hymenoptera/val/ants", "hymenoptera/val/bees"))
        zero = "digits/train/0", "digits/val/0", "digits/test/0"
        yield Case("digit 0, digits 1 to 9", *zero, tuple(f"digits/test/{digit}" for digit in range(1, 10)))
        return
    for name in ("cardboard", "metal", "paper", "plastic"):
        own = f"trashnet/train/{name}", f"trashnet/val/{name}", f"trashnet/val/{name}"
        yield Case(f"{name}, other waste", *own, tuple(f"trashnet/val/{other}" for other in WASTE if other != name))
        yield Case(f"{name}, ants and bees", *own, ("hymenoptera/train/ants", "hymenoptera/train/bees"))
    for digit in range(1, 10):
        own = f"digits/train/{digit}", f"digits/val/{digit}", f"digits/val/{digit}"
        yield Case(f"digit {digit}, others", *own, tuple(f"digits/val/{d}" for d in range(10) if d != digit))


def photos(out: Path) -> dict[str, list[bytes]]:
    """Return the files of each set."""
    found: dict[str, list[bytes]] = {}
    for name in ("hymenoptera", "trashnet"):
        if not (out / name).is_dir():
            with zipfile.ZipFile(prepare.SHARED / f"{name}.zip") as archive:
                archive.extractall(out)
        for folder in sorted((out / name).glob("*/*")):
            found[str(folder.relative_to(out))] = [path.read_bytes() for path in sorted(folder.iterdir())]
    digits, random = load_digits(), np.random.default_rng(SEED)
    for digit in range(10):
        rows = random.permutation(np.flatnonzero(digits.target == digit))
        ends = [0, *(round(share * len(rows)) for share in (0.7, 0.85, 1))]
        for part, start, end in zip(("train", "val", "test"), ends, ends[1:], strict=False):
            found[f"digits/{part}/{digit}"] = [_enlarged(digits.images[row]) for row in rows[start:end]]
    return found


def _enlarged(digit: np.ndarray) -> bytes:
    pixels = (255 - np.clip(16 * digit, 0, 255)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def described(arch: str, files: dict[str, list[bytes]], out: Path) -> dict[str, Floats]:
    """Return the descriptors of each set by a frozen network, from the disk if they are there."""
    stored = out / f"{arch}.npz"
    if not stored.exists():
        from penult.bundle.manifest import Manifest
        from penult.export.config.known_networks import preprocess
        from penult.export.config.train import TrainSettings
        from penult.export.jobs.train import untrained
        from penult.export.onnx.convert import to_onnx

        settings = TrainSettings(out, out, arch=arch, weights=str(prepare.SHARED / f"{arch}.pth"))
        net, spec = untrained(settings), preprocess(settings)
        manifest = Manifest(arch, ("a",), spec, net.descriptor_length, "novelty", {})
        model = ExportedModel(to_onnx(net, manifest), manifest)
        np.savez(stored, **{name: _run(model, data, spec) for name, data in files.items()})
    with np.load(stored) as found:
        return dict(found)


def _run(model: ExportedModel, files: list[bytes], spec: object) -> Floats:
    parts = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
    return np.concatenate([model.run(np.stack([crop_encoded(data, spec) for data in part]))[1] for part in parts])


def measure(case: Case, sets: dict[str, Floats]) -> dict[str, dict[str, object]]:
    """Return AUROC, false alarms and outliers found, by measure; the residual and a wide kernel for comparison."""
    train, val, own = (SplitOutputs(np.empty((0, 0)), sets[n], np.zeros(len(sets[n]), int))
                       for n in (case.train, case.val, case.own))  # fmt: skip
    others = np.concatenate([sets[name] for name in case.others])
    fitted = one_class.fit(train, val, RATE, SEED)
    found = one_class.figures(fitted, one_class.NEAREST, RATE, {"train": train, "val": val, "test": own}, others)
    rows: dict[str, dict[str, object]] = dict(found["novelty"]["measures"])
    unit = unit_rows(train.descriptors)
    residual = fit_residual(unit.astype(np.float32), SEED)
    wide = OneClassSVM(gamma="scale", nu=0.1).fit(unit)
    near = {name: _mean_nearest(unit, count) for name, count in (("nearest 1", 1), ("nearest 9", 9))}
    more = near | {"residual": residual.distance, "svm scale": lambda rows: -wide.score_samples(unit_rows(rows))}
    for name, distance in more.items():
        value = one_class.auroc(distance(own.descriptors), distance(others))
        rows[name] = {"auroc": value, "auroc_95": one_class.auroc_interval(value, len(own.labels), len(others))}
    return rows


def _mean_nearest(unit: np.ndarray, count: int):
    return lambda rows: 1 - np.sort(unit_rows(rows) @ unit.T, axis=1)[:, -count:].mean(axis=1)


def patchcore(
    python: Path, arch: str, measured: list[Case], files: dict[str, list[bytes]], out: Path
) -> dict[str, dict[str, object]]:
    """Return the AUROC of anomalib's PatchCore by case, on the same crops; it is fitted once per training set."""
    from penult.export.config.known_networks import get

    spec, crops, scores = get(arch).preprocess, out / "crops.npz", out / "scores.npz"
    first = measured[0]
    if others := [case for case in measured if case.train != first.train]:
        own = [case for case in measured if case.train == first.train]
        return patchcore(python, arch, own, files, out) | patchcore(python, arch, others, files, out)
    parts = {"train": files[first.train], "own": files[first.own]}
    parts |= {case.name: [data for name in case.others for data in files[name]] for case in measured}
    np.savez(crops, **{part: np.stack([crop_encoded(data, spec) for data in found]) for part, found in parts.items()})
    script = Path(__file__).parent / "peers" / "patchcore.py"
    subprocess.run([python, script, arch, prepare.SHARED / f"{arch}.pth", crops, scores], check=True)
    with np.load(scores) as found:
        own = found["own"]
        values = {case.name: one_class.auroc(own, found[case.name]) for case in measured}
        return {
            name: {"auroc": value, "auroc_95": one_class.auroc_interval(value, len(own), len(found[name]))}
            for name, value in values.items()
        }


def main() -> None:
    """Print a line per network, case and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("val", "test"), default="test")
    parser.add_argument("--out", type=Path, default=prepare.OUT / "one-class")
    parser.add_argument("--patchcore", type=Path, metavar="PYTHON")
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    files = photos(wanted.out)
    means: dict[str, list[float]] = {}
    for arch in NETWORKS:
        sets = described(arch, files, wanted.out)
        measured = list(cases(wanted.part))
        peer = patchcore(wanted.patchcore, arch, measured, files, wanted.out) if wanted.patchcore else {}
        for case in measured:
            rows = measure(case, sets)
            if case.name in peer:
                rows["PatchCore"] = peer[case.name]
            for name, found in rows.items():
                means.setdefault(name, []).append(found["auroc"])
                low, high = found["auroc_95"]
                alarms = found.get("test", {})
                more = f"  false alarms {alarms['false_alarms']} of {alarms['photos']}" if alarms else ""
                more += f"  found {found['outliers_found']}" if alarms else ""
                print(f"{arch}  {case.name}  {name:10}  {found['auroc']:.3f} ({low:.3f}-{high:.3f}){more}", flush=True)
    for name, values in means.items():
        print(f"mean  {name:10}  {np.mean(values):.4f}  lowest {min(values):.3f}")


if __name__ == "__main__":
    main()
