"""Options of models on a GPU; cuda_layout.py applies them."""

from dataclasses import dataclass

# nchw, nhwc: memory layout of the fast session; auto: measure both; plain: no bound buffers, no CUDA graphs.
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
