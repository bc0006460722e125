"""The index of one collection in memory: exact while small, a graph with an exact tail when large."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penult.lookup.embedded.pieces import Found, Ints, Piece, sealed, unit
from penult.lookup.types import Floats

# Numbers that one core looks through in about 18 ms (research/lookup.md, Index by size).
EXACT_NUMBERS = 50_000_000
# A graph is built anew when this part of its rows has come behind it, or has gone.
_STALE = 0.1
_MIN_GONE = 1000


@dataclass(frozen=True)
class Snapshot:
    """What a search reads: pieces that together hold every row once."""

    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows that are there."""
        return sum(piece.rows - piece.gone for piece in self.pieces)


class Vectors:
    """Rows by sequence number. One thread changes at a time, which the caller sees to; any number search."""

    def __init__(self, dimension: int, exact_numbers: int = EXACT_NUMBERS) -> None:
        """Start without rows; above `exact_numbers` numbers a graph is worth its while."""
        self._dimension, self._exact_numbers = dimension, exact_numbers
        self._snapshot = Snapshot((Piece.empty(dimension),))

    @property
    def snapshot(self) -> Snapshot:
        """What is searched now."""
        return self._snapshot

    def take(self, piece: Piece) -> None:
        """Begin with a sealed piece, and nothing behind it."""
        self._snapshot = Snapshot((piece, Piece.empty(self._dimension)))

    def append(self, seqs: Ints, vectors: Floats) -> None:
        """Add rows whose seqs rise above all before."""
        *others, tail = self._snapshot.pieces
        self._snapshot = Snapshot((*others, tail.appended(seqs, vectors)))

    def remove(self, seqs: Ints) -> None:
        """Take rows out, and free the tail's memory if over half of it is of such rows."""
        for piece in self._snapshot.pieces:
            piece.remove(seqs)
        *others, tail = self._snapshot.pieces
        if tail.gone > max(_MIN_GONE, tail.rows // 2):
            there = tail.there
            kept = tail.seqs[: tail.rows][there], tail.matrix[: tail.rows][there]
            self._snapshot = Snapshot((*others, Piece.empty(self._dimension).appended(*kept)))

    def search(self, queries: Floats, k: int, only: Ints | None = None) -> Found:
        """Return the k nearest of each query, float32 [N, dimension], among `only` (rising) if it is given."""
        units = unit(queries)
        found = [piece.search(units, k, only) for piece in self._snapshot.pieces if piece.rows]
        if not found:
            return Found.nothing(len(queries))
        if len(found) == 1:  # in order already
            return found[0]
        return Found(
            np.concatenate([each.similarities for each in found], axis=1),
            np.concatenate([each.seqs for each in found], axis=1),
        ).best(k)

    @property
    def is_stale(self) -> bool:
        """Whether to build a graph: there are many rows, and too many are outside a graph or deleted."""
        pieces = self._snapshot.pieces
        if self._snapshot.rows * self._dimension <= self._exact_numbers:
            return False
        under = sum(piece.rows for piece in pieces if piece.graph is not None)
        loose = sum(piece.rows - piece.gone if piece.graph is None else piece.gone for piece in pieces)
        return loose > _STALE * under

    def sealed_copy(self, threads: int) -> Piece:
        """Return all rows that are there now under a new graph. Takes minutes for a million; searches go on."""
        parts = [(piece.seqs[: piece.rows], piece.matrix, piece.there) for piece in self._snapshot.pieces]
        seqs = np.concatenate([seqs[there] for seqs, _, there in parts])
        return sealed(seqs, np.concatenate([matrix[: len(there)][there] for _, matrix, there in parts]), threads)

    def swap(self, piece: Piece) -> None:
        """Replace rows by the sealed piece that holds them; later rows stay, deleted rows stay deleted."""
        last = piece.seqs[piece.rows - 1] if piece.rows else 0
        tail = Piece.empty(self._dimension)
        there = []
        for old in self._snapshot.pieces:
            seqs, late = old.seqs[: old.rows], old.there & (old.seqs[: old.rows] > last)
            there.append(seqs[old.there & ~late])
            if late.any():
                tail = tail.appended(seqs[late], old.matrix[: old.rows][late])
        piece.remove(np.setdiff1d(piece.seqs[: piece.rows], np.concatenate(there), assume_unique=True))
        self._snapshot = Snapshot((piece, tail))


class Builder:
    """Rebuilds an index on a thread of its own, one build at a time."""

    def __init__(self, build: Callable[[], None]) -> None:
        """Call this when asked to."""
        self._build, self._lock, self._thread = build, threading.Lock(), threading.Thread()

    def start(self) -> None:
        """Build, unless a build is on."""
        with self._lock:
            if not self._thread.is_alive():
                self._thread = threading.Thread(target=self._build, name="penult-index", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Wait for the build that is on."""
        if self._thread.is_alive():
            self._thread.join()
