"""What may be set of how a model uses a GPU. device_plan.py acts on it."""

from dataclasses import dataclass

# nchw, nhwc: the layout of the fast way; auto measures both; plain: without bound buffers and CUDA graphs.
AUTO, NCHW, NHWC, PLAIN = "auto", "nchw", "nhwc", "plain"
GPU_MODES = (AUTO, NCHW, NHWC, PLAIN)
MAX_IMAGES = 32


@dataclass(frozen=True)
class GpuOptions:
    """`most_images` per run, `memory_mb` of the device per model (MiB, 0: no limit), `mode` of GPU_MODES."""

    most_images: int = MAX_IMAGES
    memory_mb: int = 0
    mode: str = AUTO


DEFAULT = GpuOptions()
