"""Adds and deletes in a folder of collections until it is killed, and says what was acknowledged, line by line.

python churn.py FOLDER FIRST_BATCH [MAX_BATCHES]
"""

import sys
from pathlib import Path

import numpy as np

from penult.lookup.embedded import EmbeddedStore
from penult.lookup.errors import CollectionUnknown
from penult.lookup.types import CollectionSpec, Item

DIMENSION, BATCH = 16, 10


def vector(id_: str) -> np.ndarray:
    """The descriptor that belongs to an id."""
    return np.random.default_rng([ord(c) for c in id_]).normal(size=DIMENSION).astype(np.float32)


def main() -> None:
    folder, batch = Path(sys.argv[1]), int(sys.argv[2])
    last = batch + int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 40
    store = EmbeddedStore(folder, exact_numbers=100 * DIMENSION)  # so that graphs are built all the time
    try:
        collection = store.open("c")
    except CollectionUnknown:
        collection = store.create(CollectionSpec("c", DIMENSION, "f"))
    print("open", flush=True)
    while batch < last:
        ids = [f"{batch}-{n}" for n in range(BATCH)]
        collection.upsert([Item(id_, vector(id_), f"batch {batch}") for id_ in ids])
        print("added", batch, flush=True)
        if batch % 3 == 0:
            collection.delete([f"{batch}-0", f"{batch - 1}-1"])
            print("deleted", f"{batch}-0", f"{batch - 1}-1", flush=True)
        batch += 1
    store.close()


if __name__ == "__main__":
    main()
