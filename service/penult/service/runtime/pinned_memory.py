"""Allocate page-locked host memory, which a GPU copies from directly; plain memory without a CUDA runtime.

A copy to the device from pageable memory passes through a buffer of the driver's. Page-locked memory needs none.

onnxruntime 1.31.1 cannot allocate it. OrtDevice.make() knows no "cuda_pinned", and an OrtMemoryInfo named CudaPinned
is accepted but has no allocator without a plugin provider ("No shared allocator found", tried here without a GPU). So
the CUDA runtime is called directly: the libcudart.so.13 or .12 that the CUDA provider itself has loaded.
"""

import ctypes
import logging
import math
import weakref
from collections.abc import Sequence
from functools import cache

import numpy as np

from penult.bundle.preprocess import Pixels

log = logging.getLogger(__name__)

# cudaHostAllocPortable (driver_types.h): page-locked for every CUDA context of the process.
_PORTABLE = 1
_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")


def empty(shape: Sequence[int]) -> Pixels:
    """Return a uint8 array of this shape, all zeros, page-locked if possible; freed with its last view.

    Without page-locked memory it never raises: copies are slower then, and results are the same. Source: cudaHostAlloc
    of the CUDA runtime API.
    """
    runtime = _runtime()
    address = ctypes.c_void_p()
    size = math.prod(shape)
    if runtime is None or not size:
        return np.zeros(shape, dtype=np.uint8)
    code = runtime.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE))
    if code or not address.value:
        # The runtime keeps its last error until it is read, and onnxruntime reads it after each kernel.
        runtime.cudaGetLastError()
        log.warning("no page-locked memory (CUDA error %d): copies to the device will be slower", code)
        return np.zeros(shape, dtype=np.uint8)
    buffer = (ctypes.c_uint8 * size).from_address(address.value)
    # NumPy's arrays keep `buffer` alive as their base, so it goes with the last of them. At exit the process takes the
    # memory back itself; by then the runtime may have been unloaded.
    weakref.finalize(buffer, runtime.cudaFreeHost, ctypes.c_void_p(address.value)).atexit = False
    array: Pixels = np.frombuffer(memoryview(buffer), dtype=np.uint8).reshape(shape)
    array[...] = 0
    return array


@cache
def _runtime() -> ctypes.CDLL | None:
    """Return the CUDA runtime of this process, or None. Call it once onnxruntime has a CUDA session."""
    for name in _RUNTIMES:
        try:
            # By its bare name: the loader finds what is loaded already, wherever it came from.
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudaHostAlloc.restype = library.cudaFreeHost.restype = library.cudaGetLastError.restype = ctypes.c_int
        library.cudaFreeHost.argtypes = [ctypes.c_void_p]
        return library
    log.warning("no CUDA runtime library was found: copies to the device will be slower")
    return None
