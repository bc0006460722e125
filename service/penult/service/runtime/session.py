"""Run a model with onnxruntime: any batch size, one call. cuda_session.py is the fast session for GPUs.

These two are the only modules of the service that know onnxruntime.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from penult.bundle.errors import BundleError
from penult.bundle.manifest import Manifest
from penult.bundle.map_support import FEATURES
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.service.errors import ConfigError
from penult.service.runtime.cpu_threads import SINGLE, CpuPlan

log = logging.getLogger(__name__)

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_LOG_FATAL = 4

# Held by every run on CUDA, whatever the model. While one thread captures a graph (cuda_session.py), an allocation or
# a synchronising copy of any other fails, and spoils the capture: see cudaStreamCaptureModeGlobal.
ON_CUDA = threading.Lock()


class ModelSession(Protocol):
    """A loaded model."""

    @property
    def provider(self) -> str:
        """The onnxruntime provider that runs it."""
        ...

    @property
    def callers(self) -> int:
        """Number of runs that may overlap."""
        ...

    @property
    def driver(self) -> ThreadPoolExecutor | None:
        """The only thread that may run the model, or None if any thread may."""
        ...

    def run(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Map uint8 [N, crop, crop, 3] to (logits float32 [N, logits_length], descriptor float32 [N, length])."""
        ...

    def run_images(self, images: Sequence[Pixels]) -> tuple[Floats, Floats]:
        """Run uint8 [crop, crop, 3] images as one batch."""
        ...

    def run_features(self, images: Sequence[Pixels]) -> tuple[Floats, Floats, Floats]:
        """Run as run_images() does; return the feature map too, float32 [views x N, channels, height, width]."""
        ...


class Session:
    """A loaded model. Thread-safe: several threads may call run() at once."""

    driver: ThreadPoolExecutor | None = None

    def __init__(
        self, onnx: bytes, manifest: Manifest, device: str, plan: CpuPlan = SINGLE, memory_mb: int = 0
    ) -> None:
        """Load on "cuda", "cpu", or "auto" (CUDA if it works); on CPUs with the threads of `plan`.

        `memory_mb` limits what the model takes of a device's memory, in MiB (0: no limit). Raises ConfigError if
        "cuda" was requested and does not work, and BundleError for a model that cannot load.
        """
        self._session = _load(onnx, _providers(device, memory_mb), plan.threads, device)
        self.provider: str = self._session.get_providers()[0]
        if device == "cuda" and self.provider != CUDA:
            raise ConfigError("DEVICE", f"--device cuda: onnxruntime fell back to {self.provider}; {_CUDA_ADVICE}")
        self.callers = plan.callers if self.provider == CPU else 1
        self._lock = nullcontext() if self.provider == CPU else ON_CUDA
        self._input = manifest.input_name
        self._outputs = [manifest.logits_name, manifest.descriptor_name]
        check_shape(self._session, manifest)

    def run(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Map uint8 [N, crop, crop, 3] to (logits float32 [N, logits_length], descriptor float32 [N, length])."""
        with self._lock:
            logits, descriptor = self._session.run(self._outputs, {self._input: pixels})
        return logits, descriptor

    def run_images(self, images: Sequence[Pixels]) -> tuple[Floats, Floats]:
        """Run uint8 [crop, crop, 3] images as one batch; a single one is not copied."""
        return self.run(_stacked(images))

    def run_features(self, images: Sequence[Pixels]) -> tuple[Floats, Floats, Floats]:
        """Run as run_images() does; return the feature map too, float32 [views x N, channels, height, width]."""
        with self._lock:
            logits, descriptor, features = self._session.run(
                [*self._outputs, FEATURES], {self._input: _stacked(images)}
            )
        return logits, descriptor, features


def _stacked(images: Sequence[Pixels]) -> Pixels:
    return images[0][None] if len(images) == 1 else np.stack(images)


def open_model(onnx: bytes, providers: Sequence[Any], threads: int = 1) -> ort.InferenceSession:
    """Load a model with these providers and no others; raise BundleError if it cannot load.

    onnxruntime's own fallback is off: it would print to standard output and continue on the CPU, even during a run.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from decoding and from other runs (ceilings.md, section 2).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # External weights are searched for in this path, which holds no file. Otherwise onnxruntime would read any file in
    # the working directory for a model that is loaded from bytes.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        return ort.InferenceSession(onnx, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises some of its own, and UnicodeDecodeError on garbage
        raise BundleError("MODEL_INVALID", f"onnxruntime cannot load the model: {first_line(error)}") from error


def memory_options(memory_mb: int) -> dict[str, str]:
    """Return the CUDA provider's options for a limit in MiB; 0 stands for none.

    The limit is per model, for the arena of weights and activations. What cuDNN, cuBLAS and the driver take for
    themselves (some hundred MiB) is outside it. The arena grows by what is asked for, not in powers of
    two, so that a limit close to the need suffices.
    """
    if not memory_mb:
        return {}
    return {"gpu_mem_limit": str(memory_mb << 20), "arena_extend_strategy": "kSameAsRequested"}


def check_shape(session: ort.InferenceSession, manifest: Manifest) -> None:
    """Raise BundleError unless the graph has the inputs and outputs that the manifest promises."""
    crop = manifest.preprocess.crop
    shapes = {value.name: value.shape[1:] for value in (*session.get_inputs(), *session.get_outputs())}
    expected = {
        manifest.input_name: [crop, crop, 3],
        manifest.logits_name: [manifest.logits_length],
        manifest.descriptor_name: [manifest.descriptor_length],
    }
    # Its sizes are checked with the goldens: a graph need not know them before a run.
    has_features = shapes.pop(FEATURES, None) is not None
    has_promised = manifest.class_maps is not None and bool(manifest.class_maps.shape)
    if shapes != expected or (has_promised and not has_features):
        raise BundleError("MODEL_SHAPE", f"the model has {shapes}, and the manifest says {expected}")


def has_cuda_device() -> bool:
    """Return True if the NVIDIA driver finds a GPU. Calls the driver itself, so that onnxruntime logs no error."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line of at most 200 characters."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


_CUDA_ADVICE = "install penult[serve,gpu], check nvidia-smi, or use --device cpu"


def _load(onnx: bytes, providers: list[Any], threads: int, device: str) -> ort.InferenceSession:
    """Load the model; with "auto", fall back to the CPU with a warning if CUDA cannot load it."""
    try:
        return open_model(onnx, providers, threads)
    except BundleError as error:
        if device != "auto" or len(providers) == 1:
            raise
        log.warning("CUDA cannot load this model, so it runs on the CPU: %s", error.message)
        return open_model(onnx, [CPU], threads)


def _providers(device: str, memory_mb: int) -> list[Any]:
    if device == "cpu" or (device == "auto" and not has_cuda_device()):
        return [CPU]
    if CUDA not in ort.get_available_providers():
        if device == "cuda":
            raise ConfigError("DEVICE", f"--device cuda: this onnxruntime has no CUDA provider; {_CUDA_ADVICE}")
        return [CPU]
    if device == "cuda" and not has_cuda_device():
        raise ConfigError("DEVICE", f"--device cuda: no CUDA device was found; {_CUDA_ADVICE}")
    ort.preload_dlls()  # the CUDA and cuDNN wheels of the `gpu` extra
    return [(CUDA, memory_options(memory_mb)), CPU]
