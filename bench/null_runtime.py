"""Serve without a model's cost: `python bench/null_runtime.py [--image-ms MS …] serve --models …`.

The session runs for real while the model loads, replays its goldens and warms up. From then on it returns the outputs
of a gray image. With `--run-ms` and `--image-ms` a run sleeps first, without the interpreter, as on a GPU. With
`--device-batches` the pipeline treats the session as a GPU's: batches of up to 32 images, on a thread of its own.
`--no-window` leaves out what the estimated accuracy is made of. These switches are for benchmarks only, so they are no
part of penult.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

# Before NumPy is imported, as `penult serve` does: threads of OpenBLAS that wait would take half of the CPU time.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.cli import main
from penult.service.models import loader
from penult.service.models.loader import ServedModel
from penult.service.observability.answer_window import AnswerWindow
from penult.service.process import server

_DEVICE, _MOST_IMAGES = "StandInExecutionProvider", 512


def null_session(session: loader.ModelSession, crop: int, run_s: float, image_s: float, is_device: bool) -> None:
    """Replace a session's runs by its outputs of one gray image, after the time that a device would take."""
    logits, descriptor = session.run(np.full((1, crop, crop, 3), 127, dtype=np.uint8))
    # Images are copied to where a device fetches them, as DeviceSession does.
    staging = np.zeros((_MOST_IMAGES if is_device else 0, crop, crop, 3), dtype=np.uint8)

    def run_images(images: Sequence[Pixels]) -> tuple[Floats, Floats]:
        if is_device:
            for row, image in enumerate(images):
                staging[row] = image
        if seconds := run_s + image_s * len(images):
            time.sleep(seconds)
        return logits.repeat(len(images), axis=0), descriptor.repeat(len(images), axis=0)

    session.run_images = run_images  # type: ignore[method-assign]
    if is_device:
        session.provider, session.callers = _DEVICE, 1  # type: ignore[misc]


def run() -> None:
    """Patch the last step of loading a model, then run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-ms", type=float, default=0.0, help="time of every run, in milliseconds")
    parser.add_argument("--image-ms", type=float, default=0.0, help="more time for each image, in milliseconds")
    parser.add_argument("--device-batches", action="store_true", help="batch as on a GPU")
    parser.add_argument("--no-window", action="store_true", help="note no answers for the estimated accuracy")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="serve and its options")
    wanted = parser.parse_args()
    run_s, image_s = wanted.run_ms / 1000, wanted.image_ms / 1000

    def warm(model: ServedModel, *limits: float) -> None:
        loader.warm(model, *limits)
        null_session(model.session, model.manifest.preprocess.crop, run_s, image_s, wanted.device_batches)

    server.warm = warm
    if wanted.no_window:
        AnswerWindow.add_answers = lambda window, answers: None  # type: ignore[method-assign]
        AnswerWindow.add_novelty = lambda window, are_novel: None  # type: ignore[method-assign]
    sys.exit(main(wanted.command))


if __name__ == "__main__":
    run()
