"""Check the places that a run writes to before it trains, and report disk errors in one line."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penult.bundle.refusals import why
from penult.export.errors import DiskError

# More than a file system stores with the name, because an empty file fits on a full disk.
_BLOCK = bytes(1 << 16)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write `path` inside; raise DiskError with the system's reason if that fails."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = _refused(error)
        if refused is None:
            raise
        raise DiskError("UNWRITABLE", f"cannot write {path}: {why(refused)}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name, then give it its own, so that no reader sees a part; raise DiskError."""
    scratch = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(content)
        scratch.replace(path)


def _refused(error: BaseException | None) -> OSError | None:
    """Return the system's error. torch.save raises a RuntimeError after it, when it closes the file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


@contextmanager
def resumable() -> Iterator[None]:
    """Train inside; a DiskError then says that the run can be resumed."""
    try:
        yield
    except DiskError as error:
        raise DiskError(error.reason, f"{error.message}, then rerun with --resume") from error


def check_folder(option: str, given: Path, *folders: Path) -> None:
    """Write a file into the folders of an option and delete it; raise DiskError if that fails."""
    for folder in folders or (given,):
        _try(option, given, folder / f".{secrets.token_hex(8)}")


def check_file(option: str, path: Path) -> None:
    """Write a file at the path of an option and delete it; check an existing file only. Raises DiskError."""
    _try(option, path, path)


def _try(option: str, given: Path, path: Path) -> None:
    try:
        if path.exists():
            _check_writable(path)
        else:
            with _made(path.parent):
                _write_and_remove(path)
    except OSError as error:
        raise DiskError("UNWRITABLE", f"{option} {given} cannot be written to: {why(error)}") from error


def _check_writable(path: Path) -> None:
    """Raise the OSError that opening would raise. Opening itself could block, for example on a pipe."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Create a folder and its parents, and remove those that were created: the run may still be rejected."""
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in absent:
            with suppress(OSError):  # it was not created, or another run has written into it
                each.rmdir()


def _write_and_remove(path: Path) -> None:
    with path.open("xb") as file:
        try:
            file.write(_BLOCK)
            file.flush()
            os.fsync(file.fileno())
        finally:
            path.unlink()
