"""Files of a collections folder beside the record: the lock of the process that uses it, and graphs.

A graph on the disk only saves building it. It is used if it is whole (a digest follows it) and if the record says that
it belongs to it. Otherwise it is built again.
"""

import fcntl
import hashlib
import logging
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from penult.lookup.embedded.pieces import Ints, Piece, over, read_graph, write_graph
from penult.lookup.embedded.record import Record
from penult.lookup.errors import StoreUnavailable

log = logging.getLogger(__name__)

_CHUNK_BYTES = 16 << 20


class Lock:
    """Held by one process at a time; the kernel releases it when the process ends, for whatever reason."""

    def __init__(self, folder: Path) -> None:
        """Take it; raise StoreUnavailable where another process has it."""
        self._file = (folder / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise StoreUnavailable(
                "STORE_LOCKED",
                f"process {holder} has the collections in {folder} open; ask its server, stop it, or name another "
                "folder with --lookup",
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let go of it."""
        self._file.close()


def save_graph(folder: Path, record: Record, number: int, piece: Piece) -> None:
    """Write a sealed piece's graph, then note in the record that it belongs to it.

    If the disk is full, nothing is kept and a warning is logged. The graph is then built again at the next start.
    """
    path = folder / f"graph-{number}"
    scratch = path.with_suffix(".new")
    try:
        _save(path, scratch, record, number, piece)
    except (OSError, RuntimeError, StoreUnavailable) as error:  # of Python, FAISS and SQLite
        with suppress(OSError):
            scratch.unlink()
        log.warning("%s cannot be kept; it serves from memory: %s", path.name, " ".join(str(error).split())[:200])


def _save(path: Path, scratch: Path, record: Record, number: int, piece: Piece) -> None:
    token = uuid.uuid4().hex
    write_graph(piece.graph, str(scratch))
    seqs = piece.seqs[: piece.rows].tobytes()
    with scratch.open("ab") as file:
        file.write(seqs)
    digest = _digest(scratch, scratch.stat().st_size)
    with scratch.open("ab") as file:
        file.write(token.encode() + digest)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    record.seal(number, token, int(piece.seqs[piece.rows - 1]))


def load_graph(folder: Path, record: Record, number: int) -> Piece | None:
    """Return the sealed piece on the disk; None if it is missing, damaged, or of another record."""
    path, noted = folder / f"graph-{number}", record.sealed(number)
    if noted is None or not path.is_file():
        return None
    foot = len(noted[0]) + hashlib.blake2b().digest_size
    size = path.stat().st_size - foot
    with path.open("rb") as file:
        file.seek(max(0, size))
        if size <= 0 or file.read() != noted[0].encode() + _digest(path, size):
            return None
    return _read(path, size)


def forget_graph(folder: Path, number: int) -> None:
    """Remove a graph's file."""
    (folder / f"graph-{number}").unlink(missing_ok=True)


def _read(path: Path, size: int) -> Piece | None:
    try:
        graph: Any = read_graph(str(path))  # reads its own part and no further
    except RuntimeError:
        return None
    with path.open("rb") as file:
        file.seek(size - 8 * graph.ntotal)
        seqs: Ints = np.frombuffer(file.read(8 * graph.ntotal), dtype=np.int64).copy()
    return over(graph, seqs)


def _digest(path: Path, size: int) -> bytes:
    found = hashlib.blake2b()
    with path.open("rb") as file:
        while size > 0:
            part = file.read(min(_CHUNK_BYTES, size))
            found.update(part)
            size -= len(part)
            if not part:
                break
    return found.digest()
