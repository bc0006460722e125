"""The models being served: read, checked and warmed before anyone can ask them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from penult.bundle import goldens
from penult.bundle.errors import BundleError
from penult.bundle.manifest import INT8, SVM, Manifest, is_model_name
from penult.bundle.preprocess import Pixels
from penult.bundle.reader import Bundle, read_bundle, versions
from penult.bundle.scores import Floats
from penult.service import cpu_plan, device_plan, gpu_options
from penult.service.cpu_plan import THROUGHPUT, CpuPlan, Speed
from penult.service.device_plan import DEVICE_TOLERANCE
from penult.service.device_session import DeviceSession, cuda_options, sizes
from penult.service.errors import InvalidRequest, NotFound, NotReady
from penult.service.gpu_options import GpuOptions
from penult.service.scorer import Score, load_scorer
from penult.service.session import CPU, ModelSession, Session

log = logging.getLogger("penult.repository")


@dataclass(frozen=True)
class ServedModel:
    """A bundle that passed every check, loaded on its device."""

    name: str
    version: int
    fingerprint: str
    manifest: Manifest
    session: ModelSession
    svm: Score | None
    golden_difference: float

    @property
    def scorers(self) -> tuple[str, ...]:
        """The scorers that can be asked for."""
        return tuple(s for s in self.manifest.scorers if s != SVM or self.svm)


def load(
    bundle: Bundle, device: str, cpu_mode: str = THROUGHPUT, cores: int = 1, gpu: GpuOptions = gpu_options.DEFAULT
) -> ServedModel:
    """Load a bundle on a device and replay its goldens there; raise BundleError, or ConfigError for the device.

    On CPUs, `cpu_mode` says how it shares the `cores`; on a GPU, `gpu` how it uses that. An int8 bundle goes to the CPU
    where the device is "auto", and is refused on "cuda".
    """
    manifest = bundle.manifest
    if manifest.precision == INT8:
        device = _for_integers(bundle, device)
    session = _fastest(bundle, device, cpu_mode, cores, gpu)
    svm = load_scorer(bundle.svm, manifest.descriptor_length, len(manifest.classes)) if bundle.svm is not None else None
    tolerance = goldens.TOLERANCE if session.provider == CPU else DEVICE_TOLERANCE
    difference = goldens.replay(bundle.goldens, manifest, _checked(session), svm, tolerance)
    return ServedModel(bundle.name, bundle.version, manifest.fingerprint, manifest, session, svm, difference)


def _fastest(bundle: Bundle, device: str, cpu_mode: str, cores: int, gpu: GpuOptions) -> ModelSession:
    """Return the session whose threads, or whose layout on a device, suit best."""
    crop = bundle.manifest.preprocess.crop
    image = np.zeros((1, crop, crop, 3), dtype=np.uint8)
    sessions: dict[CpuPlan, Session] = {}
    speeds: dict[CpuPlan, Speed] = {}
    for plan in cpu_plan.plans(cpu_mode, cores):
        session = Session(bundle.onnx, bundle.manifest, device, plan, gpu.memory_mb)
        run = partial(_checked(session), image)
        if session.provider != CPU:  # a device takes one run at a time, whatever the cores
            return device_plan.choose(bundle.name, session, _builder(bundle, gpu), bundle.goldens.crops, gpu)
        sessions[plan], speeds[plan] = session, cpu_plan.measure(run, plan)
    chosen = cpu_plan.choose(cpu_mode, speeds)
    for plan, speed in speeds.items():
        log.info(
            "%s: %d threads a run, %d runs at a time: %.0f images/s, %.1f ms a call%s", bundle.name, plan.threads,
            plan.callers, speed.images_per_s, 1000 * speed.run_s, " (chosen)" if plan == chosen else "",
        )  # fmt: skip
    return sessions[chosen]


def _builder(bundle: Bundle, gpu: GpuOptions) -> device_plan.Build:
    def build(layout: str) -> DeviceSession:
        options = cuda_options(layout == gpu_options.NHWC, gpu.memory_mb)
        return DeviceSession(bundle.onnx, bundle.manifest, gpu.most_images, options)

    return build


def _for_integers(bundle: Bundle, device: str) -> str:
    """Return the device for an int8 bundle: CUDA has no kernels for it, and would imitate the integers in float."""
    if device == "cuda":
        raise BundleError(
            "INT8_DEVICE",
            f"{bundle.name} version {bundle.version} is int8, which is for CPUs; use --device cpu, or on CUDA serve "
            "the float version that it was made from",
        )
    return "cpu"


def warm(model: ServedModel, most_images: int) -> None:
    """Run batches of 1, 2, 4, … and `most_images`: first runs are slow, and missing memory should show now."""
    crop = model.manifest.preprocess.crop
    for size in sizes(most_images):
        _checked(model.session)(np.zeros((size, crop, crop, 3), dtype=np.uint8))


def _checked(session: ModelSession) -> goldens.RunModel:
    """Return session.run, with whatever the runtime raises as a fault of the bundle."""

    def run(pixels: Pixels) -> tuple[Floats, Floats]:
        try:
            return session.run(pixels)
        except Exception as error:  # onnxruntime has a dozen of its own
            raise BundleError("MODEL_FAILED", f"the model cannot run a batch of {len(pixels)} images") from error

    return run


class Repository:
    """The folder of models, and what of it is loaded."""

    def __init__(
        self,
        root: Path,
        device: str,
        on_refused: Callable[[], None],
        cpu_mode: str = THROUGHPUT,
        cores: int = 1,
        gpu: GpuOptions = gpu_options.DEFAULT,
    ) -> None:
        """Load nothing yet; `cpu_mode` says how a model shares the `cores`, `gpu` how it uses a GPU."""
        self._root, self._device, self._on_refused = root, device, on_refused
        self._cpu_mode, self._cores, self._gpu = cpu_mode, cores, gpu
        self._models: dict[str, ServedModel] = {}

    def load_all(self, batch_limit: Callable[[ServedModel], int]) -> list[ServedModel]:
        """Load the newest good version of every model, without serving it; raise BundleError if there is none at all.

        `batch_limit` tells the most images per run of a model; up to that many are warmed.
        """
        if not self._root.is_dir():
            raise BundleError(
                "MODELS_MISSING", f"{self._root} is not a folder; name the model repository with --models"
            )
        folders = sorted(f for f in self._root.iterdir() if f.is_dir() and versions(f))
        if not folders:
            raise BundleError(
                "MODELS_EMPTY",
                f"{self._root} holds no model; run make demo, or penult train PHOTOS --out {self._root}/NAME",
            )
        models = [model for folder in folders if (model := self._newest_good(folder, batch_limit))]
        if not models:
            raise BundleError("MODELS_REFUSED", f"no model in {self._root} can be served; the lines above say why")
        return models

    def serve(self, model: ServedModel) -> None:
        """Let requests find a model, from now on."""
        self._models[model.name] = model

    def get(self, name: str, version: int) -> ServedModel:
        """Return a model; "" stands for the only one, 0 for the newest version. Raises NotFound, NotReady."""
        if name and not is_model_name(name):
            raise InvalidRequest("MODEL_NAME", "a model name is 1 to 64 letters, digits, '_' and '-'")
        if not self._models:
            raise NotReady("LOADING", "the models are still loading; try again soon", retry_after_ms=1000)
        served = ", ".join(self._models)
        if not name and len(self._models) > 1:
            raise NotFound("MODEL_UNNAMED", f"several models are served; name one of {served}")
        model = self._models.get(name) if name else next(iter(self._models.values()))
        if model is None:
            raise NotFound("MODEL_UNKNOWN", f"no such model is served; there is {served}")
        if version not in (0, model.version):
            raise NotFound("VERSION_UNKNOWN", f"of {model.name}, version {model.version} is served and no other")
        return model

    def all(self) -> list[ServedModel]:
        """Return every model, by name."""
        return list(self._models.values())

    def _newest_good(self, folder: Path, batch_limit: Callable[[ServedModel], int]) -> ServedModel | None:
        for version in reversed(versions(folder)):
            try:
                started = time.perf_counter()
                model = load(read_bundle(folder, version), self._device, self._cpu_mode, self._cores, self._gpu)
                warm(model, batch_limit(model))
            except BundleError as error:
                log.error("refused %s version %d: %s (%s)", folder.name, version, error.message, error.reason)
                self._on_refused()
            else:
                _announce(model, time.perf_counter() - started)
                return model
        return None


def _announce(model: ServedModel, seconds: float) -> None:
    log.info(
        "loaded %s version %d in %.1f s: %s on %s, %d classes, goldens within %.0e",
        model.name, model.version, seconds, model.manifest.architecture, model.session.provider,
        len(model.manifest.classes), model.golden_difference,
    )  # fmt: skip
    log.warning("%s version %d is not signed: nothing vouches for where it comes from", model.name, model.version)
