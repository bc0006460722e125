"""The model repository on disk, as one look sees it. Blocking: for a thread of its own, for a disk may be slow."""

import os
from dataclasses import dataclass
from pathlib import Path

from penult.bundle.manifest import is_model_name
from penult.bundle.reader import versions

# What tells whether a file is still the same without reading it: path, size, times of contents and of the entry, inode.
Stamp = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class Look:
    """The models with their versions, oldest first; and the folders that could not be read this time."""

    models: dict[str, list[int]]
    unreadable: tuple[str, ...] = ()


def look(root: Path) -> Look:
    """List root/NAME/VERSION; raise OSError where the root itself cannot be read."""
    models, unreadable = {}, []
    for entry in sorted(root.iterdir()):
        if not is_model_name(entry.name):
            continue
        try:
            if found := versions(entry):
                models[entry.name] = found
        except OSError:
            unreadable.append(entry.name)
    return Look(models, tuple(unreadable))


def stamp(folder: Path) -> Stamp:
    """Return what changes with any file of a bundle; empty where there is none."""
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # it has gone since: then the next look differs
                continue
            entry = os.path.relpath(path, folder)
            found.append((entry, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return tuple(sorted(found))
