"""The one place that knows onnxruntime: a model on a device."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from penult.bundle.errors import BundleError
from penult.bundle.manifest import Manifest
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.service.config import ConfigError
from penult.service.cpu_plan import SINGLE, CpuPlan

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_LOG_FATAL = 4


class Session:
    """A loaded model. Thread-safe: several threads may call run() at once."""

    def __init__(self, onnx: bytes, manifest: Manifest, device: str, plan: CpuPlan = SINGLE) -> None:
        """Load on "cuda", "cpu", or "auto" (CUDA where it works); on CPUs with the threads of `plan`.

        Raises ConfigError where "cuda" was asked for and does not work, and BundleError for a model that cannot load.
        """
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_FATAL
        options.intra_op_num_threads = plan.threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from decoding and from other runs (ceilings.md, section 2).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = self._providers(device)
        try:
            self._session = ort.InferenceSession(onnx, options, providers=providers)
        except Exception as error:  # onnxruntime raises some of its own, and UnicodeDecodeError on garbage
            raise BundleError("MODEL_INVALID", f"onnxruntime cannot load the model: {_first_line(error)}") from error
        self.provider: str = self._session.get_providers()[0]
        if device == "cuda" and self.provider != CUDA:
            raise ConfigError("DEVICE", f"--device cuda: onnxruntime fell back to {self.provider}; {_CUDA_ADVICE}")
        self.callers = plan.callers if self.provider == CPU else 1
        self._input = manifest.input_name
        self._outputs = [manifest.logits_name, manifest.descriptor_name]
        self._check_shape(manifest)

    def run(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Map uint8 [N, crop, crop, 3] to (logits float32 [N, logits_length], descriptor float32 [N, length])."""
        logits, descriptor = self._session.run(self._outputs, {self._input: pixels})
        return logits, descriptor

    def run_images(self, images: Sequence[Pixels]) -> tuple[Floats, Floats]:
        """Run uint8 [crop, crop, 3] images as one batch; a single one is not copied."""
        return self.run(images[0][None] if len(images) == 1 else np.stack(images))

    def _providers(self, device: str) -> list[Any]:
        if device == "cpu" or (device == "auto" and not has_cuda_device()):
            return [CPU]
        if CUDA not in ort.get_available_providers():
            if device == "cuda":
                raise ConfigError("DEVICE", f"--device cuda: this onnxruntime has no CUDA provider; {_CUDA_ADVICE}")
            return [CPU]
        if device == "cuda" and not has_cuda_device():
            raise ConfigError("DEVICE", f"--device cuda: no CUDA device was found; {_CUDA_ADVICE}")
        ort.preload_dlls()  # the CUDA and cuDNN wheels of the `gpu` extra
        return [CUDA, CPU]

    def _check_shape(self, manifest: Manifest) -> None:
        """Raise BundleError unless the graph has the inputs and outputs that the manifest promises."""
        crop = manifest.preprocess.crop
        shapes = {value.name: value.shape[1:] for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        expected = {
            manifest.input_name: [crop, crop, 3],
            manifest.logits_name: [manifest.logits_length],
            manifest.descriptor_name: [manifest.descriptor_length],
        }
        if shapes != expected:
            raise BundleError("MODEL_SHAPE", f"the model has {shapes} where the manifest says {expected}")


_CUDA_ADVICE = "install penult[serve,gpu], check nvidia-smi, or use --device cpu"


def has_cuda_device() -> bool:
    """Ask the NVIDIA driver itself, so that a machine without one logs no provider error at start."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
