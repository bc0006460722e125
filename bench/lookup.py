"""The embedded engine against FAISS alone: recall, CPU time per search, filters, cold open, searches while adding.

    python bench/lookup.py [--items 100000] [--dimension 512] [--graph] [--rounds 5]

Ratios are of CPU time within one run, rounds interleaved, one thread each. Vectors are made up: skewed clusters, ReLU,
as descriptors are. `--graph` searches by HNSW; without it, exactly.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import faiss
import numpy as np

from penult.lookup.embedded import EmbeddedStore
from penult.lookup.embedded.pieces import EF_BUILD, EF_SEARCH, LINKS
from penult.lookup.types import CollectionSpec, Condition, Item

K, QUERIES, FAR = 10, 200, 100


def descriptors(count: int, dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ReLU'd points around 1000 centres of uneven weight, float32, and which centre."""
    centres = np.random.default_rng(0).normal(size=(1000, dimension)).astype(np.float32)
    chance = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 1001) ** 0.7
    cluster = chance.choice(1000, size=count, p=weights / weights.sum())
    made = np.empty((count, dimension), dtype=np.float32)
    for at in range(0, count, 50_000):
        part = cluster[at : at + 50_000]
        noise = chance.normal(size=(len(part), dimension)).astype(np.float32)
        made[at : at + 50_000] = np.maximum(centres[part] + 0.7 * noise, 0)
    return made, cluster


def fill(folder: Path, rows: np.ndarray, cluster: np.ndarray, limit: int) -> tuple[EmbeddedStore, float, float]:
    """Store all rows; return the store, the seconds it took, and the seconds until the graph was there."""
    store = EmbeddedStore(folder, exact_numbers=1 << 62)
    collection = store.create(CollectionSpec("c", rows.shape[1], "f"))
    start = time.perf_counter()
    for at in range(0, len(rows), 1000):
        collection.upsert([Item(f"i{n}", rows[n], f"c{cluster[n]}") for n in range(at, min(at + 1000, len(rows)))])
    added = time.perf_counter() - start
    collection._vectors._exact_numbers = limit
    start = time.perf_counter()
    collection._build_if_stale()
    collection.settle()
    return store, added, time.perf_counter() - start


def cpu_ms(act, queries: np.ndarray) -> float:
    """Return CPU milliseconds of the calling thread per query, asked one by one."""
    start = time.thread_time()
    for query in queries:
        act(query[None])
    return 1000 * (time.thread_time() - start) / len(queries)


def percentile(act, queries: np.ndarray, seconds: float) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds of searches one after the other for so long."""
    taken, end, n = [], time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        start = time.perf_counter()
        act(queries[n % len(queries)][None])
        taken.append(1000 * (time.perf_counter() - start))
        n += 1
    return float(np.percentile(taken, 50)), float(np.percentile(taken, 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--graph", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="0: do not compare with FAISS's own index")
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rows, cluster = descriptors(arguments.items, arguments.dimension, 1)
    queries, _ = descriptors(QUERIES, arguments.dimension, 2)
    limit = 0 if arguments.graph else 1 << 62
    with tempfile.TemporaryDirectory() as folder:
        store, added, built = fill(Path(folder), rows, cluster, limit)
        collection = store.open("c")
        print(f"{arguments.items} x {arguments.dimension}: {collection.stats()}", flush=True)
        print(f"added in {added:.1f} s ({arguments.items / added:.0f}/s), graph in {built:.1f} s", flush=True)
        if arguments.rounds:
            compare(collection, rows, queries, arguments)
        filters(collection, queries, cluster)
        while_adding(collection, queries, arguments)
        collection.settle()
        store.close()
        start = time.perf_counter()
        again = EmbeddedStore(Path(folder), exact_numbers=max(limit, 1))
        again.open("c").search(queries[:1], K)
        print(f"cold open and first search: {time.perf_counter() - start:.2f} s (goal 3)")
        again.close()


def compare(collection, rows: np.ndarray, queries: np.ndarray, arguments: argparse.Namespace) -> None:
    """Print recall, and CPU time per search against FAISS's own index of the same kind."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    flat = faiss.IndexFlatIP(arguments.dimension)
    flat.add(unit)
    truth = flat.search(units, K)[0]
    theirs = flat
    if arguments.graph:
        theirs = faiss.IndexHNSWFlat(arguments.dimension, LINKS, faiss.METRIC_INNER_PRODUCT)
        theirs.hnsw.efConstruction, theirs.hnsw.efSearch = EF_BUILD, EF_SEARCH
        faiss.omp_set_num_threads(2)
        theirs.add(unit)
        faiss.omp_set_num_threads(1)
    found = collection.search(queries, K)
    recall = np.mean(
        [sum(hit.similarity >= row[-1] - 1e-5 for hit in hits) / K for hits, row in zip(found, truth, strict=True)]
    )
    print(f"recall@10: {recall:.4f}; FAISS's own: {np.mean(theirs.search(units, K)[0] >= truth[:, -1:] - 1e-5):.4f}")
    kinds = {
        "FAISS": lambda query: theirs.search(query, K),
        "index": lambda query: collection._vectors.search(query, K),
        "whole search": lambda query: collection.search(query, K),
    }
    costs = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, act in kinds.items():
            costs[name].append(cpu_ms(act, units if name == "FAISS" else queries))
    for name in ("index", "whole search"):
        ratios = [ours / base for ours, base in zip(costs[name], costs["FAISS"], strict=True)]
        print(
            f"CPU-ms per search, {name} / FAISS: {median(costs[name]):.3f} / {median(costs['FAISS']):.3f}; ratio "
            f"{median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f}), goal 1.15"
        )


def filters(collection, queries: np.ndarray, cluster: np.ndarray) -> None:
    """Print how often a filter far from the query returned as many as there are."""
    counts = np.bincount(cluster, minlength=1000)
    right, start = 0, time.thread_time()
    for n in range(FAR):
        hits = collection.search(queries[n][None], K, (Condition("label", (f"c{n * 10}",)),))[0]
        right += len(hits) == min(K, counts[n * 10])
    taken = 1000 * (time.thread_time() - start) / FAR
    print(f"filter far from the query: {right} of {FAR} full; {taken:.2f} CPU-ms each")


def while_adding(collection, queries: np.ndarray, arguments: argparse.Namespace) -> None:
    """Print p99 of searches, quiet and while another thread adds batches of ten without pause."""
    act = lambda query: collection.search(query, K)  # noqa: E731
    quiet = percentile(act, queries, arguments.seconds)
    extra, _ = descriptors(5000, arguments.dimension, 3)
    stop, count = threading.Event(), [0]

    def add() -> None:
        while not stop.is_set():
            at = 10 * (count[0] % 500)
            collection.upsert([Item(f"x{n}", extra[n], "x") for n in range(at, at + 10)])
            count[0] += 1

    thread = threading.Thread(target=add)
    thread.start()
    busy = percentile(act, queries, arguments.seconds)
    stop.set()
    thread.join()
    print(
        f"p50, p99 in ms: quiet {quiet[0]:.2f}, {quiet[1]:.2f}; while adding {count[0] / arguments.seconds:.0f} "
        f"batches of 10 a second {busy[0]:.2f}, {busy[1]:.2f}; p99 ratio {busy[1] / quiet[1]:.2f} (goal 3)",
        flush=True,
    )


if __name__ == "__main__":
    main()
