"""Load a bundle on its device, replay its goldens there and warm up its batch sizes."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from penult.bundle import goldens
from penult.bundle.baseline import Baseline
from penult.bundle.errors import BundleError
from penult.bundle.manifest import INT8, SVM, Manifest
from penult.bundle.preprocess import Pixels
from penult.bundle.reader import Bundle
from penult.bundle.scores import Floats
from penult.service.models import class_maps
from penult.service.models.class_maps import ClassMapper
from penult.service.models.svm.scorer import Score, load_novelty, load_scorer
from penult.service.runtime import cpu_threads, cuda_layout, cuda_options
from penult.service.runtime.cpu_threads import THROUGHPUT, CpuPlan
from penult.service.runtime.cuda_layout import DEVICE_TOLERANCE
from penult.service.runtime.cuda_options import GpuOptions
from penult.service.runtime.cuda_session import DeviceSession, provider_options, sizes
from penult.service.runtime.session import CPU, ModelSession, Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A bundle that passed every check, loaded on its device. `plan` is its share of the CPU cores, None on a GPU.

    `signer` is the id of the trusted key that signed it, "" without one. Equality is identity, because a version may
    be replaced by another one of the same number.
    """

    name: str
    version: int
    fingerprint: str
    manifest: Manifest
    session: ModelSession
    svm: Score | None
    golden_difference: float
    plan: CpuPlan | None = None
    baseline: Baseline | None = None
    signer: str = ""
    # The novelty float32 [N] of descriptors float32 [N, length]; None without a baseline.
    novelty: Score | None = None
    # What class maps are computed with; None without exact ones.
    mapper: ClassMapper | None = None
    # The scorers that requests may choose.
    scorers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Compute the scorers once, for every request needs them."""
        object.__setattr__(self, "scorers", tuple(s for s in self.manifest.scorers if s != SVM or self.svm))

    @property
    def is_on_cpu(self) -> bool:
        """Whether the model runs on CPUs, not on a device."""
        return self.session.provider == CPU


@dataclass(frozen=True)
class Placement:
    """The device of models, `cpu_mode` and `cores` on CPUs, `gpu` options on a GPU.

    `allow_skew`: accept SVMs that another scikit-learn fitted, with a warning.
    """

    device: str
    cpu_mode: str = THROUGHPUT
    cores: int = 1
    gpu: GpuOptions = cuda_options.DEFAULT
    allow_skew: bool = False


def load(bundle: Bundle, where: Placement, before: ServedModel | None = None) -> ServedModel:
    """Load a bundle and replay its goldens on the device; raise BundleError, or ConfigError for the device.

    `before` is the version that the new one replaces. If the architecture is the same, its plan is kept: a measurement
    while requests run would be inexact and would slow them. An int8 bundle runs on the CPU if the device is "auto",
    and is rejected on "cuda".
    """
    manifest = bundle.manifest
    if manifest.precision == INT8:
        where = _for_integers(bundle, where)
    session, plan = _fastest(bundle, where, _known_plan(manifest, before))
    with _ended_on_error(session):
        svm = None
        if bundle.svm is not None and not manifest.has_one_class:
            svm = load_scorer(bundle.svm, manifest.descriptor_length, len(manifest.classes), where.allow_skew)
        novelty = _novelty(bundle, where)
        tolerance = goldens.TOLERANCE if session.provider == CPU else DEVICE_TOLERANCE
        difference = goldens.replay(
            bundle.goldens, manifest, _checked(session), svm, tolerance, novelty if manifest.has_one_class else None
        )
        mapper = class_maps.load(
            bundle, session.run_features, svm, where.allow_skew, None if session.provider == CPU else tolerance
        )
    return ServedModel(
        bundle.name, bundle.version, manifest.fingerprint, manifest, session, svm, difference, plan, bundle.baseline,
        bundle.signer, novelty, mapper,
    )  # fmt: skip


def load_shadow(bundle: Bundle, where: Placement) -> ServedModel:
    """Load a version that is only compared, for one image at a time; raise as load()."""
    if bundle.manifest.has_one_class:
        raise BundleError(
            "SHADOW_ONE_CLASS", f"{bundle.name} has one class, so its answers cannot differ; leave --shadow out"
        )
    model = load(bundle, where)
    warm(model, 1)
    return model


def _novelty(bundle: Bundle, where: Placement) -> Score | None:
    """Return the measure of novelty, None for old bundles; raise BundleError."""
    if bundle.manifest.has_one_class and bundle.svm is not None:
        return load_novelty(bundle.svm, bundle.manifest.descriptor_length, where.allow_skew)
    return bundle.baseline.novelty if bundle.baseline else None


@contextmanager
def _ended_on_error(session: ModelSession) -> Iterator[None]:
    """End the session's own thread if its model is rejected."""
    try:
        yield
    except BaseException:
        if session.driver:
            session.driver.shutdown()
        raise


