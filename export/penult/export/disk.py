"""The places that a run writes to: tried before it learns, and told in one line where one refuses later."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penult.bundle.refusals import why
from penult.export.errors import DiskError

# More than a file system would keep beside the name: an empty file fits on a full disk.
_BLOCK = bytes(1 << 16)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write `path` inside; raise DiskError, with the system's reason, where it refuses."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = _refused(error)
        if refused is None:
            raise
        raise DiskError("UNWRITABLE", f"cannot write {path}: {why(refused)}") from error


def _refused(error: BaseException | None) -> OSError | None:
    """Return what the system said: torch.save then raises a RuntimeError of its own, as it closes the file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


@contextmanager
def resumable() -> Iterator[None]:
    """Learn inside: a refusal of the disk then says that what is learnt is kept."""
    try:
        yield
    except DiskError as error:
        raise DiskError(error.reason, f"{error.message}, then go on with --resume") from error


def try_folder(option: str, given: Path, *folders: Path) -> None:
    """Write into folders of what an option gives, and leave no trace; raise DiskError where that is refused."""
    for folder in folders or (given,):
        _try(option, given, folder / f".{secrets.token_hex(8)}")


def try_file(option: str, path: Path) -> None:
    """Write in the file's place, and leave no trace; one that is there is left alone. Raises DiskError."""
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
    """Raise the OSError that opening it would; opening itself would wait for ever on a pipe."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it for a while: the run may yet be refused, and shall leave no empty ones."""
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in absent:
            with suppress(OSError):  # it was not made, or another run has put something into it
                each.rmdir()


def _write_and_remove(path: Path) -> None:
    with path.open("xb") as file:
        try:
            file.write(_BLOCK)
            file.flush()
            os.fsync(file.fileno())
        finally:
            path.unlink()
