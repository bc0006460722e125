"""Rows in memory and FAISS's search over them: append-only, with a bit per row that marks deleted rows.

An index has at most one sealed piece under an HNSW graph, and one growing piece that is searched exactly.
Searches run on any number of threads while one thread changes the index. It writes rows and clears bits before it
publishes them to searches.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from penult.lookup.types import Floats

Ints = NDArray[np.int64]

# Malkov and Yashunin's parameters (arXiv 1603.09320); recall above 0.99 on 100,000 x 512 (bench/RESULTS.md).
LINKS, EF_BUILD, EF_SEARCH = 16, 100, 128
# Where a filter leaves fewer rows than this part, looking at each is quicker than walking a graph past the others.
_FEW = 0.2
_MIN_ROWS = 1024


@dataclass(frozen=True)
class Found:
    """For each query, similarities and sequence numbers of float32 and int64 [N, k], best first; -1 for no row."""

    similarities: Floats
    seqs: Ints

    @classmethod
    def nothing(cls, queries: int) -> "Found":
        """Return that none was found."""
        return cls(np.empty((queries, 0), dtype=np.float32), np.empty((queries, 0), dtype=np.int64))

    def best(self, k: int) -> "Found":
        """Return the k best of each query."""
        order = np.argsort(-self.similarities, axis=1, kind="stable")[:, :k]
        return Found(np.take_along_axis(self.similarities, order, axis=1), np.take_along_axis(self.seqs, order, axis=1))


class Piece:
    """Rows 0 … `rows`, of which others may still be written behind; `graph` where it is sealed."""

    def __init__(
        self, matrix: Floats, seqs: Ints, bits: NDArray[np.uint8], rows: int, gone: int = 0, graph: Any = None
    ) -> None:
        """Take unit vectors, float32 [capacity, dimension], their rising seqs, and a bit per row, lowest first."""
        self.matrix, self.seqs, self.bits, self.rows, self.gone, self.graph = matrix, seqs, bits, rows, gone, graph

    @classmethod
    def empty(cls, dimension: int, capacity: int = _MIN_ROWS) -> "Piece":
        """Return a piece without rows."""
        return cls(
            np.empty((capacity, dimension), dtype=np.float32),
            np.empty(capacity, dtype=np.int64),
            np.zeros((capacity + 7) // 8, dtype=np.uint8),
            0,
        )

    def appended(self, seqs: Ints, vectors: Floats) -> "Piece":
        """Return the piece with more rows; this one stays as it is, and shares memory with it."""
        rows = self.rows + len(seqs)
        matrix, all_seqs, bits = self.matrix, self.seqs, self.bits
        if rows > len(matrix):
            capacity = max(rows, len(matrix) * 3 // 2)
            matrix, all_seqs = _grown(matrix, capacity, self.rows), _grown(all_seqs, capacity, self.rows)
            bits = np.zeros((capacity + 7) // 8, dtype=np.uint8)
            bits[: len(self.bits)] = self.bits
        matrix[self.rows : rows], all_seqs[self.rows : rows] = unit(vectors), seqs
        places = np.arange(self.rows, rows)
        np.bitwise_or.at(bits, places >> 3, (1 << (places & 7)).astype(np.uint8))
        return Piece(matrix, all_seqs, bits, rows, self.gone)

    def remove(self, seqs: Ints) -> int:
        """Take rows out of every later search, and return how many of these were here."""
        places = self.places(seqs)
        np.bitwise_and.at(self.bits, places >> 3, ~(1 << (places & 7)).astype(np.uint8))
        self.gone += len(places)
        return len(places)

    def places(self, seqs: Ints) -> Ints:
        """Return where rows are, of those that are here."""
        known = self.seqs[: self.rows]
        places = np.searchsorted(known, seqs)
        inside = places < self.rows
        places, seqs = places[inside], seqs[inside]
        found: Ints = places[known[places] == seqs]
        return found

    def search(self, queries: Floats, k: int, only: Ints | None) -> Found:
        """Return the k nearest rows of unit queries, of those in `only` if it is given."""
        bits, matching = self.bits, self.rows - self.gone
        if only is not None:
            places = self.places(only)
            bits, matching = bits & _bits_of(places, len(bits)), len(places)
        if self.graph is None or (only is not None and matching < _FEW * self.rows):
            return self._exactly(queries, k, bits, whole=matching == self.rows)
        found = self._by_graph(queries, k, bits, matching)
        if ((found.seqs >= 0).sum(axis=1) < min(k, matching)).any():  # the graph led past rows that match
            return self._exactly(queries, k, bits, whole=False)
        return found

    @property
    def there(self) -> NDArray[np.bool_]:
        """Which rows have not been taken out, [rows]."""
        return np.unpackbits(self.bits, count=self.rows, bitorder="little").astype(bool)

    @property
    def memory_bytes(self) -> int:
        """What rows and graph take."""
        links = self.rows * (2 * LINKS + 1) * 4 if self.graph is not None else 0
        return self.matrix.nbytes + self.seqs.nbytes + self.bits.nbytes + links

    def _exactly(self, queries: Floats, k: int, bits: NDArray[np.uint8], whole: bool) -> Found:
        similarities = np.empty((len(queries), k), dtype=np.float32)
        places = np.empty((len(queries), k), dtype=np.int64)
        arguments = [
            faiss.swig_ptr(queries), faiss.swig_ptr(self.matrix), queries.shape[1], len(queries), self.rows, k,
            faiss.swig_ptr(similarities), faiss.swig_ptr(places),
        ]  # fmt: skip
        if not whole:
            arguments.append(faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)))
        faiss.knn_inner_product(*arguments)
        return self._found(similarities, places)

    def _by_graph(self, queries: Floats, k: int, bits: NDArray[np.uint8], matching: int) -> Found:
        # The walk keeps its best whether they match or not: the fewer match, the more it must keep.
        effort = max(EF_SEARCH, 2 * k) * self.rows // max(1, matching)
        how = faiss.SearchParametersHNSW(efSearch=effort)
        if matching < self.rows:
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            how.sel = selector
        return self._found(*self.graph.search(queries, k, params=how))

    def _found(self, similarities: Floats, places: Ints) -> Found:
        if places.size and places[:, -1].min() >= 0:  # each query has all k, the common case
            return Found(similarities, self.seqs[places])
        seqs = np.where(places >= 0, self.seqs[np.maximum(places, 0)], -1)
        return Found(np.where(seqs >= 0, similarities, np.float32(-np.inf)), seqs)


def sealed(seqs: Ints, vectors: Floats, threads: int) -> Piece:
    """Return rows of unit vectors under a new graph, built on so many threads."""
    faiss.omp_set_num_threads(threads)  # of the calling thread only, as OpenMP has it
    graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EF_BUILD
    graph.add(vectors)
    return over(graph, seqs)


def over(graph: Any, seqs: Ints) -> Piece:
    """Return a piece over a graph; its rows stay in the graph's own memory."""
    storage = faiss.downcast_index(graph.storage)
    matrix = faiss.rev_swig_ptr(storage.get_xb(), graph.ntotal * graph.d).reshape(graph.ntotal, graph.d)
    return Piece(matrix, seqs, _bits_of(np.arange(len(seqs)), (len(seqs) + 7) // 8), len(seqs), graph=graph)


def unit(vectors: Floats) -> Floats:
    """Return vectors of length 1, float32 [N, dimension]."""
    exact = vectors.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    return np.ascontiguousarray(exact / norms[:, None], dtype=np.float32)


def one_thread() -> None:
    """Search on the calling thread alone: callers run side by side, and OpenMP's own threads would fight over cores."""
    faiss.omp_set_num_threads(1)


def write_graph(graph: Any, path: str) -> None:
    """Write a graph with its rows to a file."""
    faiss.write_index(graph, path)


def read_graph(path: str) -> Any:
    """Read a graph; raise RuntimeError where the file is none."""
    return faiss.read_index(path)


def _grown(values: Any, capacity: int, rows: int) -> Any:
    larger = np.empty((capacity, *values.shape[1:]), dtype=values.dtype)
    larger[:rows] = values[:rows]
    return larger


def _bits_of(places: Ints, size: int) -> NDArray[np.uint8]:
    flags = np.zeros(size * 8, dtype=np.uint8)
    flags[places] = 1
    return np.packbits(flags, bitorder="little")
