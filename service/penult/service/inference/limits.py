"""The limits of the pipeline, and how many images of a model go into a batch."""

import math
from dataclasses import dataclass

from penult.bundle.guards import ImageLimits
from penult.service.models.loader import ServedModel

# Unless the operator decides: the images of a batch on CPUs, and the seconds that it may take.
_CPU_BATCH_IMAGES, _CPU_BATCH_S = 4, 0.010


@dataclass(frozen=True)
class InferenceLimits:
    """Limits of the pipeline: threads, images, bytes, pixels (of 4 bytes) and seconds.

    On CPUs a batch takes nearly as long as its images one by one. It also delays images that arrive after it began.
    With `cpu_batch_images` of 0, batches of small networks only are formed there. They save a tenth of the CPU time
    (bench/RESULTS.md).
    """

    threads: int
    cpu_batch_images: int
    device_batch_images: int
    batch_delay_s: float
    queue_images: int
    queue_bytes: int
    decode_pixels: int
    image: ImageLimits

    def batch_images(self, model: ServedModel) -> int:
        """Return the most images per run of a model."""
        return (self.cpu_batch_images or _CPU_BATCH_IMAGES) if model.is_on_cpu else self.device_batch_images

    def batch_s(self, model: ServedModel) -> float:
        """Return the most seconds for a run of several images."""
        return _CPU_BATCH_S if model.is_on_cpu and not self.cpu_batch_images else math.inf
