"""Scan the model repository on disk. Blocking: call it on a thread, because disks may be slow."""

import os
from dataclasses import dataclass
from pathlib import Path

from penult.bundle.manifest import is_model_name
from penult.bundle.naming import model_name, versions

# Identifies a file without reading it: path, size, times of contents and entry, inode.
Stamp = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class RepositorySnapshot:
    """The models with their versions, oldest first; and what is wrong with other folders, by name."""

    models: dict[str, list[int]]
    unreadable: tuple[str, ...] = ()
    misnamed: tuple[str, ...] = ()
    dangling: tuple[str, ...] = ()


def scan(root: Path) -> RepositorySnapshot:
    """List root/NAME/VERSION, links to folders too; raise OSError if the root itself cannot be read."""
    models, unreadable, misnamed, dangling = {}, [], [], []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        is_named = is_model_name(entry.name)
        try:
            found = versions(entry)
            if is_named and entry.is_symlink() and not entry.exists():
                dangling.append(entry.name)
        except OSError:
            if is_named:
                unreadable.append(entry.name)
            continue
        if found and is_named:
            models[model_name(entry)] = found
        elif found:
            misnamed.append(entry.name)
    return RepositorySnapshot(models, tuple(unreadable), tuple(misnamed), tuple(dangling))


def stamp(folder: Path) -> Stamp:
    """Return a value that changes with any file of a bundle; empty without files."""
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # removed since: the next scan differs
                continue
            entry = os.path.relpath(path, folder)
            found.append((entry, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return tuple(sorted(found))
