"""Choose the memory layout of a model on a GPU by measurement.

The faster layout for cuDNN depends on network, precision and chip. Both are built and timed at start. A fast session
must reproduce the plain session's outputs on the bundle's goldens before it serves. If it fails or differs, the plain
session serves on the same device, and a warning is logged.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penult.bundle.preprocess import Pixels
from penult.bundle.scores import largest_difference
from penult.service.runtime.cuda_options import AUTO, NCHW, NHWC, PLAIN, GpuOptions
from penult.service.runtime.cuda_session import DeviceSession, sizes
from penult.service.runtime.session import ModelSession, first_line

log = logging.getLogger(__name__)

# GPUs compute differently (TF32, fused kernels): wider than between CPUs, with labels still identical.
DEVICE_TOLERANCE = 1e-2
_MEASURE_S = 0.2
_MIN_RUNS = 3


@dataclass(frozen=True)
class Speed:
    """Images per second in full batches, and seconds of a run of one image."""

    images_per_s: float
    run_s: float


# Builds an unwarmed session of a layout, NCHW or NHWC.
Build = Callable[[str], DeviceSession]


def choose(name: str, plain: ModelSession, build: Build, crops: Pixels, options: GpuOptions) -> ModelSession:
    """Return the fastest session that gives the answers of `plain` on `crops`, uint8 [N, crop, crop, 3]; else `plain`.

    A fast session that fails is logged as a warning under the model's `name`, and never raises.
    """
    wanted = {AUTO: (NCHW, NHWC), PLAIN: ()}.get(options.mode, (options.mode,))
    built: dict[str, tuple[DeviceSession, Speed]] = {}
    for layout in wanted:
        try:
            session = _built(plain, build, layout, crops, options.most_images)
            built[layout] = session, measure(session, options.most_images, crops)
        except Exception as error:  # whatever onnxruntime, the driver or the comparison raises
            log.warning("%s: %s cannot be used: %s", name, layout, first_line(error))
    if not built:
        if wanted:
            log.warning(
                "%s RUNS SLOWLY: its fast session on the device failed (see above), so the plain session serves; "
                "report this, or start with --gpu-mode plain to accept it", name,
            )  # fmt: skip
        return plain
    chosen = max(built, key=lambda layout: built[layout][1].images_per_s)
    for layout, (session, speed) in built.items():
        _say(name, layout, speed, options.most_images, layout == chosen)
        if layout != chosen:
            session.close()
    return built[chosen][0]


def check(session: ModelSession, plain: ModelSession, crops: Pixels, most_images: int) -> float:
    """Compare a session with the plain one, every bucket full and one short of full; return the largest difference.

    The photos are shifted from batch to batch, so that a bucket that repeats its first batch is detected.
    Raises ValueError if outputs differ by more than DEVICE_TOLERANCE of the largest.
    """
    expected = plain.run(crops)
    worst = 0.0
    for shift, size in enumerate(size for full in sizes(most_images) for size in {full, max(1, full - 1)}):
        rows = (np.arange(size) + shift) % len(crops)
        for actual, right in zip(session.run_images(list(crops[rows])), expected, strict=True):
            worst = max(worst, largest_difference(actual, right[rows]))
    if worst > DEVICE_TOLERANCE:
        raise ValueError(f"outputs off by {worst:.1e} of the largest; at most {DEVICE_TOLERANCE:.0e} is allowed")
    return worst


def measure(session: ModelSession, most_images: int, crops: Pixels) -> Speed:
    """Time full batches and single images, from host memory to host memory, for a fraction of a second."""
    full = [crops[n % len(crops)] for n in range(most_images)]
    return Speed(most_images / _mean_s(session, full), _mean_s(session, full[:1]))


def _built(plain: ModelSession, build: Build, layout: str, crops: Pixels, most_images: int) -> DeviceSession:
    session = build(layout)
    try:
        session.warm()
        check(session, plain, crops, most_images)
    except BaseException:
        session.close()
        raise
    return session


def _mean_s(session: ModelSession, images: list[Pixels]) -> float:
    session.run_images(images)
    started = time.perf_counter()
    runs = 0
    while runs < _MIN_RUNS or time.perf_counter() - started < _MEASURE_S:
        session.run_images(images)
        runs += 1
    return (time.perf_counter() - started) / runs


def _say(name: str, layout: str, speed: Speed, most_images: int, is_chosen: bool) -> None:
    log.log(
        logging.INFO if is_chosen else logging.DEBUG, "%s: %s: %.0f images/s in batches of %d, %.2f ms a call of one%s",
        name, layout, speed.images_per_s, most_images, 1000 * speed.run_s, " (chosen)" if is_chosen else "",
    )  # fmt: skip
