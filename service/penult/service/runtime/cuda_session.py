"""Run a model on a GPU with fixed batch sizes, fixed addresses, one thread and CUDA graphs.

A batch is padded to the next of the sizes 1, 2, 4, … and the limit (its bucket). Each bucket has its input and outputs
at fixed addresses on the device, bound once; images are written straight into page-locked host memory and go over in
one copy. With CUDA graphs the kernels of a bucket are recorded once and then launched as one.

What onnxruntime requires for this, from its source (cuda_execution_provider.cc, inference_session.cc):
- a captured graph belongs to the thread that ran it: on any other thread the next run captures again. So everything
  here, warm-up too, runs on the one thread `driver`; run() from elsewhere is handed over to it.
- a graph is captured in the third run of a bucket. Since 1.2x run_with_iobinding() makes these runs by itself. warm()
  makes more than enough of them, so that none falls on a request.
- while a graph is captured, no other thread of the process may call CUDA in ways that synchronise or allocate. So all
  runs on CUDA take turns (session.ON_CUDA), and the slow part, cuDNN's search, is done before, in a run that captures
  nothing and blocks no other run. The lock does not cover two models that load at once, or one that is freed while
  another captures: the poller loads and frees models one after the other.
- gpu_graph_id names a bucket's graph; 0 is onnxruntime's own, -1 means none.

Without `cuda` options all of it but graphs and page-locked memory runs on the CPU provider: so are its tests.
"""

import bisect
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
import onnxruntime as ort

from penult.bundle.class_map import by_views
from penult.bundle.manifest import Manifest
from penult.bundle.map_support import FEATURES
from penult.bundle.preprocess import Pixels
from penult.bundle.scores import Floats
from penult.service.runtime import pinned_memory
from penult.service.runtime.session import CPU, CUDA, ON_CUDA, check_shape, memory_options, open_model

Returned = TypeVar("Returned")
Outputs = tuple[Floats, Floats]
WithFeatures = tuple[Floats, Floats, Floats]

# Two regular runs, the capturing one, a replay; and one to spare.
_WARM_RUNS = 5