def _known_plan(manifest: Manifest, before: ServedModel | None) -> CpuPlan | None:
    if before and (before.manifest.architecture, before.manifest.precision) == (
        manifest.architecture,
        manifest.precision,
    ):
        return before.plan
    return None


def _fastest(bundle: Bundle, where: Placement, known: CpuPlan | None) -> tuple[ModelSession, CpuPlan | None]:
    """Return the session with the fastest threads (CPU) or layout (GPU), and its plan on CPUs."""
    crop = bundle.manifest.preprocess.crop
    image = np.zeros((1, crop, crop, 3), dtype=np.uint8)
    sessions: dict[CpuPlan, Session] = {}
    for plan in [known] if known else cpu_threads.plans(where.cpu_mode, where.cores):
        session = sessions[plan] = Session(bundle.onnx, bundle.manifest, where.device, plan, where.gpu.memory_mb)
        if session.provider != CPU:  # a device takes one run at a time, whatever the cores
            build = _builder(bundle, where.gpu)
            return cuda_layout.choose(bundle.name, session, build, bundle.goldens.crops, where.gpu), None
    if len(sessions) == 1:
        return next((session, plan) for plan, session in sessions.items())
    runs = {plan: partial(_checked(session), image) for plan, session in sessions.items()}
    speeds_s = cpu_threads.fastest_runs_s(runs)
    chosen = cpu_threads.choose(speeds_s)
    for plan, seconds in speeds_s.items():
        log.debug(
            "%s: %d threads a run, %d runs at a time: %.1f ms a call%s", bundle.name, plan.threads, plan.callers,
            1000 * seconds, " (chosen)" if plan == chosen else "",
        )  # fmt: skip
    return sessions[chosen], chosen


def _builder(bundle: Bundle, gpu: GpuOptions) -> cuda_layout.Build:
    def build(layout: str) -> DeviceSession:
        options = provider_options(layout == cuda_options.NHWC, gpu.memory_mb)
        return DeviceSession(bundle.onnx, bundle.manifest, gpu.most_images, options)

    return build


def _for_integers(bundle: Bundle, where: Placement) -> Placement:
    """Return the placement of an int8 bundle: CUDA has no int8 kernels, and would emulate them in float."""
    if where.device == "cuda":
        raise BundleError(
            "INT8_DEVICE",
            f"{bundle.name} version {bundle.version} is int8, which runs on CPUs only; use --device cpu, or serve the "
            "float version that it was made from",
        )
    return replace(where, device="cpu")


def warm(model: ServedModel, most_images: int, most_s: float = math.inf) -> None:
    """Run batches of 1, 2, 4, … and `most_images`: first runs are slow, and missing memory must show now.

    Batches that would take longer than `most_s` are left out.
    """
    crop = model.manifest.preprocess.crop
    with _ended_on_error(model.session):
        per_image_s = 0.0
        for size in sizes(most_images):
            if size > 1 and size * per_image_s > most_s:
                break
            images = np.zeros((size, crop, crop, 3), dtype=np.uint8)
            _checked(model.session)(images)
            started = time.perf_counter()
            if size == 1 and not math.isinf(most_s):
                _checked(model.session)(images)
                per_image_s = time.perf_counter() - started


def _checked(session: ModelSession) -> goldens.RunModel:
    """Return session.run, which raises BundleError for any error of the runtime."""

    def run(pixels: Pixels) -> tuple[Floats, Floats]:
        try:
            return session.run(pixels)
        except Exception as error:  # onnxruntime has a dozen of its own
            raise BundleError("MODEL_FAILED", f"the model cannot run a batch of {len(pixels)} images") from error

    return run
