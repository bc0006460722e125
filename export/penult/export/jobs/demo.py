"""`make demo`: train, serve and query on scikit-learn's digits, which need no download.

A base network is trained on the digits 0 to 4. Its first conv stages are then frozen, and the others are fine-tuned on
5 to 9. The result is exported, checked and served. The client then requests classes, descriptors and the most similar
training photos.
"""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from penult import cli
from penult.bundle.errors import PenultError
from penult.export.config.train import TrainSettings
from penult.export.jobs.train import train

_SCRATCH = Path("demo-out")
_LOOKUP, _SHEET = _SCRATCH / "lookup", _SCRATCH / "neighbours.png"
_MODELS = Path("models")
_READY_TIMEOUT_S = 60
_SHOWN = 5
# Where `make serve` shows its page.
_PAGE = "http://127.0.0.1:9095/"


def main() -> int:
    """Run the demo; return 0, or 1 after an error line."""
    try:
        _demo()
    except PenultError as error:
        print(f"demo: {error.message}", file=sys.stderr)
        return 1
    return 0


def write_digits(folder: Path, digits: str) -> Path:
    """Write scikit-learn's digits as folder/{train,test}/DIGIT/*.png; the first half is for training."""
    data = load_digits()
    half = len(data.target) // 2
    for number, (image, digit) in enumerate(zip(data.images, data.target, strict=True)):
        if str(digit) in digits:
            target = folder / ("train" if number < half else "test") / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(target / f"{number:04d}.png")
    return folder


def _demo() -> None:
    _title("1/4  train a base network on the digits 0 to 4")
    weights = _SCRATCH / "base.pt"
    base = TrainSettings(
        data=write_digits(_SCRATCH / "digits-0-4", "01234"), out=_SCRATCH / "models" / "base", arch="tiny5",
        weights="none", freeze=0, augment="gentle", epochs=12, lr_head=3e-3, save_weights=weights,
    )  # fmt: skip
    train(base)

    _title("2/4  freeze its first 3 conv stages, fine-tune the others on 5 to 9, export, fit the SVM, publish")
    settings = replace(
        base, data=write_digits(_SCRATCH / "digits-5-9", "56789"), out=_MODELS / "digits", weights=str(weights),
        freeze=3, epochs=25, lr_backbone=1e-3, save_weights=None,
    )  # fmt: skip
    result = train(settings)

    _title("3/4  serve the bundle")
    shutil.rmtree(_LOOKUP, ignore_errors=True)  # an earlier demo has descriptors of another network
    photos = sorted(map(str, (settings.data / "test").glob("*/*.png")))
    photos = photos[:: len(photos) // _SHOWN][:_SHOWN]
    server = subprocess.Popen(
        [sys.executable, "-m", "penult.cli", "serve", "--models", str(_MODELS), "--port", "0", "--metrics-port", "0",
         "--drain-lead", "0", "--log-level", "error", "--lookup", str(_LOOKUP)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        target = _wait_until_ready(server)
        _title("4/4  send requests")
        ask = ["--target", target, "--model", "digits", *photos]
        for verb in (["classify", "--scorer", "dense"], ["classify", "--scorer", "svm"], ["describe"]):
            _run([*verb, *ask], f"{' '.join(verb)} --model digits {Path(photos[0]).name} …")
        known = str(settings.data / "train")
        add = ["index", "add", "digits", known, "--keep", "source"]
        _run([*add, "--target", target], " ".join(add))
        sheet = ["--collection", "digits", "-k", "3", "--sheet", str(_SHEET)]
        _run(["lookup", *photos, *sheet, "--target", target], f"lookup {' '.join(sheet)} {Path(photos[0]).name} …")
    finally:
        server.terminate()
        code = server.wait(_READY_TIMEOUT_S)
    if code:
        raise PenultError("DEMO", f"the service did not stop cleanly (exit code {code})")
    _print_next_steps(result.folder, {name: m["accuracy"] for name, m in result.metrics["test"].items()}, photos[0])


def _run(words: list[str], shown: str) -> None:
    print(f"\n$ penult {shown}")
    if cli.main(words):
        raise PenultError("DEMO", "a request failed; the lines above show why")


def _wait_until_ready(server: "subprocess.Popen[str]") -> str:
    """Return HOST:PORT from the server's `ready` line."""
    assert server.stdout is not None  # stdout=PIPE above
    for line in server.stdout:
        print(line.rstrip())
        if line.startswith("ready "):
            return dict(word.split("=", 1) for word in line.split()[1:])["grpc"]
    raise PenultError("DEMO", "the service did not become ready; the lines above show why")


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _print_next_steps(folder: Path, accuracy: dict[str, float], photo: str) -> None:
    """Print five commands that can be copied; the last one needs a folder for PHOTOS."""
    scores = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
    print(f"""
Done: {folder} (test accuracy: {scores}); the neighbours are in {_SHEET}. Next steps:
  serve it         make serve
  open its page    {_PAGE}  while it serves, and drop a photo on it
  classify         .venv/bin/penult classify --model {folder.parent.name} {photo}
  read its report  {(folder / "report" / "index.html").resolve().as_uri()}
  use your photos  .venv/bin/penult train PHOTOS --arch resnet18    (PHOTOS holds one folder per class)""")


if __name__ == "__main__":
    sys.exit(main())