def provider_options(nhwc: bool, memory_mb: int = 0) -> dict[str, str]:
    """Return the CUDA provider's options for captured graphs; `memory_mb` in MiB, 0 for no limit.

    Names and values are those of onnxruntime's CUDA provider (cuda_provider_options.h). EXHAUSTIVE times every
    convolution algorithm of cuDNN for each shape, in a bucket's first run.
    """
    options = {
        "device_id": "0",
        "enable_cuda_graph": "1",
        "prefer_nhwc": "1" if nhwc else "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return options | memory_options(memory_mb)


def sizes(most_images: int) -> list[int]:
    """Return the buckets up to a limit: 1, 2, 4, … and the limit itself."""
    return sorted({*(2**n for n in range(most_images.bit_length())), most_images})


class DeviceSession:
    """A loaded model. Any thread may call run(): the runs happen one after the other, on the thread of `driver`."""

    callers = 1

    def __init__(
        self, onnx: bytes, manifest: Manifest, most_images: int, cuda: Mapping[str, str] | None = None
    ) -> None:
        """Load and bind every bucket up to `most_images`. `cuda` comes from provider_options(), None for the CPU.

        Raises BundleError for a model that cannot load. Raises onnxruntime's errors if not all nodes can run on the
        device, or if memory is short.
        """
        self.provider = CPU if cuda is None else CUDA
        self.driver = ThreadPoolExecutor(1, thread_name_prefix="driver")
        self._thread = self.driver.submit(threading.get_ident).result()
        try:
            self._on_driver(self._build, onnx, manifest, most_images, cuda)
        except BaseException:
            self.close()
            raise

    def run(self, pixels: Pixels) -> Outputs:
        """Map uint8 [N, crop, crop, 3] to (logits float32 [N, logits_length], descriptor float32 [N, length])."""
        return self._on_driver(self._run, pixels)

    def run_images(self, images: Sequence[Pixels]) -> Outputs:
        """Run uint8 [crop, crop, 3] images as one batch; each is copied once, to where the device fetches it."""
        return self._on_driver(self._run, images)

    def run_features(self, images: Sequence[Pixels]) -> WithFeatures:
        """Run as run_images() does; return the feature map too, float32 [views x N, channels, height, width].

        The feature map is computed on the device in every run, and copied to the host by this method only.
        """
        return self._on_driver(self._run_features, images)

    def warm(self) -> None:
        """Run every bucket until its graph is captured and replayed, the largest first: it needs the most memory."""
        self._on_driver(self._warm)

    def close(self) -> None:
        """End the thread. The device's memory is freed with the object."""
        self.driver.shutdown()

    def _build(self, onnx: bytes, manifest: Manifest, most_images: int, cuda: Mapping[str, str] | None) -> None:
        providers = [CPU] if cuda is None else [(CUDA, dict(cuda)), CPU]
        session = open_model(onnx, providers)
        if session.get_providers()[0] != self.provider:
            raise RuntimeError(f"onnxruntime fell back to {session.get_providers()[0]}")
        check_shape(session, manifest)
        crop = manifest.preprocess.crop
        shape = (most_images, crop, crop, 3)
        self._staging = np.zeros(shape, dtype=np.uint8) if cuda is None else pinned_memory.empty(shape)
        self._buckets = [_Bucket(session, manifest, size, cuda is not None) for size in sizes(most_images)]
        self._sizes = [bucket.size for bucket in self._buckets]

    def _on_driver(self, act: Callable[..., Returned], *arguments: object) -> Returned:
        if threading.get_ident() == self._thread:
            return act(*arguments)
        return self.driver.submit(act, *arguments).result()

    def _warm(self) -> None:
        for bucket in reversed(self._buckets):
            bucket.search(self._staging)
            for _ in range(_WARM_RUNS):
                bucket.run(self._staging, bucket.size)

    def _run(self, images: Sequence[Pixels] | Pixels) -> Outputs:
        most = self._sizes[-1]
        if len(images) <= most:
            return self._run_bucket(images)
        parts = [self._run_bucket(images[first : first + most]) for first in range(0, len(images), most)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _run_features(self, images: Sequence[Pixels]) -> WithFeatures:
        most = self._sizes[-1]
        logits, descriptors, features = [], [], []
        for first in range(0, len(images), most):
            part = images[first : first + most]
            outputs = self._run_bucket(part)
            logits.append(outputs[0])
            descriptors.append(outputs[1])
            features.append(self._bucket_of(len(part)).features(len(part)))
        found = np.concatenate(features, axis=1)
        return np.concatenate(logits), np.concatenate(descriptors), found.reshape(-1, *found.shape[2:])

    def _bucket_of(self, images: int) -> "_Bucket":
        return self._buckets[bisect.bisect_left(self._sizes, images)]

    def _run_bucket(self, images: Sequence[Pixels] | Pixels) -> Outputs:
        # The padding is what earlier batches left behind the last image: rows are independent, and zeroing would cost
        # as much as copying images.
        for row, image in enumerate(images):
            if image.shape != self._staging.shape[1:] or image.dtype != np.uint8:
                raise ValueError(f"an image is {image.dtype} {image.shape}, not uint8 {self._staging.shape[1:]}")
            self._staging[row] = image
        return self._bucket_of(len(images)).run(self._staging, len(images))


class _Bucket:
    """One batch size: its input and outputs on the device, and their binding to the model."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, size: int, on_cuda: bool) -> None:
        """Allocate and bind."""
        crop = manifest.preprocess.crop
        where = "cuda" if on_cuda else "cpu"
        self.size = size
        self._session, self._on_cuda = session, on_cuda
        self._input = ort.OrtValue.ortvalue_from_shape_and_type([size, crop, crop, 3], np.uint8, where, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(manifest.input_name, self._input)
        self._outputs = []
        for name, length in (
            (manifest.logits_name, manifest.logits_length), (manifest.descriptor_name, manifest.descriptor_length),
        ):  # fmt: skip
            value = ort.OrtValue.ortvalue_from_shape_and_type([size, length], np.float32, where, 0)
            self._binding.bind_ortvalue_output(name, value)
            self._outputs.append(value)
        self._features: ort.OrtValue | None = None
        maps = manifest.class_maps
        if maps is not None and maps.shape:  # part of the captured graph, so it is bound whether or not it is asked for
            self._views, shape = maps.views, [maps.views * size, *maps.shape]
            self._features = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, where, 0)
            self._binding.bind_ortvalue_output(FEATURES, self._features)
        self._recorded, self._unrecorded = ort.RunOptions(), ort.RunOptions()
        if on_cuda:  # sizes differ, so they serve as names of the graphs; none is 0
            self._recorded.add_run_config_entry("gpu_graph_id", str(size))
            self._unrecorded.add_run_config_entry("gpu_graph_id", "-1")

    def run(self, staging: Pixels, images: int) -> Outputs:
        """Run the first rows of `staging`, as many as the bucket holds; return those of the first `images`."""
        with ON_CUDA if self._on_cuda else nullcontext():
            # Returns once the bytes have arrived, and the run once its stream is done: nothing is left to synchronise.
            self._input.update_inplace(staging[: self.size])
            self._session.run_with_iobinding(self._binding, self._recorded)
            logits, descriptor = (self._rows(value, images) for value in self._outputs)
        return logits, descriptor

    def features(self, images: int) -> Floats:
        """Return the feature map of the first `images` of the last run, [views, images, channels, height, width]."""
        assert self._features is not None  # only models with class maps are asked
        with ON_CUDA if self._on_cuda else nullcontext():
            return by_views(self._features.numpy(), self._views)[:, :images].copy()

    def search(self, staging: Pixels) -> None:
        """Run once without a graph: cuDNN times its algorithms for this size, and memory is allocated."""
        self._input.update_inplace(staging[: self.size])
        self._session.run_with_iobinding(self._binding, self._unrecorded)

    def _rows(self, value: ort.OrtValue, images: int) -> Floats:
        """Copy a bound output's first rows; numpy() copies memory of a GPU, and returns a view of the CPU's."""
        rows: Floats = value.numpy()[:images]
        return rows if self._on_cuda else rows.copy()
