"""Write a bundle atomically: a reader sees all of it or none, even if the machine stops half-way."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from penult.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from penult.bundle.naming import name_to_publish, versions
from penult.bundle.signature import SIGNATURE_NAME

_WRITING = ".writing-"
_ABANDONED_S = 3600.0


def publish(model_folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle as the next version below models/NAME and return its folder.

    `files` maps relative paths to contents; the manifest's `files` are filled in from them. Files are written to a
    temporary folder beside the target and synced, the manifest last, then the folder is renamed. Raises BundleError
    for an unusable name and OSError when the disk refuses; nothing is left under a final name then. What writers that
    were killed before left is removed.
    """
    name_to_publish(model_folder)
    model_folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(model_folder)
    listed = replace(manifest, files={name: FileEntry.of(data) for name, data in sorted(files.items())})
    scratch = Path(tempfile.mkdtemp(prefix=_WRITING, dir=model_folder))
    try:
        with _held(scratch):
            for name, data in files.items():
                _write(scratch / name, data)
            _write(scratch / MANIFEST_NAME, listed.to_json())
            scratch.chmod(0o755)  # mkdtemp makes it private; the service may run as another user
            return _rename_to_next_version(scratch, model_folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def move(version_folder: Path, model_folder: Path) -> Path:
    """Move a whole bundle from another folder of the same file system, as the next version; return its folder."""
    name_to_publish(model_folder)
    model_folder.mkdir(parents=True, exist_ok=True)
    return _rename_to_next_version(version_folder, model_folder)


def put_signature(version_folder: Path, signature: bytes) -> None:
    """Put manifest.sig beside a manifest, in one step, in place of one that is there; raise OSError."""
    # Made beside the version, not in it: a reader would meet a file that the manifest does not list. Where a link
    # leads: a rename goes to no other file system.
    descriptor, scratch = tempfile.mkstemp(prefix=".signing-", dir=version_folder.resolve().parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(signature)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(scratch, version_folder / SIGNATURE_NAME)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    _sync_folder(version_folder)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, which the kernel lets go of however the process ends; False where another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except OSError:  # held by another; or file systems that cannot lock a folder
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


def _remove_abandoned(model_folder: Path) -> None:
    """Remove what killed writers left: folders that no process holds, and that have not changed for an hour.

    The hour is for writers on other machines, whose locks a shared file system may not show.
    """
    for folder in model_folder.glob(f"{_WRITING}*"):
        with suppress(OSError):  # gone since, no folder, or not ours
            if time.time() - folder.lstat().st_mtime > _ABANDONED_S:
                with _held(folder) as is_held:
                    if is_held:
                        shutil.rmtree(folder)


def _rename_to_next_version(scratch: Path, model_folder: Path) -> Path:
    """Claim the next free number; another writer may take it first, then the one after that is tried."""
    version = (versions(model_folder) or [0])[-1] + 1
    while True:
        target = model_folder / str(version)
        try:
            os.rename(scratch, target)
        except OSError:
            if not target.exists():
                raise
            version += 1
        else:
            _sync_folder(model_folder)
            return target


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
