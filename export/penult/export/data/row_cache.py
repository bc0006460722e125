"""Rows of numbers by the content of their photos, cached on disk for the next run.

A file holds the rows of one maker, such as a network with its preprocessing. If it is damaged, or cannot be written,
the rows are computed again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from penult.bundle.preprocess import PREPROCESS_VERSION
from penult.bundle.scores import Floats
from penult.export.cache_folder import cache_folder, forget_oldest, replace_file

# Per file, and of all files of a kind. 1 GiB are 200,000 descriptors of 1,280 numbers.
_MAX_BYTES, _MAX_TOTAL_BYTES, _KEPT = 1 << 30, 2 << 30, 8
_KEY_BYTES = _DIGEST_BYTES = 32
_PIECE_ROWS, _PIECE_BYTES = 4096, 1 << 20


class RowCache:
    """The rows of earlier runs, float32 [length] each, by SHA-256 (hex) of the photo."""

    def __init__(self, kind: str, made_by: str, length: int) -> None:
        """Open the file of `made_by` if it exists and is whole.

        Args:
            kind: The folder below the user's cache folder.
            made_by: Everything that the rows depend on, beside the photo and the versions of the libraries.
            length: Numbers per row.
        """
        libraries = [importlib.metadata.version(name) for name in ("pillow", "numpy")]
        self._header = json.dumps([1, PREPROCESS_VERSION, *libraries, made_by, length]).encode() + b"\n"
        folder = cache_folder(kind)
        self._path = folder / f"{hashlib.sha256(self._header).hexdigest()[:32]}.rows" if folder else None
        self._length = length
        self._places: dict[bytes, int] = {}
        self._rows: NDArray[np.float32] = np.empty((0, length), np.float32)
        with contextlib.suppress(OSError, ValueError):
            self._load()

    def _load(self) -> None:
        if self._path is None:
            return
        with self._path.open("rb") as file:
            body = _check(file)
            file.seek(0)
            if file.read(len(self._header)) != self._header:
                return
            count = (body - len(self._header)) // (_KEY_BYTES + 4 * self._length)
            keys = file.read(count * _KEY_BYTES)
            self._rows = np.memmap(file, "<f4", "r", file.tell(), (count, self._length))
        self._places = {keys[n * _KEY_BYTES : (n + 1) * _KEY_BYTES]: n for n in range(count)}

    def get(self, sha256: str) -> NDArray[np.float32] | None:
        """Return the row of a photo, or None if it is not known."""
        place = self._places.get(bytes.fromhex(sha256))
        return None if place is None else self._rows[place]

    def keep(self, places: Mapping[str, int], rows: Floats) -> None:
        """Replace the file by these rows, and by older ones as far as there is room.

        Args:
            places: The place of each photo's row, by SHA-256 (hex).
            rows: [N, length].
        """
        room = _MAX_BYTES // (_KEY_BYTES + 4 * self._length)
        now = {bytes.fromhex(sha256): place for sha256, place in islice(places.items(), room)}
        older = {key: place for key, place in self._places.items() if key not in now}
        older = dict(islice(older.items(), room - len(now)))

        def pieces() -> Iterator[bytes]:
            yield self._header
            yield b"".join([*now, *older])
            for source, chosen in ((rows, [*now.values()]), (self._rows, [*older.values()])):
                for at in range(0, len(chosen), _PIECE_ROWS):
                    yield source[chosen[at : at + _PIECE_ROWS]].astype("<f4").tobytes()

        with contextlib.suppress(OSError):
            if self._path:
                replace_file(self._path, _with_digest(pieces()))
                forget_oldest(self._path.parent, _KEPT, _MAX_TOTAL_BYTES)


def _with_digest(pieces: Iterator[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    yield digest.digest()


def _check(file: BinaryIO) -> int:
    """Return the number of bytes before the digest at the end; raise ValueError if it does not match."""
    size, digest = file.seek(0, os.SEEK_END) - _DIGEST_BYTES, hashlib.sha256()
    if size < 0:
        raise ValueError("the file is too short")
    file.seek(0)
    for at in range(0, size, _PIECE_BYTES):
        digest.update(file.read(min(_PIECE_BYTES, size - at)))
    if file.read() != digest.digest():
        raise ValueError("the file is damaged")
    return size
