"""Reading .npz files: what numpy.savez writes comes back, and nothing else is unfolded, believed or run."""

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from penult.bundle.npz import read_npz

ARRAYS = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "bytes": np.arange(7, dtype=np.uint8),
    "names": np.array(["dense", "svm"]),
    "none": np.zeros((0, 5), dtype=np.float32),
    "one": np.array(3.5),
    "many": np.ones((2, 3, 4, 5), dtype=np.int64),
}


def _saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _packed(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _npy(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(save):
    """Numbers and text of any shape and order come back as they were."""
    buffer = io.BytesIO()
    save(buffer, **ARRAYS)
    found = read_npz(buffer.getvalue(), 10_000)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_bomb_is_refused_before_it_unfolds():
    """An archive of 300 KB that would be 300 MB takes no memory to speak of; one within the limit is read."""
    bomb = _saved(floats=np.zeros(300_000_000, dtype=np.uint8))
    assert len(bomb) < 400_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than"):
        read_npz(bomb, 100_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    assert read_npz(_saved(floats=np.zeros(1_000_000, dtype=np.uint8)), 1_001_000)["floats"].nbytes == 1_000_000


def test_a_size_that_lies_is_not_believed():
    """Where the directory says less than the data unfold to, no more than it says is unfolded."""
    data = bytearray(_saved(floats=np.zeros(50_000_000, dtype=np.uint8)))
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 1000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="archive"):
        read_npz(bytes(data), 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("true",)


HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }\n"
BAD = {
    "nothing": b"",
    "no zip": b"no zip at all",
    "objects": _saved(a=np.array([Evil()], dtype=object)),
    "structures": _saved(a=np.zeros(2, dtype=[("x", "f8")])),
    "complex": _saved(a=np.zeros(2, dtype=complex)),
    "more than there is": _packed({"a.npy": _npy(HEADER % (1 << 60), bytes(8))}),
    "less than there is": _packed({"a.npy": _npy(HEADER % 1, bytes(16))}),
    "negative": _packed({"a.npy": _npy(HEADER % -1, bytes(8))}),
    "header of code": _packed({"a.npy": _npy("__import__('os').system('true')\n")}),
    "header that nests": _packed({"a.npy": _npy("(" * 9000)}),
    "long header": _packed({"a.npy": _npy(" " * 60_000 + HEADER % 1, bytes(8))}),
    "version 9": _packed({"a.npy": b"\x93NUMPY\x09\x00" + bytes(100)}),
    "no array": _packed({"a.npy": b"text"}),
    "lzma": _packed({"a.npy": _npy(HEADER % 1, bytes(8))}, zipfile.ZIP_LZMA),
    "bzip2": _packed({"a.npy": _npy(HEADER % 1, bytes(8))}, zipfile.ZIP_BZIP2),
    "17 arrays": _saved(**{f"a{n}": np.zeros(1) for n in range(17)}),
}


@pytest.mark.parametrize("what", BAD)
def test_what_savez_does_not_write_is_refused(what):
    """Objects, headers that lie or run code, and packing that may need gigabytes: no array comes back."""
    with pytest.raises(ValueError):
        read_npz(BAD[what], 1_000_000)


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_damage_is_refused_or_harmless(at):
    """Whatever byte is another, there is an error or arrays of numbers, never anything else."""
    data = bytearray(_saved(a=np.arange(20.0), b=np.array(["x"])))
    data[at % len(data)] ^= 0x55
    try:
        found = read_npz(bytes(data), 1_000_000)
    except ValueError:
        return
    assert all(array.dtype.kind in "biufU" for array in found.values())
