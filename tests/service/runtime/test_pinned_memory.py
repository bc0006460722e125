"""Page-locked memory: asked of the CUDA runtime, given back with the last view, and never a reason to fail."""

import ctypes
import gc

import numpy as np
import pytest

from penult.service.runtime import pinned_memory
from penult.service.runtime.session import has_cuda_device


class FakeRuntime:
    """The three calls of libcudart that are used, on memory of this process; `code` is what an allocation returns."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.given, self.freed, self.asked_for_error = code, {}, [], 0

    def cudaHostAlloc(self, address, size, flags):
        assert flags.value == 1
        if not self.code:
            block = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
            self.given[ctypes.addressof(block)] = block
            ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))[0] = ctypes.addressof(block)
        return self.code

    def cudaFreeHost(self, address):
        self.freed.append(address.value)

    def cudaGetLastError(self):
        self.asked_for_error += 1


@pytest.fixture
def runtime(monkeypatch):
    """Put a FakeRuntime in place: runtime(code=0)."""

    def install(code: int = 0) -> FakeRuntime:
        fake = FakeRuntime(code)
        monkeypatch.setattr(pinned_memory, "_runtime", lambda: fake)
        return fake

    return install


def test_memory_comes_from_the_runtime_and_goes_with_its_last_view(runtime):
    """An array lies at the address given, is zeroed, and is freed once, when its last view is gone and not before."""
    fake = runtime()
    array = pinned_memory.empty((4, 2, 2, 3))
    assert array.ctypes.data in fake.given
    assert (array.shape, array.dtype, int(array.max())) == ((4, 2, 2, 3), np.uint8, 0)
    view = array[1:3]
    view[...] = 7
    assert array[2].min() == 7
    del array
    gc.collect()
    assert fake.freed == []
    del view
    gc.collect()
    assert fake.freed == list(fake.given)


def test_a_refusal_costs_speed_only(runtime, caplog):
    """Where the runtime gives none, plain memory is returned, the log says so, and the runtime's error is cleared."""
    fake = runtime(code=2)
    array = pinned_memory.empty((2, 3))
    assert (array.shape, int(array.max()), fake.asked_for_error) == ((2, 3), 0, 1)
    assert "CUDA error 2" in caplog.text


def test_without_a_runtime_memory_is_plain(monkeypatch):
    """A machine without CUDA gets ordinary memory."""
    monkeypatch.setattr(pinned_memory, "_runtime", lambda: None)
    assert pinned_memory.empty((2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_library_is_looked_for_by_its_bare_name(monkeypatch, caplog):
    """Both versions are tried, and none found is said once."""
    tried = []

    def load(name):
        tried.append(name)
        raise OSError(name)

    monkeypatch.setattr(pinned_memory.ctypes, "CDLL", load)
    pinned_memory._runtime.cache_clear()
    try:
        assert pinned_memory._runtime() is None
        assert pinned_memory._runtime() is None
    finally:
        pinned_memory._runtime.cache_clear()
    assert tried == ["libcudart.so.13", "libcudart.so.12"]
    assert caplog.text.count("no CUDA runtime") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda_device(), reason="no CUDA device here")
def test_the_driver_says_it_is_page_locked():
    """On a device's machine, cudaPointerGetAttributes calls the memory host memory that CUDA knows (type 1)."""
    import onnxruntime as ort

    ort.preload_dlls()
    array = pinned_memory.empty((1 << 20,))
    # cudaPointerAttributes: int type, int device, void* devicePointer, void* hostPointer; room to spare behind it.
    attributes = (ctypes.c_int * 64)()
    runtime = pinned_memory._runtime()
    assert runtime.cudaPointerGetAttributes(ctypes.byref(attributes), ctypes.c_void_p(array.ctypes.data)) == 0
    assert attributes[0] == 1
