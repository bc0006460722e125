"""The photos of a folder, with their descriptors: what there is to label."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penult.console import say
from penult.export.data import file_index
from penult.export.data.file_index import Listing
from penult.export.data.splitting import Photo
from penult.export.jobs.frozen_descriptors import FrozenNetwork
from penult.folders.names import PHOTOS, printable
from penult.folders.walk import count, some
from penult.label.errors import LabelError

# Rows are scaled in blocks, so that the descriptors are in memory once.
_BLOCK_ROWS = 4096
UNLABELLED = -1


@dataclass(frozen=True)
class Pool:
    """Photos in order of their paths.

    Attributes:
        root: The folder.
        ids: The path of each photo below the folder, as the column `image` of the label file has it.
        photos: The files.
        inputs: Descriptors scaled to length 1, float32 [N, length].
        groups: The first photo with the same bytes, int64 [N].
        network: The network that made the descriptors.
    """

    root: Path
    ids: tuple[str, ...]
    photos: tuple[Photo, ...]
    inputs: NDArray[np.float32]
    groups: NDArray[np.int64]
    network: str


def load_pool(folder: Path, network: FrozenNetwork) -> Pool:
    """Find, read and describe the photos of a folder; what was described before is read from the cache.

    Raises:
        LabelError: There is no photo in the folder.
        DiskError: A photo can no longer be read.
    """
    ids, photos = find_photos(folder)
    inputs = network.describe(photos)
    unit_rows_in_place(inputs)
    first: dict[str, int] = {}
    groups = np.array([first.setdefault(photo.sha256, row) for row, photo in enumerate(photos)], dtype=np.int64)
    return Pool(folder, ids, photos, inputs, groups, network.name)


def find_photos(folder: Path) -> tuple[tuple[str, ...], tuple[Photo, ...]]:
    """Return the paths of the readable photos below a folder, and the photos; raise LabelError if there is none."""
    if not folder.is_dir():
        raise LabelError("FOLDER", f"{printable(str(folder))} is not a folder; give the folder of the photos")
    listing = file_index.find(folder, {"": 0})
    ids, photos, unread = [], [], []
    for file, answer in zip(listing.files, file_index.check(listing), strict=True):
        if not file_index.is_digest(answer):
            unread.append((file.path, answer))
        elif not file.path.isprintable():  # nor UTF-8, as a label file is
            unread.append((file.path, "its name is unprintable; rename it"))
        else:
            ids.append(file.path)
            photos.append(Photo(folder / file.path, UNLABELLED, answer))
    _note(listing, unread)
    if not photos:
        raise LabelError(
            "FOLDER", f"{printable(str(folder))} holds no photo that can be read; give a folder of {PHOTOS} files"
        )
    return tuple(ids), tuple(photos)


def unit_rows_in_place(rows: NDArray[np.float32]) -> None:
    """Scale rows [N, length] to length 1."""
    for at in range(0, len(rows), _BLOCK_ROWS):
        block = rows[at : at + _BLOCK_ROWS]
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)


def _note(listing: Listing, unread: list[tuple[str, str]]) -> None:
    """Print what was left out."""
    for line in listing.left_out.lines(with_broken=False):
        say(f"note: {line}")
    if unread := sorted([*listing.broken, *unread]):
        named = some([f"{printable(path)} ({why})" for path, why in unread])
        say(f"note: {count(len(unread), 'photo')} left out: {named}")
