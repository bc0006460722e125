"""Read untrusted .npz files: no pickles, no archive that inflates to gigabytes or takes long.

numpy.load trusts an array's header before it has the bytes, and inflates without a limit.
"""

import io
import math
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_ARRAYS = 16
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_KINDS = "biufU"


def read_npz(data: bytes, most_bytes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of numbers and text in an archive, read-only.

    Raises ValueError before it inflates anything if the arrays exceed `most_bytes` in all. Raises ValueError too for
    content that numpy.savez does not write.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check(entries, most_bytes)
            return {entry.filename.removesuffix(".npy"): _array(_unfold(archive, entry)) for entry in entries}
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's headers each raise half a dozen of their own
        raise ValueError("no archive of arrays") from error


def _check(entries: list[zipfile.ZipInfo], most_bytes: int) -> None:
    if len(entries) > _MAX_ARRAYS or len({entry.filename for entry in entries}) != len(entries):
        raise ValueError("too many arrays")
    if any(entry.compress_type not in _METHODS or entry.flag_bits & _ENCRYPTED for entry in entries):
        raise ValueError("packed in a way that numpy.savez does not know")
    if sum(entry.file_size for entry in entries) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes")


def _unfold(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return an entry's data. Asked for all that there is, zipfile would inflate it first and cut it to size then."""
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def _array(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = versions[np.lib.format.read_magic(file)](file)
    if dtype.kind not in _KINDS or not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("no plain array, or one of another length")
    found = np.frombuffer(data, dtype, offset=file.tell())
    return found.reshape(shape, order="F" if is_fortran else "C")
